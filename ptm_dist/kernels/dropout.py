"""Dropout (Srivastava et al. 2014) whose masks are a function of the place in the run, not of who computes it when.

An element is dropped or not by its key (seed, step, layer and site of the model), its sample in the global batch, its
position in the sequence and its feature: the same at every layout and when it is computed again. No mask is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptm_dist.kernels.philox import keep_scale, threshold, uniform16


@dataclass(frozen=True)
class Drop:
    """One application of dropout to hidden states.

    Attributes:
        probability: of an element to become 0; above 0 and below 1.
        key: two words of 32 bits, ``[2]``, int64.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, int64.
        positions: place of each column in its sequence, ``[seq]``, or ``[batch, seq]`` where rows differ, int64.
    """

    probability: float
    key: Tensor
    samples: Tensor
    positions: Tensor

    def kept(self, features: int) -> Tensor:
        """Which elements stay, ``[batch, seq, features]``, bool.

        Feature f of sample s at position p looks at number f of the counter ``(p, s, 0)``; see
        :func:`ptm_dist.kernels.philox.uniform16`.
        """
        positions = self.positions if self.positions.dim() == 2 else self.positions[None, :]
        samples = self.samples[:, None]
        counter = (positions, samples, torch.zeros_like(samples))
        return uniform16(counter, features, (self.key[0], self.key[1])) >= threshold(self.probability)

    @property
    def scale(self) -> float:
        """What kept elements are multiplied by."""
        return keep_scale(self.probability)


def dropped(hidden: Tensor, drop: Drop | None) -> Tensor:
    """``[batch, seq, features]`` with some elements 0 and the others scaled up; unchanged without `drop`."""
    if drop is None:
        return hidden
    return _Dropped.apply(hidden, drop)


class _Dropped(torch.autograd.Function):
    """The backward pass draws the mask again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, drop: Drop) -> Tensor:
        ctx.drop = drop
        return hidden * _factors(drop, hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * _factors(ctx.drop, gradients[0]), None


def _factors(drop: Drop, like: Tensor) -> Tensor:
    return drop.kept(like.shape[-1]).to(like.dtype) * drop.scale
