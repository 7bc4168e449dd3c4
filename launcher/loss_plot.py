"""A picture of a run: training and validation loss by step, and where the layout changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Curves:
    """Losses of a run, and the layouts that computed them.

    Attributes:
        train: (step, loss) of every step, in nats per token.
        validation: (step, loss) of every validation.
        layouts: (steps done when it began, layout in words), only where the layout differs from the one before.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    layouts: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, metrics: Path) -> Curves:
        """Read a run's ``metrics.jsonl``."""
        from ptm_dist.training.metrics import read_rows

        curves = cls()
        for row in read_rows(metrics):
            curves._add(row)
        return curves

    def layout_at(self, step: int) -> str:
        """The layout that computed a step."""
        names = [name for begin, name in self.layouts if begin < step]
        return names[-1] if names else ""

    def _add(self, row: dict[str, Any]) -> None:
        match row["kind"]:
            case "train":
                first = row["step"] - len(row["losses"]) + 1
                losses = enumerate(row["losses"], start=first)
                self.train += [(step, loss) for step, loss in losses if loss is not None]
            case "validation":
                self.validation.append((row["step"], row["loss"]))
            case "run":
                if not self.layouts or self.layouts[-1][1] != row["layout"]:
                    self.layouts.append((row["step"], row["layout"]))


def plot_losses(curves: Curves, title: str, out: Path) -> None:
    """Draw the curves into a PNG file, which appears whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.plot(*_columns(curves.train), color="tab:blue", alpha=0.5, linewidth=1, label="training")
    axes.plot(*_columns(curves.validation), color="tab:orange", marker="o", label="validation")
    for begin, layout in curves.layouts:
        _mark(axes, begin, layout)
    axes.grid(alpha=0.3)
    axes.legend()
    unfinished = out.with_suffix(".tmp.png")
    figure.savefig(unfinished, dpi=120)
    unfinished.replace(out)


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]


def _mark(axes: Axes, begin: int, layout: str) -> None:
    if begin > 0:
        axes.axvline(begin, color="grey", linestyle="--", linewidth=1)
    axes.annotate(
        layout,
        xy=(begin, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -4),
        textcoords="offset points",
        rotation=90,
        verticalalignment="top",
        fontsize=8,
        color="grey",
    )
