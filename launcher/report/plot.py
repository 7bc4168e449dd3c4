"""A picture of a run over the wall time: who computed what, what failed, the loss, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.report.goodput import Part
from launcher.report.report import Report
from launcher.report.text import duration
from launcher.report.timeline import Away, Life

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from launcher.report.history import StepRow

_MOST_LANES = 24
_MOST_POINTS = 20_000
_FEW_POINTS = 300
_LABEL_SHARE = 0.05
_UNITS = (("days", 86_400.0, 2.0), ("hours", 3_600.0, 2.0), ("minutes", 60.0, 3.0), ("seconds", 1.0, 0.0))
# Okabe and Ito's colours, which people who see few colours can tell apart.
_LAYOUT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_PART_COLOURS = {
    Part.USEFUL: "#009E73",
    Part.DATA: "#F0E442",
    Part.START_UP: "#56B4E9",
    Part.CHECKPOINT: "#0072B2",
    Part.VALIDATION: "#CC79A7",
    Part.LOST: "#D55E00",
    Part.DOWNTIME: "#4D4D4D",
    Part.QUEUE: "#B3B3B3",
    Part.PAUSED: "#E0E0E0",
    Part.OTHER: "#E69F00",
}
_LOST_COLOUR = "#D55E00"


@dataclass(frozen=True)
class _Clock:
    """Turns times into what stands on the axis: how long after the start, in a unit that fits."""

    zero: float
    unit: str
    seconds: float

    @classmethod
    def of(cls, began: float, ended: float) -> _Clock:
        unit, seconds, _ = next(choice for choice in _UNITS if ended - began >= choice[1] * choice[2])
        return cls(began, unit, seconds)

    def at(self, time: float) -> float:
        """Where a time lies."""
        return (time - self.zero) / self.seconds


def plot_timeline(report: Report, out: Path) -> None:
    """Draw a run into a PNG file, which appears whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lanes = _lanes(report.timeline.lives)
    figure = Figure(figsize=(13, 6.4 + 0.34 * len(lanes)), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [1.6 + 0.42 * len(lanes), 4.2, 0.8]
    above, below, bar = figure.subplots(3, 1, height_ratios=heights)
    clock = _Clock.of(report.timeline.began, report.timeline.ended)
    below.sharex(above)
    _draw_lives(above, report, lanes, clock)
    _draw_losses(below, report, clock)
    _draw_parts(bar, report)
    _entitle(figure, report)
    unfinished = out.with_suffix(".tmp.png")
    figure.savefig(unfinished, dpi=120)
    unfinished.replace(out)


def _entitle(figure: Figure, report: Report) -> None:
    book, lost = report.account, report.curve.samples_lost
    told = [f"step {report.curve.last_step}", f"goodput {book.goodput:.1%}", f"failures {book.failures}"]
    told += [] if lost is None else [f"samples lost {lost}"]
    figure.suptitle(f"{report.run.resolve().name}: {', '.join(told)}", fontsize=14, fontweight="bold")


def _lanes(lives: Sequence[Life]) -> list[str]:
    """What has a line of its own: the nodes, or all ranks together where nodes are unknown or too many to read."""
    names = list(dict.fromkeys(node for life in lives for node in life.nodes))
    return names if 1 < len(names) <= _MOST_LANES and all(life.nodes for life in lives) else ["ranks"]


def _draw_lives(axes: Axes, report: Report, lanes: Sequence[str], clock: _Clock) -> None:
    lives = report.timeline.lives
    colours = _layout_colours(lives)
    for life in lives:
        for place, lane in enumerate(lanes):
            if lane in life.nodes or lanes == ["ranks"]:
                _draw_life(axes, life, place, colours[life.layout], clock)
    _label_lives(axes, report, clock)
    _draw_gaps(axes, report, clock)
    saves, failures = len(lanes), -1
    times = [clock.at(event.time) for event in report.timeline.events if event.kind == "checkpoint"]
    axes.plot(times, [saves] * len(times), "|", color="#0072B2", markersize=11, markeredgewidth=1.5, clip_on=False)
    failed = [clock.at(life.ended) for life in lives if life.end.is_failure]
    axes.plot(failed, [failures] * len(failed), "X", color=_LOST_COLOUR, markersize=9, clip_on=False)
    for time in failed:
        axes.axvline(time, color=_LOST_COLOUR, linewidth=0.8, alpha=0.6, zorder=0)
    axes.set_yticks([failures, *range(len(lanes)), saves], ["failures", *lanes, "checkpoints"], fontsize=10)
    axes.set_ylim(saves + 0.6, failures - 0.9)
    axes.set_xlim(0, max(clock.at(report.timeline.ended), 1e-9))
    axes.tick_params(axis="x", labelbottom=False)
    axes.grid(axis="x", alpha=0.3)
    _add_layout_legend(axes, colours)


def _draw_life(axes: Axes, life: Life, place: int, colour: str, clock: _Clock) -> None:
    began, stepping, ended = clock.at(life.began), clock.at(life.stepping), clock.at(life.ended)
    axes.barh(place, stepping - began, left=began, height=0.62, color="white", edgecolor=colour, hatch="////", lw=0.8)
    axes.barh(place, ended - stepping, left=stepping, height=0.62, color=colour, edgecolor="white", lw=0.8)


def _label_lives(axes: Axes, report: Report, clock: _Clock) -> None:
    """The steps of a life above its bar, where there is room for them."""
    room = (report.timeline.ended - report.timeline.began) * _LABEL_SHARE
    for life in report.timeline.lives:
        if life.ended - life.began >= room:
            text = "no step" if life.first_step is None else f"{life.start_step} → {life.reached}"
            place = (clock.at((life.began + life.ended) / 2), -0.36)
            axes.annotate(text, place, ha="center", va="bottom", fontsize=8, color="#333333")


def _draw_gaps(axes: Axes, report: Report, clock: _Clock) -> None:
    """Time in which nobody computed."""
    room = (report.timeline.ended - report.timeline.began) * _LABEL_SHARE
    for gap in report.timeline.gaps:
        alpha = 0.12 if gap.why is Away.DOWNTIME else 0.35
        axes.axvspan(clock.at(gap.began), clock.at(gap.ended), color=_PART_COLOURS[Part(gap.why)], alpha=alpha, lw=0)
        if gap.ended - gap.began >= room:
            place = (clock.at((gap.began + gap.ended) / 2), 0)
            axes.annotate(gap.why, place, ha="center", va="center", fontsize=9, color="#333333")


def _draw_losses(axes: Axes, report: Report, clock: _Clock) -> None:
    dots = ".-" if report.curve.last_step - report.curve.first_step < _FEW_POINTS else "-"
    for number, life in enumerate(report.timeline.lives):
        labels = ("in the run", "thrown away", "validation") if number == 0 else (None, None, None)
        _line(axes, life.lost, clock, dots, color=_LOST_COLOUR, alpha=0.8, linewidth=1.4, label=labels[1])
        _line(axes, life.rows, clock, dots, color="#0072B2", linewidth=1.4, label=labels[0])
        measured = [row for row in life.rows if not row.is_training and row.time is not None]
        points = [(clock.at(row.time or 0.0), row.losses[0]) for row in measured]
        axes.plot(*_columns(points), "o", color="#E69F00", markersize=5, label=labels[2])
    axes.set_ylabel("loss (nats per token)", fontsize=10)
    axes.set_xlabel(f"{clock.unit} since the first start", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize=9, ncols=3)


def _line(axes: Axes, rows: Iterable[StepRow], clock: _Clock, dots: str, **style: object) -> None:
    points = [point for row in rows if row.is_training for point in _points(row, clock)]
    stride = -(-len(points) // _MOST_POINTS) or 1
    axes.plot(*_columns(points[::stride]), dots, markersize=4, **style)  # type: ignore[arg-type]


def _points(row: StepRow, clock: _Clock) -> Iterator[tuple[float, float]]:
    for (_, time), loss in zip(row.step_times(), row.losses, strict=False):
        yield clock.at(time), loss


def _draw_parts(axes: Axes, report: Report) -> None:
    """One bar as long as the wall time, in the parts that it went to."""
    wall, left = max(report.account.wall_seconds, 1e-9), 0.0
    for part, seconds in report.account.seconds.items():
        if seconds <= 0:
            continue
        share = seconds / wall
        label = f"{part} {share:.1%} ({duration(seconds)})"
        axes.barh(0, share, left=left, color=_PART_COLOURS[part], edgecolor="white", lw=0.8, label=label)
        left += share
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    axes.set_title(f"where the {duration(report.account.wall_seconds)} went", fontsize=11, loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=4, fontsize=9, frameon=False)


def _layout_colours(lives: Sequence[Life]) -> dict[str, str]:
    names = dict.fromkeys(life.layout for life in lives)
    return {name: _LAYOUT_COLOURS[number % len(_LAYOUT_COLOURS)] for number, name in enumerate(names)}


def _add_layout_legend(axes: Axes, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name or "unknown layout") for name, colour in colours.items()]
    handles.append(Patch(facecolor="white", edgecolor="#666666", hatch="////", label="start-up"))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, fontsize=9, frameon=False)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
