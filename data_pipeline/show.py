"""The exact samples that a rank reads in a step, as text for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline.loader import slice_of
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import Samples


@dataclass(frozen=True)
class ShownSample:
    """One sample of a step.

    Attributes:
        counter: place in the global order of the run, from 0.
        index: which sample of the data set it is.
        epoch: which pass over the data set it belongs to, from 0.
        document_starts: positions at which a document starts; none if it lies within one document.
        text: what the model reads, decoded.
    """

    counter: int
    index: int
    epoch: int
    document_starts: list[int]
    text: str


def show_step(
    samples: Samples,
    order: SampleOrder,
    *,
    step: int,
    sizes: BatchSizes,
    dp_rank: int,
    dp_size: int,
    decode: Callable[[list[int]], str],
) -> list[ShownSample]:
    """The samples of rank `dp_rank` of `dp_size` in a step, in the order in which it reads them.

    Args:
        samples: the training set.
        order: which sample each counter of the run reads.
        step: from 0.
        sizes: samples of each step over all ranks.
        dp_rank: the rank among those that read different data.
        dp_size: how many of them there are.
        decode: token ids to text.

    Raises:
        DataError: a shard is missing or damaged.
        ValueError: a negative step, or a rank that is not one of `dp_size`.
    """
    first = sizes.first_sample(step)
    begin, end = (first + row for row in slice_of(sizes.size(step), dp_rank, dp_size))
    shown = []
    for counter, index in zip(range(begin, end), order.samples(begin, end).tolist(), strict=True):
        sample = samples.sample(index, order.epoch(counter))
        starts = sample.document_starts.tolist()
        shown.append(ShownSample(counter, index, order.epoch(counter), starts, decode(sample.inputs.tolist())))
    return shown


def format_shown(shown: Sequence[ShownSample]) -> str:
    """The samples one below the other, a headline above each."""
    return "\n\n".join(f"{_headline(sample)}\n{sample.text}" for sample in shown)


def _headline(sample: ShownSample) -> str:
    if sample.document_starts:
        starts = "documents start at " + ", ".join(map(str, sample.document_starts))
    else:
        starts = "no document starts here"
    return f"--- sample {sample.counter} of the run: index {sample.index}, epoch {sample.epoch}, {starts} ---"
