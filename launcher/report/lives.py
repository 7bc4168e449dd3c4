"""How the lives of a run are found in what it wrote down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from launcher.failures import Failure, Kind
from launcher.report.history import Event, History, StepRow
from launcher.report.timeline import Away, End, Gap, Life, Timeline
from ptm_dist.training.callbacks import MAKES_WAY

# Written by others than the ranks of a life, or before a life knows where it starts.
_NO_SIGN_OF_LIFE = {
    "submit",
    "requeue",
    "node_joined",
    "node_lost",
    "round",
    "restart",
    "grow",
    "failure",
    "hang",
    "damaged_checkpoint",
    "resume",
}
_TELLS_STEPS_DONE = {"first_step", "checkpoint", "signal", "stop", "finish", "rollback", "failure", "hang"}
_QUEUES = ("submit", "requeue")


@dataclass
class _Draft:
    """A life as it is put together.

    Attributes:
        mark: its first event: a round, or the start of processes that need none.
        nodes: names, if agents started it.
        start: says at which step it starts; None if it died before it knew.
        source: where its state came from, as the run says it.
        events: until the next one begins.
        rows: of its steps that are in the run.
        lost: rows of its other steps.
    """

    mark: Event
    nodes: tuple[str, ...]
    start: Event | None
    source: str = ""
    events: list[Event] = field(default_factory=list)
    rows: list[StepRow] = field(default_factory=list)
    lost: list[StepRow] = field(default_factory=list)

    @property
    def began(self) -> float:
        """When it began; processes that meet by themselves say so afterwards."""
        seconds = self.mark.number("seconds", 0.0) if self.mark.kind == "start" else 0.0
        return self.mark.time - max(0.0, seconds)

    @property
    def start_step(self) -> int | None:
        """Steps done before, if it came to know."""
        return None if self.start is None else self.start.step

    @property
    def last_sign(self) -> float:
        """When one of its processes wrote something for the last time."""
        signs = [event.time for event in self.events if event.kind not in _NO_SIGN_OF_LIFE]
        return max([self.mark.time, *signs, *(row.time for row in (*self.rows, *self.lost) if row.time is not None)])

    def reached(self) -> int:
        """Most steps that were done."""
        told = [event.step or 0 for event in self.events if event.kind in _TELLS_STEPS_DONE]
        return max([self.start_step or 0, *told, *(row.step for row in (*self.rows, *self.lost))])

    def steps_between(self, began: float, ended: float) -> tuple[float, float | None]:
        """When its first step began (`ended` if none did), and when it was done."""
        event = next((event for event in self.events if event.kind == "first_step"), None)
        if event is not None:
            done, seconds = event.time, event.number("step_seconds", 0.0)
        else:
            rows = [row for row in (*self.rows, *self.lost) if row.is_training and row.time is not None]
            times = [time for row in rows for time in row.step_times()][:1]
            if not times:
                return ended, None
            done, seconds = times[0][1], rows[0].seconds / len(rows[0].losses)
        done = min(max(done, began), ended)
        return max(done - seconds, began), done


def timeline_of(history: History) -> Timeline:
    """Find the lives of a run with at least one start in its history."""
    drafts = _drafts(history.events)
    _give_rows(drafts, history)
    last = max([history.events[-1].time, *(draft.last_sign for draft in drafts)])
    lives: list[Life] = []
    gaps: list[Gap] = []
    for number, draft in enumerate(drafts):
        life = _life(draft, drafts[number + 1 :], lives, last)
        if lives:
            gaps += _gaps(lives[-1], life.began)
        lives.append(life)
    gaps += _gaps(lives[-1], last)
    return Timeline(lives[0].began, max(last, lives[-1].ended), tuple(lives), tuple(gaps), history.events)


def _drafts(events: Sequence[Event]) -> list[_Draft]:
    drafts: list[_Draft] = []
    waits = False  # Whether the newest one has not said yet at which step it starts.
    source = ""
    for event in events:
        if event.kind == "resume":
            source = str(event.values.get("source", ""))
        if event.kind == "start" and waits:
            drafts[-1].start = event
        elif event.kind == "round":
            drafts.append(_Draft(event, tuple(event.values.get("nodes", ())), None))
        elif event.kind == "start":
            goes_on = bool(drafts) and drafts[-1].events[-1].kind == "rollback"
            drafts.append(_Draft(event, drafts[-1].nodes if goes_on else (), event))
        if drafts:
            drafts[-1].events.append(event)
        if event.kind in ("round", "start", "failure"):
            waits = event.kind == "round"
        if event.kind == "start":
            drafts[-1].source, source = source, ""
    return drafts


def _give_rows(drafts: Sequence[_Draft], history: History) -> None:
    """Give each row to its life: a step in the run was computed by the last life that started before it."""
    newest_first = [(draft.start_step, draft) for draft in reversed(drafts) if draft.start_step is not None]
    for row in history.kept:
        owner = next((draft for start, draft in newest_first if start < row.step), drafts[0])
        owner.rows.append(row)
    for row in history.lost:
        if row.time is not None:
            owner = next((draft for draft in reversed(drafts) if draft.mark.time <= row.time), drafts[0])
            owner.lost.append(row)
    for draft in drafts:
        draft.rows = list(_with_times(draft.rows, (draft.start or draft.mark).time))


def _with_times(rows: Iterable[StepRow], since: float) -> Iterator[StepRow]:
    """Rows of a version that wrote no times: as if each followed the one before at once."""
    for row in rows:
        timed = row if row.time is not None else replace(row, time=since + row.seconds)
        since = timed.time or since
        yield timed


def _life(draft: _Draft, following: Sequence[_Draft], before: Sequence[Life], last: float) -> Life:
    end, time, cause = _ending(draft, not following, last)
    limit = following[0].mark.time if following else last
    began = max(draft.began, before[-1].ended) if before else draft.began
    ended = max(min(time, limit), began)
    stepping, first_step = draft.steps_between(began, ended)
    reached, start_step = draft.reached(), draft.start_step
    starts = [then.start_step for then in following if then.start_step is not None]
    says = (draft.start or draft.mark).values
    return Life(
        number=len(before) + 1,
        began=began,
        ended=ended,
        end=end,
        cause=cause,
        nodes=draft.nodes,
        world_size=says.get("world_size", 0),
        layout=says.get("layout", ""),
        start_step=start_step,
        reached=reached,
        kept=max(start_step or 0, min([reached, *starts])),
        source=draft.source,
        stepping=stepping,
        first_step=first_step,
        events=tuple(draft.events),
        rows=tuple(draft.rows),
        lost=tuple(draft.lost),
    )


def _ending(draft: _Draft, is_newest: bool, last: float) -> tuple[End, float, str]:
    """How and when a life ended, and why."""
    for event in draft.events:
        if event.kind == "finish":
            return End.FINISHED, event.time, ""
        if event.kind == "stop":
            reason = str(event.values.get("reason", ""))
            return End.MADE_WAY if reason == MAKES_WAY else End.STOPPED, event.time, reason
        if event.kind == "rollback":
            return End.ROLLED_BACK, event.time, str(event.values.get("reason", ""))
        if _is_failure(event, draft.nodes):
            return End.FAILED, max(_failed_at(event), _last_row(draft)), _cause(draft)
    return (End.OPEN, last, "") if is_newest else (End.VANISHED, draft.last_sign, "")


def _is_failure(event: Event, nodes: Sequence[str]) -> bool:
    return event.kind in ("failure", "hang") or (event.kind == "node_lost" and event.values.get("node") in nodes)


def _failed_at(event: Event) -> float:
    """When it happened; a hang is noticed some time after the last progress."""
    return event.time - (event.number("seconds", 0.0) if event.kind == "hang" else 0.0)


def _last_row(draft: _Draft) -> float:
    return max((row.time for row in (*draft.rows, *draft.lost) if row.time is not None), default=draft.mark.time)


def _cause(draft: _Draft) -> str:
    """Why a life failed: what the failure says, or else the first sign of it; one line."""
    signs = [event for event in draft.events if _is_failure(event, draft.nodes)]
    event = next((event for event in signs if event.kind == "failure"), signs[0])
    values = event.values
    if event.kind == "hang":
        return f"rank {values.get('rank')} on {values.get('node')} made no progress in phase {values.get('phase')}"
    if event.kind == "node_lost":
        return f"node {values.get('node')} was lost: {values.get('cause')}"
    message = str(values.get("cause", values.get("error", "")))
    if "rank" in values:
        place = {name: str(values.get(name) or "") for name in ("node", "place")}
        message = Failure(values["rank"], event.time, Kind.ERROR, message, **place).headline()
    return message.partition("\n")[0]


def _gaps(life: Life, until: float) -> Iterator[Gap]:
    """What lies between a life and the next one."""
    is_wanted = life.end in (End.STOPPED, End.FINISHED)
    queued = next((event for event in life.events if event.kind in _QUEUES and event.time >= life.ended), None)
    comes_back = queued is not None and queued.kind == "requeue"
    middle = until if queued is None else min(queued.time, until)
    if middle > life.ended:
        yield Gap(life.ended, middle, Away.PAUSED if is_wanted and not comes_back else Away.DOWNTIME)
    if until > middle:
        yield Gap(middle, until, Away.QUEUE)
