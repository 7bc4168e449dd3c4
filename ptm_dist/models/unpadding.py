"""Positions that are no padding, side by side in one row: who works on single positions computes no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.seen import AttentionDrop
from ptm_dist.models.attention import Mixer, Sight, Window


@dataclass(frozen=True)
class ValidPositions:
    """Where a batch is no padding.

    Attributes:
        shape: of the batch, (batch, seq).
        places: of valid positions in the flattened batch, ``[total]``, int64, ascending.
    """

    shape: tuple[int, int]
    places: Tensor

    @classmethod
    def of(cls, valid: Tensor) -> ValidPositions:
        """Those of a mask, ``[batch, seq]``, bool; waits for the device that it is on."""
        return cls((valid.shape[0], valid.shape[1]), valid.flatten().nonzero().squeeze(1))

    def to(self, device: torch.device) -> ValidPositions:
        """The same on a device, at some time before it is used there."""
        return ValidPositions(self.shape, self.places.to(device, non_blocking=True))

    @property
    def share(self) -> float:
        """Of the batch that is no padding."""
        return len(self.places) / (self.shape[0] * self.shape[1])

    def pack(self, padded: Tensor) -> Tensor:
        """``[batch, seq, width]`` to ``[1, total, width]``."""
        rows: Tensor = _Pack.apply(padded.flatten(0, 1), self.places)
        return rows[None]

    def spread(self, packed: Tensor) -> Tensor:
        """``[1, total, width]`` to ``[batch, seq, width]``, 0 at padding."""
        batch, seq = self.shape
        rows: Tensor = _Spread.apply(packed[0], self.places, batch * seq)
        return rows.view(batch, seq, packed.shape[2])


class _Pack(torch.autograd.Function):
    """Some rows of a matrix; no row twice, so that the backward pass adds nothing up."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(padded)
        return padded.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _spread(gradient, places, ctx.rows), None


class _Spread(torch.autograd.Function):
    """The way back; torch's own would keep the rows for their shape."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(places)
        return _spread(packed, places, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


def _spread(packed: Tensor, places: Tensor, rows: int) -> Tensor:
    return packed.new_zeros(rows, packed.shape[1]).index_copy_(0, places, packed)


class UnpaddedMixer:
    """Attention of packed positions by a mixer of padded rows.

    Args:
        mixer: computes the attention.
        positions: that the rows are packed from.
    """

    def __init__(self, mixer: Mixer, positions: ValidPositions) -> None:
        self._mixer = mixer
        self._positions = positions

    def prepare(self, sight: Sight, window: Window) -> Any:
        """As the mixer of padded rows does."""
        return self._mixer.prepare(sight, window)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, visible: Any, drop: AttentionDrop | None = None) -> Tensor:
        """``[1, heads, total, head_size]``, three times, to the same shape."""
        heads, head_size = query.shape[1], query.shape[3]
        together = torch.stack([query[0], key[0], value[0]]).permute(2, 0, 1, 3).flatten(1)[None]
        batch, seq = self._positions.shape
        padded = self._positions.spread(together).view(batch, seq, 3, heads, head_size)
        query, key, value = padded.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self._mixer.mix(query, key, value, visible, drop)
        packed = self._positions.pack(mixed.transpose(1, 2).flatten(2))
        return packed.view(1, -1, heads, head_size).transpose(1, 2)
