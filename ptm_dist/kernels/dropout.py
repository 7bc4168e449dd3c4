"""Dropout (Srivastava et al. 2014) whose masks are a function of the place in the run, not of who computes it when.

An element is dropped or not by its key (seed, step, layer and site of the model), its sample in the global batch, its
position in the sequence and its feature: the same at every layout and when it is computed again. No mask is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.masks import at_least
from ptm_dist.kernels.philox import keep_scale, threshold


@dataclass(frozen=True)
class Drop:
    """One application of dropout to hidden states.

    Attributes:
        probability: of an element to become 0; above 0 and below 1.
        key: two words of 32 bits, ``[2]``, int64.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, or ``[batch, seq]``
            where a row has positions of several samples, int64.
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
        samples = self.samples if self.samples.dim() == 2 else self.samples[:, None]
        counter = (positions, samples, torch.zeros_like(samples))
        return at_least(threshold(self.probability), counter, features, self.key)

    @property
    def scale(self) -> float:
        """What kept elements are multiplied by."""
        return keep_scale(self.probability)


def dropped(hidden: Tensor, drop: Drop | None) -> Tensor:
    """``[batch, seq, features]`` with some elements 0 and the others scaled up; unchanged without `drop`."""
    if drop is None:
        return hidden
    return _Dropped.apply(hidden, None, *fields(drop))


def dropped_sum(branch: Tensor, residual: Tensor, drop: Drop | None) -> Tensor:
    """``residual + dropped(branch)``, ``[batch, seq, features]``, rounded once."""
    if drop is None:
        return residual + branch
    return _Dropped.apply(branch, residual, *fields(drop))


Fields = tuple[float, Tensor | None, Tensor | None, Tensor | None]
"""Those of :class:`Drop`, or 0 and no tensors without dropout: autograd functions take tensors by themselves."""


def fields(drop: Drop | None) -> Fields:
    """What :func:`drop_of` makes the dropout of again."""
    return (0.0, None, None, None) if drop is None else (drop.probability, drop.key, drop.samples, drop.positions)


def drop_of(probability: float, key: Tensor | None, samples: Tensor | None, positions: Tensor | None) -> Drop | None:
    """The inverse of :func:`fields`."""
    if key is None or samples is None or positions is None:
        return None
    return Drop(probability, key, samples, positions)


class _Dropped(torch.autograd.Function):
    """The backward pass draws the mask again."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, residual: Tensor | None, probability: float, *places: Tensor) -> Tensor:
        ctx.probability = probability
        ctx.save_for_backward(*places)
        return _scaled(branch, residual, Drop(probability, *places))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        drop = Drop(ctx.probability, *ctx.saved_tensors)
        of_branch = _scaled(gradient, None, drop) if ctx.needs_input_grad[0] else None
        return of_branch, gradient if ctx.needs_input_grad[1] else None, None, None, None, None


def _scaled(branch: Tensor, residual: Tensor | None, drop: Drop) -> Tensor:
    kept = drop.kept(branch.shape[-1]).to(branch.dtype)
    return (branch * drop.scale) * kept if residual is None else torch.addcmul(residual, branch, kept, value=drop.scale)
