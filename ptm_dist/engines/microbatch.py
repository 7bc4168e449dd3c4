"""A rank's slice of a global batch, cut into what one forward pass reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batches import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.models.attention import Window
from ptm_dist.models.draws import Draws
from ptm_dist.models.spec import ModelSpec
from ptm_dist.models.unpadding import ValidPositions


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads and is to predict, on the device.

    Attributes:
        window: the positions of the sequence that are here, n of seq: all but with context parallelism.
        input_ids: ``[batch, n]``, int64.
        segment_ids: ``[batch, n]``, int64; None for a model without segments.
        valid: False at padding, ``[batch, seq]``, bool; None for a causal model.
        positions: indices of the predicted tokens in the flattened ``[batch * n]``; None: all of them.
        targets: token ids at positions, or ``[batch * n]``; ``IGNORE_INDEX`` where there is none.
        pair_targets: ``[batch]``; ``IGNORE_INDEX`` where there is none, or where the first position is not here.
        documents: number of the document of each token within its row, ``[batch, seq]``, int64; None if a row is one
            text to the model.
        packed: the positions that are no padding, where blocks compute these alone; None: they compute all.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, int64.
    """

    window: Window
    input_ids: Tensor
    segment_ids: Tensor | None
    valid: Tensor | None
    positions: Tensor | None
    targets: Tensor
    pair_targets: Tensor
    documents: Tensor | None
    samples: Tensor
    packed: ValidPositions | None = None

    def draws(self, keys: Tensor | None) -> Draws | None:
        """What the dropout of its forward pass is drawn from; None without keys."""
        return None if keys is None else Draws(keys, self.samples)


_MOST_VALID = 0.95
"""Share of valid positions up to which packing them pays. On a CPU an encoder is 1.04 to 1.3 times as fast at 0.9, and
1.5 to 2.3 times at 0.5 (2026-11-28)."""


def split_batch(
    batch: StepBatch, count: int, size: int, spec: ModelSpec, window: Window, *, packs: bool = False
) -> Iterator[MicroBatch]:
    """Micro-batches of equal shape; a rank with fewer samples fills up with samples without targets.

    Args:
        batch: this rank's slice.
        count: micro-batches.
        size: samples of each.
        spec: what the model reads.
        window: the positions of the sequence that this process computes, on the device where it does.
        packs: whether the blocks of an encoder may compute valid positions alone.
    """
    device, here = window.positions.device, window.positions.cpu()
    is_first = len(here) > 0 and int(here[0]) == 0
    missing = count * size - len(batch.inputs)
    length = batch.inputs.shape[1]
    numbers = torch.arange(batch.first_sample, batch.first_sample + count * size) & 0xFFFFFFFF
    rows = zip(
        F.pad(batch.inputs, (0, 0, 0, missing)).split(size),
        F.pad(batch.labels, (0, 0, 0, missing), value=IGNORE_INDEX).split(size),
        F.pad(batch.lengths, (0, missing), value=length).split(size),
        F.pad(batch.segments, (0, 0, 0, missing)).split(size),
        F.pad(batch.pair_labels, (0, missing), value=IGNORE_INDEX).split(size),
        repeat(None, count) if batch.documents is None else F.pad(batch.documents, (0, 0, 0, missing)).split(size),
        numbers.split(size),
        strict=True,
    )
    for inputs, labels, lengths, segments, pair_labels, documents, samples in rows:
        causal = spec.block.causal
        positions, targets = (None, labels[:, here].flatten()) if causal else _predicted(labels[:, here])
        valid = None if causal else _valid(lengths, length)
        packed = ValidPositions.of(valid) if packs and valid is not None else None
        yield MicroBatch(
            window=window,
            input_ids=inputs[:, here].to(device, non_blocking=True),
            segment_ids=segments[:, here].to(device, non_blocking=True) if spec.embedding.segments > 1 else None,
            valid=None if valid is None else valid.to(device, non_blocking=True),
            packed=None if packed is None or packed.share > _MOST_VALID else packed.to(device),
            positions=None if positions is None else positions.to(device, non_blocking=True),
            targets=targets.to(device, non_blocking=True),
            pair_targets=(pair_labels if is_first else torch.full_like(pair_labels, IGNORE_INDEX)).to(
                device, non_blocking=True
            ),
            documents=None if documents is None else documents.to(device, non_blocking=True),
            samples=samples.to(device, non_blocking=True),
        )


def _valid(lengths: Tensor, positions: int) -> Tensor:
    """False behind the length of each sample, ``[batch, positions]``."""
    return torch.arange(positions, device=lengths.device) < lengths[:, None]


def _predicted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where something is predicted, and what; found on the CPU, where it costs no wait for the device.

    One position without a target stands for none, so that every parameter of the head has a gradient.
    """
    flat = labels.flatten()
    positions = (flat != IGNORE_INDEX).nonzero().squeeze(1)
    if not len(positions):
        positions = torch.zeros(1, dtype=torch.int64, device=labels.device)
    return positions, flat[positions]
