"""A picture of token shards: how long documents are, and what each source file gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from data_pipeline.shards.statistics import SetStatistics

_SOURCES_SHOWN = 15


def plot_statistics(parts: Sequence[SetStatistics], out: Path) -> None:
    """Draw the statistics of the parts of a data set into a PNG file, which appears whole or not at all.

    Raises:
        DataError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("a picture needs matplotlib; install it with `pip install matplotlib`") from None
    from data_pipeline.atomic import atomic_file

    has_sources = any(part.sources for part in parts)
    figure = Figure(figsize=(15 if has_sources else 10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if has_sources else 2)
    for part in parts:
        _draw_lengths(axes[0], part, [row.documents / part.documents for row in part.lengths])
        _draw_lengths(axes[1], part, [row.tokens / part.tokens for row in part.lengths])
    for axis, what in zip(axes, ("documents", "tokens"), strict=False):
        axis.set(title=f"Share of {what} by length", xlabel="tokens per document", ylabel=f"share of {what} (%)")
        axis.set_xscale("log", base=4)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts), frameon=False)
    if has_sources:
        _draw_sources(axes[2], parts)
    with atomic_file(out) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _draw_lengths(axes: Axes, part: SetStatistics, shares: Sequence[float]) -> None:
    edges = [part.lengths[0].low, *(row.high + 1 for row in part.lengths)]
    axes.stairs([100 * share for share in shares], edges, label=_label(part), fill=True, alpha=0.45)


def _draw_sources(axes: Axes, parts: Sequence[SetStatistics]) -> None:
    tokens: dict[str, int] = {}
    for part in parts:
        for source in part.sources:
            tokens[source.name] = tokens.get(source.name, 0) + source.tokens
    total = sum(tokens.values())
    largest = sorted(tokens.items(), key=lambda item: -item[1])
    shown = largest[:_SOURCES_SHOWN]
    if len(largest) > len(shown):
        shown.append((f"{len(largest) - len(shown)} others", sum(count for _, count in largest[len(shown) :])))
    names = [name if len(name) <= 32 else f"{name[:31]}…" for name, _ in shown]
    places = range(len(shown))
    axes.barh(places, [100 * count / total for _, count in shown], color="tab:green", alpha=0.6)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(title="Share of tokens by source file", xlabel="share of tokens (%)")
    axes.grid(alpha=0.3, axis="x")


def _label(part: SetStatistics) -> str:
    return f"{Path(part.folder).name}: {part.documents:,} documents, {part.tokens:,} tokens"
