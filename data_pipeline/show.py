"""The exact samples that a rank reads in a step, as text for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import IGNORE_INDEX, Sample, Samples
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.samples.packed import PackedSamples
from data_pipeline.stream import ONLY_SOURCE, SampleStream


@dataclass(frozen=True)
class ShownSample:
    """One sample of a step.

    Attributes:
        counter: place in the global order of the run, from 0.
        source: name of the data set.
        index: which sample of the data set it is.
        epoch: which pass over the data set it belongs to, from 0.
        document_starts: positions at which a document starts; none if it lies within one document.
        predictions: positions that predict a token.
        pair_label: 0 if the second text of a pair belongs behind the first, 1 if not; None if it is no pair.
        text: what the model reads, decoded. Of masked language modelling, without padding: a predicted token as
            «predicted→shown», a special id by its role, the second text of a pair on a line of its own.
    """

    counter: int
    source: str
    index: int
    epoch: int
    document_starts: list[int]
    predictions: int
    pair_label: int | None
    text: str


def show_step(
    stream: SampleStream,
    *,
    step: int,
    sizes: BatchSizes,
    dp_rank: int,
    dp_size: int,
    decode: Callable[[list[int]], str],
) -> list[ShownSample]:
    """The samples of rank `dp_rank` of `dp_size` in a step, in the order in which it reads them.

    Args:
        stream: which sample each counter of the run reads.
        step: from 0.
        sizes: samples of each step over all ranks.
        dp_rank: the rank among those that read different data.
        dp_size: how many of them there are.
        decode: token ids to text.

    Raises:
        DataError: a shard is missing or damaged.
        ValueError: a negative step, or a rank that is not one of `dp_size`.
    """
    begin, end = sizes.counters(step, dp_rank, dp_size)
    shown = []
    picks = stream.picks(begin, end)
    rows = zip(picks.sources.tolist(), picks.indices.tolist(), picks.epochs.tolist(), strict=True)
    for counter, (number, index, epoch) in enumerate(rows, begin):
        source = stream.sources[number]
        sample = source.samples.sample(index, epoch)
        shown.append(
            ShownSample(
                counter,
                source.name,
                index,
                epoch,
                sample.document_starts.tolist(),
                int((sample.labels != IGNORE_INDEX).sum()),
                None if sample.pair_label == IGNORE_INDEX else sample.pair_label,
                _text(source.samples, sample, decode),
            )
        )
    return shown


def format_shown(shown: Sequence[ShownSample]) -> str:
    """The samples one below the other, a headline above each."""
    return "\n\n".join(f"{_headline(sample)}\n{sample.text}" for sample in shown)


def _headline(sample: ShownSample) -> str:
    if sample.document_starts:
        starts = "documents start at " + ", ".join(map(str, sample.document_starts))
    else:
        starts = "no document starts here"
    source = [] if sample.source == ONLY_SOURCE else [sample.source]
    about = [*source, f"index {sample.index}", f"epoch {sample.epoch}", starts]
    about.append(f"{sample.predictions} prediction{'' if sample.predictions == 1 else 's'}")
    if sample.pair_label is not None:
        about.append(f"pair label {sample.pair_label} ({'not ' if sample.pair_label else ''}in order)")
    return f"--- sample {sample.counter} of the run: {', '.join(about)} ---"


def _text(samples: Samples, sample: Sample, decode: Callable[[list[int]], str]) -> str:
    if isinstance(samples, CausalSamples | PackedSamples):
        return decode(sample.inputs[: sample.length].tolist())
    return _masked_text(sample, samples.special_ids, decode)


def _masked_text(sample: Sample, special_ids: Mapping[str, int], decode: Callable[[list[int]], str]) -> str:
    # Sorted, so that an id of two roles, end_of_document and separator, is called by the one it has between texts.
    names = {token: f"[{role}]" for role, token in sorted(special_ids.items())}
    lines: list[list[str]] = [[], []]
    length = sample.length
    rows = zip(sample.inputs[:length].tolist(), sample.labels[:length].tolist(), sample.segments.tolist(), strict=False)
    for (segment, plain), run in groupby(
        rows, key=lambda row: (row[2], row[1] == IGNORE_INDEX and row[0] not in names)
    ):
        tokens = list(run)
        if plain:
            lines[segment].append(decode([shown for shown, _, _ in tokens]))
            continue
        for shown, predicted, _ in tokens:
            seen = names.get(shown) or decode([shown])
            lines[segment].append(seen if predicted == IGNORE_INDEX else f"«{decode([predicted])}→{seen}»")
    return "\n".join(_join(parts) for parts in lines if parts)


def _join(parts: Sequence[str]) -> str:
    """The parts with a space between those that have none: some tokenizers drop it at the ends of what they decode."""
    text = ""
    for part in filter(None, parts):
        text += part if not text or text[-1].isspace() or part[0].isspace() else f" {part}"
    return text
