"""A report in words and tables: on the screen, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table as ScreenTable

from launcher.report.curve import Curve
from launcher.report.goodput import Part
from launcher.report.history import Event
from launcher.report.recovery import Recovery
from launcher.report.report import Report, counts
from launcher.report.timeline import End, Life

_FILE_WIDTH = 200
_LONG_WIDTH = 9
_SHOWN_EVENTS = 200
_TOO_MANY = {"checkpoint", "first_step"}
PICTURE = "timeline.png"
"""Name of the picture, which the page shows."""


@dataclass(frozen=True)
class Column:
    """Head of a column; numbers stand right, and only long words are broken into lines."""

    name: str
    is_number: bool = False
    is_long: bool = False


@dataclass(frozen=True)
class Table:
    """Texts under a title, row by row."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def print_report(report: Report) -> None:
    """Print a report for people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    for line in headline(report):
        console.print(escape(line), soft_wrap=True)
    for table in tables(report):
        shown = ScreenTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in table.columns:
            shown.add_column(
                column.name,
                justify="right" if column.is_number else "left",
                no_wrap=not column.is_long,
                min_width=_LONG_WIDTH if column.is_long else None,
                overflow="fold",
            )
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print()
        console.print(shown)


def markdown(report: Report) -> str:
    """A report as a page, with its picture and its events."""
    lines = [f"# {report.run.resolve().name}", "", *(f"- {line}" for line in headline(report))]
    lines += ["", f"![timeline]({PICTURE})"]
    for table in (*tables(report), _events(report.timeline.events, _clock(report))):
        lines += ["", f"## {table.title}", "", _line(column.name for column in table.columns)]
        lines += [_line("---:" if column.is_number else "---" for column in table.columns)]
        lines += [_line(row) for row in table.rows]
    return "\n".join([*lines, ""])


def headline(report: Report) -> Iterator[str]:
    """What matters most, a line each."""
    book, curve, last = report.account, report.curve, report.timeline.lives[-1]
    total = "" if report.total_steps is None else f" of {report.total_steps}"
    lives = len(report.timeline.lives)
    yield f"{report.run}: step {curve.last_step}{total}, {_state(last)}; lives: {lives}, failures: {book.failures}"
    yield " to ".join(_at(time, "%Y-%m-%d %H:%M:%S UTC") for time in (report.timeline.began, report.timeline.ended))
    apart = book.seconds[Part.QUEUE] + book.seconds[Part.PAUSED]
    without = f"; {book.goodput_running:.1%} without queue and pauses" if apart else ""
    useful = duration(book.seconds[Part.USEFUL])
    yield f"goodput: {book.goodput:.1%} ({useful} of useful steps in {duration(book.wall_seconds)}){without}"
    yield _curve_line(curve)
    if book.seconds_between_failures is not None:
        yield f"mean time between failures: {duration(book.seconds_between_failures)}{_recovered(report.recoveries)}"


def _recovered(found: Sequence[Recovery]) -> str:
    times = [recovery.seconds for recovery in found if recovery.seconds is not None]
    if not times:
        return ""
    return f"; to the next step: mean {duration(sum(times) / len(times))}, longest {duration(max(times))}"


def tables(report: Report) -> Iterator[Table]:
    """Where the time went, lives, failures, other events."""
    book = report.account
    parts = [
        (str(part), duration(seconds), f"{seconds / book.wall_seconds:.1%}" if book.wall_seconds else "")
        for part, seconds in book.seconds.items()
        if seconds or part is Part.USEFUL
    ]
    parts.append(("wall time", duration(book.wall_seconds), "100.0%"))
    columns = (Column("part"), Column("time", is_number=True), Column("share", is_number=True))
    yield Table("Where the time went", columns, tuple(parts))
    yield _lives(report.timeline.lives, _clock(report))
    if report.recoveries:
        yield _failures(report.recoveries, _clock(report))
    found = tuple((kind, str(count)) for kind, count in counts(report.timeline.events).items())
    yield Table("Events", (Column("event"), Column("times", is_number=True)), found)


def duration(seconds: float) -> str:
    """A time span for people: `0.25 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def _lives(lives: Sequence[Life], clock: str) -> Table:
    names = ("life", "began", "lasted", "ranks", "layout", "steps", "kept", "1st step", "end")
    numbers, long = ("life", "lasted", "kept", "1st step"), ("layout", "end")
    columns = tuple(Column(name, name in numbers, name in long) for name in names)
    rows = tuple(
        (
            str(life.number),
            _at(life.began, clock),
            duration(life.ended - life.began),
            _ranks(life),
            life.layout,
            "none" if life.first_step is None else f"{life.start_step} to {life.reached}",
            "" if life.start_step is None else str(life.kept),
            "never" if life.first_step is None else duration(life.first_step - life.began),
            str(life.end) + (f": {life.cause}" if life.cause and not life.end.is_failure else ""),
        )
        for life in lives
    )
    return Table("Lives", columns, rows)


def _ranks(life: Life) -> str:
    if not life.world_size:
        return ""
    return f"{life.world_size} on {len(life.nodes)} nodes" if len(life.nodes) > 1 else str(life.world_size)


def _failures(found: Sequence[Recovery], clock: str) -> Table:
    names = ("life", "at", "step", "back at", "from", "again", "next step", "same step", "cause")
    columns = tuple(Column(name, name not in ("at", "from", "cause"), name == "cause") for name in names)
    rows = tuple(
        (
            str(recovery.life),
            _at(recovery.time, clock),
            str(recovery.reached),
            "" if recovery.resumed_from is None else str(recovery.resumed_from),
            recovery.source,
            str(recovery.steps_again),
            _after(recovery.seconds),
            _after(recovery.seconds_to_same_step),
            recovery.cause,
        )
        for recovery in found
    )
    return Table("Failures", columns, rows)


def _after(seconds: float | None) -> str:
    return "not yet" if seconds is None else duration(seconds)


def _events(events: Sequence[Event], clock: str) -> Table:
    """The newest events, but those that come all the time."""
    chosen = [event for event in events if event.kind not in _TOO_MANY]
    shown = chosen[-_SHOWN_EVENTS:]
    title = "What happened" if len(shown) == len(chosen) else f"What happened (the last {len(shown)} of {len(chosen)})"
    rows = tuple(
        (
            _at(event.time, clock),
            event.kind,
            ", ".join(f"{name}={_value(value)}" for name, value in event.values.items()),
        )
        for event in shown
    )
    return Table(title, (Column("time"), Column("event"), Column("details", is_long=True)), rows)


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _state(last: Life) -> str:
    return "running, or killed without a word" if last.end is End.OPEN else str(last.end)


def _curve_line(curve: Curve) -> str:
    if curve.samples_lost is None:
        checked = "the samples could not be checked, as the recipe cannot be read"
    else:
        checked = f"samples lost: {curve.samples_lost}, repeated: {curve.samples_repeated}"
    found = [
        f"steps {first}-{last} {what}"
        for what, spans in (("are missing", curve.missing), ("are there twice", curve.doubled))
        for first, last in spans
    ]
    if curve.wrong:
        found.append(f"after step {curve.wrong[0]} the number of samples is not the recipe's")
    whole = f"the curve has each of the steps {curve.first_step}-{curve.last_step} once"
    if curve.last_step < curve.first_step:
        whole = "no step is done yet"
    return f"{checked}; {'; '.join(found) or whole}"


def _clock(report: Report) -> str:
    """How times are written: with the day, if there is more than one."""
    return "%H:%M:%S" if report.account.wall_seconds < 12 * 3600 else "%m-%d %H:%M"


def _at(seconds: float, clock: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(clock)


def _line(cells: Sequence[str] | Iterator[str]) -> str:
    texts = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(texts)} |"
