"""`ptm report` of histories written by hand, second by second, whose every figure is known."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.report.files import write_report
from launcher.report.goodput import Part
from launcher.report.report import Report, make_report
from launcher.report.text import duration
from launcher.report.timeline import End
from ptm_dist.recipe.loading import dump_recipe
from tests.ptm_dist.runs import make_recipe

ZERO = 1_800_000_000.0
BATCH = 6
FAILURE = {
    "rank": 1,
    "node": "b",
    "failure": "error",
    "cause": "rank 1 was killed by SIGKILL",
    "place": "in phase step",
}


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(ZERO + seconds, UTC).isoformat(timespec="milliseconds")


@dataclass
class Script:
    """A run directory in the making; `at` is the clock, in seconds."""

    folder: Path
    at: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)

    def event(self, event: str, after: float = 0.0, **values: Any) -> None:
        self.at += after
        self.events.append({"time": iso(self.at), "event": event, **values})

    def start(self, step: int, seconds: float = 0.0, layout: str = "data parallel 2", world_size: int = 2) -> None:
        """A life begins; work behind its step is thrown away."""
        self.lost += [row for row in self.kept if row["step"] > step]
        self.kept = [row for row in self.kept if row["step"] <= step]
        self.event("start", step=step, layout=layout, world_size=world_size, seconds=seconds)

    def steps(self, first: int, last: int, each: float = 1.0, wait: float = 0.0, is_first: bool = False) -> None:
        """Steps that take `each` seconds and are in one row."""
        if is_first:
            self.event("first_step", each, step=first, step_seconds=each)
        count = last - first + 1
        self.at += each * (count - is_first)
        self.kept.append(
            {
                "kind": "train",
                "step": last,
                "samples": last * BATCH,
                "losses": [3.0 - step / 1000 for step in range(first, last + 1)],
                "step_seconds": each,
                "data_wait_seconds": wait,
                "time": iso(self.at),
            }
        )

    def validation(self, step: int, seconds: float) -> None:
        self.at += seconds
        self.kept.append({"kind": "validation", "step": step, "loss": 3.0, "seconds": seconds, "time": iso(self.at)})

    def save(self, step: int, seconds: float, **values: Any) -> None:
        self.event("checkpoint", seconds, step=step, seconds=seconds, **values)

    def write(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        for name, rows in (("events", self.events), ("metrics", self.kept), ("metrics.lost", self.lost)):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = make_recipe(self.folder, "run", training={"steps": 1000}).model_copy(update={"run_dir": self.folder})
        (self.folder / "recipe.yaml").write_text(dump_recipe(recipe))
        return self.folder

    def report(self) -> Report:
        return make_report(self.write())


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path / "run")


def seconds_of(report: Report) -> dict[Part, float]:
    """What is not nothing, to the millisecond of the files."""
    return {part: round(seconds, 3) for part, seconds in report.account.seconds.items() if round(seconds, 3)}


def test_one_undisturbed_life(script):
    script.event("submit", job=7)
    script.at = 100
    script.start(0, seconds=10)
    script.steps(1, 20, each=2, wait=3, is_first=True)
    script.validation(20, 5)
    script.save(20, 4)
    script.event("finish", 1, step=20)
    report = script.report()
    assert seconds_of(report) == {
        Part.USEFUL: 37,
        Part.DATA: 3,
        Part.START_UP: 10,
        Part.VALIDATION: 5,
        Part.CHECKPOINT: 4,
        Part.OTHER: 1,
    }
    assert report.account.wall_seconds == pytest.approx(60)
    assert report.account.goodput == pytest.approx(37 / 60)
    assert report.recoveries == []
    assert report.account.seconds_between_failures is None


def two_node_run(script: Script) -> None:
    """A node is lost at step 26 of which 20 are saved; the other goes on, makes way at 40; both finish at 60."""
    script.event("round", number=0, nodes=["a", "b"], world_size=2, layout="two", spares=[])
    script.at = 30
    script.start(0, seconds=25, layout="two")
    script.steps(1, 20, is_first=True)
    script.save(20, 4, stall_seconds=2)  # in the background: it commits while steps go on
    script.at -= 2
    script.steps(21, 25)
    script.at += 0.5
    script.event("node_lost", node="b", cause="the connection to its agent broke")
    script.event("failure", 2, step=26, **FAILURE)
    script.event("restart", rank=1, cause="x", restarts_left=2)
    script.event("round", 1, number=1, nodes=["a"], world_size=1, layout="one", spares=[])
    script.event("resume", 9, source="memory", step=20)
    script.at += 1
    script.start(20, seconds=9, layout="one", world_size=1)
    script.steps(21, 40, each=2, is_first=True)
    script.event("node_joined", node="b", processes=1)
    script.event("grow", world_size=2, layout="two")
    script.event("stop", step=40, reason="another world")
    script.event("round", 3, number=2, nodes=["a", "b"], world_size=2, layout="two", spares=[])
    script.at += 7
    script.start(40, layout="two")
    script.steps(41, 60, is_first=True)
    script.event("finish", step=60)


def test_a_lost_node_and_its_return(script):
    two_node_run(script)
    report = script.report()
    lives = report.timeline.lives
    assert [life.end for life in lives] == [End.FAILED, End.MADE_WAY, End.FINISHED]
    assert [life.nodes for life in lives] == [("a", "b"), ("a",), ("a", "b")]
    assert seconds_of(report) == {
        Part.USEFUL: 20 + 40 + 20,
        Part.START_UP: 30 + 10 + 7,
        Part.CHECKPOINT: 2,
        Part.LOST: 5.5,
        Part.DOWNTIME: 3 + 3,
    }
    (recovery,) = report.recoveries
    assert recovery.cause == "rank 1 on b (in phase step): was killed by SIGKILL"
    assert (recovery.reached, recovery.resumed_from, recovery.source, recovery.steps_again) == (26, 20, "memory", 6)
    assert [life.source for life in lives] == ["", "memory", ""]
    assert recovery.seconds == pytest.approx(3 + 10 + 2)
    assert recovery.seconds_to_same_step == pytest.approx(3 + 10 + 2 * 6)


def test_a_hang_lasts_from_the_last_progress_on(script):
    script.event("round", number=0, nodes=["a", "b"], world_size=2, layout="two", spares=[])
    script.start(0)
    script.steps(1, 10, is_first=True)
    script.save(10, 1)
    script.event("hang", 600, rank=1, node="b", phase="data", step=10, seconds=600)
    script.event("failure", 3, step=10, **FAILURE)
    script.event("round", 1, number=1, nodes=["a", "b"], world_size=2, layout="two", spares=[])
    script.start(10)
    script.steps(11, 20, is_first=True)
    report = script.report()
    assert seconds_of(report) == {Part.USEFUL: 20, Part.CHECKPOINT: 1, Part.DOWNTIME: 604}
    assert report.recoveries[0].seconds == pytest.approx(605)
    assert report.timeline.lives[1].end is End.OPEN


def test_the_queue_and_pauses_are_apart(script):
    script.start(0)
    script.steps(1, 10, is_first=True)
    script.event("signal", signal="SIGTERM", step=10)
    script.event("stop", step=10, reason="SIGTERM")
    script.event("requeue", 5, job=7)
    script.at += 100
    script.start(10, seconds=20)
    script.steps(11, 20, is_first=True)
    script.event("stop", step=20, reason="SIGINT")
    script.event("submit", 1000, job=8)
    script.at += 50
    script.start(20, seconds=20)
    script.steps(21, 30, is_first=True)
    report = script.report()
    assert seconds_of(report) == {
        Part.USEFUL: 30,
        Part.START_UP: 40,
        Part.DOWNTIME: 5,
        Part.QUEUE: 80 + 30,
        Part.PAUSED: 1000,
    }
    assert report.account.goodput == pytest.approx(30 / 1185)
    assert report.account.goodput_running == pytest.approx(30 / 75)
    assert report.account.failures == 0


def test_a_life_that_dies_before_its_first_step_is_start_up_in_vain(script):
    script.start(0)
    script.steps(1, 10, is_first=True)
    script.save(10, 1)
    script.event("failure", 0.5, error="OSError: no")
    script.event("round", number=0, nodes=["a"], world_size=1, layout="one", spares=[])
    script.event("failure", 20, step=0, **FAILURE)
    script.event("round", 1, number=1, nodes=["a"], world_size=1, layout="one", spares=[])
    script.at += 4
    script.start(10)
    script.steps(11, 20, is_first=True)
    report = script.report()
    assert seconds_of(report) == {
        Part.USEFUL: 20,
        Part.CHECKPOINT: 1,
        Part.LOST: 0.5,
        Part.START_UP: 24,
        Part.DOWNTIME: 1,
    }
    first, second = report.recoveries
    assert first.cause == "OSError: no"
    assert first.seconds == pytest.approx(20 + 1 + 4 + 1)
    assert (second.steps_again, second.seconds) == (0, pytest.approx(1 + 4 + 1))
    assert report.timeline.lives[1].start_step is None


def test_steps_before_a_rollback_are_lost_and_it_is_no_failure(script):
    script.event("round", number=0, nodes=["a"], world_size=2, layout="two", spares=[])
    script.start(0)
    script.steps(1, 10, is_first=True)
    script.save(10, 1)
    script.steps(11, 15)
    script.event("rollback", step=15, first_skipped=12, reason="the loss is 9")
    script.at += 2
    script.start(10)
    script.steps(11, 20, is_first=True)
    report = script.report()
    assert seconds_of(report) == {Part.USEFUL: 20, Part.CHECKPOINT: 1, Part.LOST: 5, Part.DOWNTIME: 2}
    assert [life.end for life in report.timeline.lives] == [End.ROLLED_BACK, End.OPEN]
    assert report.timeline.lives[1].nodes == ("a",)
    assert report.recoveries == []
    assert report.curve.is_whole


def test_a_second_failure_before_the_old_step_does_not_hide_when_it_was_reached(script):
    script.start(0)
    script.steps(1, 10, is_first=True)
    script.save(10, 1)
    script.steps(11, 19)
    for last in (13, 25, 20):
        script.at += 5
        script.start(10)
        script.steps(11, last, is_first=True)
    report = script.report()
    assert [recovery.reached for recovery in report.recoveries] == [19, 13, 25]
    # The first one is back at step 19 in the third life, whose steps were all thrown away.
    assert report.recoveries[0].seconds_to_same_step == pytest.approx(5 + 3 + 5 + 9)
    assert report.recoveries[2].seconds_to_same_step is None
    assert report.recoveries[2].seconds == pytest.approx(6)


def test_rows_of_a_version_without_times_and_unknown_events_are_shown(script):
    script.start(0)
    script.steps(1, 10)
    script.event("solar_flare", strength=9, step="many")
    script.save(10, 1)
    script.start(10)
    script.steps(11, 20)
    script.event("finish", step=20)
    for row in script.kept:
        del row["time"]
    for event in script.events:
        event.pop("seconds", None)
    folder = script.write()
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('["no event"]\n{"event": "no time"}\n{"time": "today", "event": "no time"}\n{"time": "20')
    report = make_report(folder)
    assert report.account.seconds[Part.USEFUL] == pytest.approx(20)
    assert sum(report.account.seconds.values()) == pytest.approx(report.account.wall_seconds)
    write_report(report, folder / "report")
    page = (folder / "report" / "report.md").read_text()
    assert "| solar_flare | strength=9, step=many |" in page


def test_steps_that_are_missing_double_or_with_other_samples_are_named(script):
    script.start(0)
    for first, last in ((1, 10), (13, 20), (19, 25), (26, 30)):
        script.steps(first, last)
    script.kept[-1]["samples"] += 1
    script.event("finish", step=32)
    curve = script.report().curve
    assert curve.missing == [(11, 12), (31, 32)]
    assert curve.doubled == [(19, 20)]
    assert curve.wrong == [30]
    assert (curve.samples_lost, curve.samples_repeated) == (4 * BATCH, 2 * BATCH)
    assert not curve.is_whole


def test_a_picture_of_lost_and_new_nodes_is_drawn(script):
    two_node_run(script)
    report = script.report()
    picture, page, _ = write_report(report, script.folder / "report")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "2 on 2 nodes" in page.read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.254, "0.25 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


EVENTS = ("round", "start", "first_step", "checkpoint", "failure", "hang", "node_lost", "stop", "finish", "rollback")
OTHER_EVENTS = ("submit", "requeue", "restart", "grow", "node_joined", "skip", "damaged_checkpoint", "solar_flare")
moments = st.tuples(
    st.sampled_from((*EVENTS, *OTHER_EVENTS, "steps", "validation")),
    st.floats(-2, 100),  # clocks of two machines may differ
    st.integers(0, 40),
    st.floats(0, 50),
    st.sampled_from(("another world", "SIGTERM")),
)


@given(st.lists(moments, max_size=30))
def test_the_parts_of_any_history_add_up_to_its_wall_time(tmp_path_factory, history):
    script = Script(tmp_path_factory.mktemp("any"))
    script.start(0, seconds=5)
    for kind, after, step, seconds, reason in history:
        script.at += after
        match kind:
            case "steps":
                script.steps(max(1, step - 3), max(1, step), each=seconds / 10, wait=seconds / 20)
            case "validation":
                script.validation(step, seconds)
            case "start":
                script.start(step, seconds)
            case "round":
                script.event("round", number=0, nodes=["a", "b"], world_size=2, layout="x", spares=[])
            case _:
                script.event(kind, step=step, seconds=seconds, node="b", reason=reason)
    report = script.report()
    assert all(part >= 0 for part in report.account.seconds.values())
    assert sum(report.account.seconds.values()) == pytest.approx(report.account.wall_seconds, abs=1e-4)
    for life, then in zip(report.timeline.lives, report.timeline.lives[1:], strict=False):
        assert life.began <= life.stepping <= life.ended <= then.began
    assert 0 <= report.account.goodput <= 1
    assert report.as_json()["lives"]
