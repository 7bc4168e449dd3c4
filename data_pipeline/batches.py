"""What a training step reads, as tensors, and how it travels from a loader process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

_SHARED_BYTES = 1 << 20
"""From here on shared memory is faster than a pipe: its cost is half a millisecond, whatever it holds."""

_COLUMNS = ("inputs", "labels", "lengths", "pair_labels", "segments", "documents")
_SINGLE = ("lengths", "pair_labels")


@dataclass(frozen=True)
class StepBatch:
    """This rank's slice of one global batch.

    Attributes:
        step: number of the step, from 0; of a validation batch, its number within the validation set.
        first_sample: counter, in the global order, of the slice's first sample.
        global_batch_size: samples of the batch over all ranks.
        sample_ids: which sample of its source stands in each row, [local], int64; of a sample in quarantine, not
            the one that stands in for it.
        inputs: token ids, [local, S], int64.
        labels: token id to predict at each position, or ``IGNORE_INDEX``, [local, S], int64.
        lengths: positions of each row that are no padding, [local], int64.
        segments: 0 or 1, the text of a pair to which a position belongs, [local, S], int64; 0 without pairs.
        pair_labels: 0 or 1 for a pair, see ``samples.Sample``, or ``IGNORE_INDEX``, [local], int64.
        documents: number of the document within its row to which each position belongs, [local, S], int64; None if
            positions see all that stands before them.
        source_ids: number of the source of each row, [local], int64; None if there is one.
    """

    step: int
    first_sample: int
    global_batch_size: int
    sample_ids: NDArray[np.int64]
    inputs: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    segments: torch.Tensor
    pair_labels: torch.Tensor
    documents: torch.Tensor | None = None
    source_ids: NDArray[np.int64] | None = None

    def pin_memory(self) -> StepBatch:
        """The same batch in page-locked memory; called by torch's loader."""
        return replace(
            self,
            inputs=self.inputs.pin_memory(),
            labels=self.labels.pin_memory(),
            lengths=self.lengths.pin_memory(),
            segments=self.segments.pin_memory(),
            pair_labels=self.pair_labels.pin_memory(),
            documents=None if self.documents is None else self.documents.pin_memory(),
        )


class _Head(NamedTuple):
    """A batch without its rows, and how many they are."""

    step: int
    first_sample: int
    global_batch_size: int
    sample_ids: NDArray[np.int64]
    source_ids: NDArray[np.int64] | None
    size: int


@dataclass(frozen=True)
class Parcel:
    """Batches on their way from a loader process: all rows in one piece, as each piece takes a message of its own.

    Attributes:
        heads: what is no row.
        columns: what stands in the rows, by name and width.
        rows: all columns side by side, [samples, sum of widths], int32 where that holds all ids, else int64; as an
            array, which travels through a pipe, or if it is large as a tensor, which travels through shared memory.
    """

    heads: tuple[_Head, ...]
    columns: tuple[tuple[str, int], ...]
    rows: torch.Tensor | NDArray[np.integer]

    @classmethod
    def of(cls, batches: Sequence[StepBatch]) -> Parcel:
        """Pack one or more batches of one length; segments that are all 0 are left out."""
        heads = tuple(
            _Head(
                batch.step,
                batch.first_sample,
                batch.global_batch_size,
                batch.sample_ids,
                batch.source_ids,
                len(batch.inputs),
            )
            for batch in batches
        )
        names = [name for name in _COLUMNS if _is_needed(name, batches)]
        length = batches[0].inputs.shape[1]
        columns = tuple((name, 1 if name in _SINGLE else length) for name in names)
        small = all(not batch.inputs.numel() or int(batch.inputs.max()) < 1 << 31 for batch in batches)
        rows = torch.empty(
            sum(head.size for head in heads),
            sum(width for _, width in columns),
            dtype=torch.int32 if small else torch.int64,
        )
        for (name, width), place in zip(columns, _places(columns), strict=True):
            begin = 0
            for batch, head in zip(batches, heads, strict=True):
                rows[begin : begin + head.size, place] = getattr(batch, name).view(-1, width)
                begin += head.size
        return cls(heads, columns, rows.numpy() if rows.nbytes < _SHARED_BYTES else rows)

    def unpacked(self) -> Iterator[StepBatch]:
        """The batches as they were."""
        rows = torch.from_numpy(self.rows) if isinstance(self.rows, np.ndarray) else self.rows
        begin = 0
        for head in self.heads:
            own = rows[begin : begin + head.size]
            begin += head.size
            found = {
                name: own[:, place].long() for (name, _), place in zip(self.columns, _places(self.columns), strict=True)
            }
            yield StepBatch(
                step=head.step,
                first_sample=head.first_sample,
                global_batch_size=head.global_batch_size,
                sample_ids=head.sample_ids,
                inputs=found["inputs"],
                labels=found["labels"],
                lengths=found["lengths"].squeeze(1),
                segments=found["segments"] if "segments" in found else torch.zeros_like(found["inputs"]),
                pair_labels=found["pair_labels"].squeeze(1),
                documents=found.get("documents"),
                source_ids=head.source_ids,
            )

    def pin_memory(self) -> list[StepBatch]:
        """The batches in page-locked memory; called by torch's loader."""
        return [batch.pin_memory() for batch in self.unpacked()]


def _is_needed(name: str, batches: Sequence[StepBatch]) -> bool:
    if name == "segments":
        return any(bool(batch.segments.any()) for batch in batches)
    return name != "documents" or batches[0].documents is not None


def _places(widths: tuple[tuple[str, int], ...]) -> Iterator[slice]:
    """Where each column stands in a row."""
    begin = 0
    for _, width in widths:
        yield slice(begin, begin + width)
        begin += width
