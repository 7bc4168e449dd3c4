"""How one of our tensors is laid out in Hugging Face ``transformers``; good for weights and their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """Two ways of writing the same numbers; each turns the other's result back into the same bits."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """One of our tensors to theirs, contiguous."""
        ...

    def to_ours(self, *theirs: Tensor) -> Tensor:
        """The same tensors back."""
        ...


@dataclass(frozen=True)
class Same:
    """No difference."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """The tensor itself."""
        return (ours.contiguous(),)

    def to_ours(self, *theirs: Tensor) -> Tensor:
        """The tensor itself."""
        return theirs[0]


@dataclass(frozen=True)
class Transposed:
    """``Conv1D`` keeps a matrix as ``[in, out]``; ours is ``[out, in]``."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """``[out, in]`` to ``[in, out]``; a bias stays."""
        return (ours.t().contiguous(),)

    def to_ours(self, *theirs: Tensor) -> Tensor:
        """``[in, out]`` to ``[out, in]``; a bias stays."""
        return theirs[0].t().contiguous()


@dataclass(frozen=True)
class Twice:
    """The same tensor under two names."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """The tensor and the tensor."""
        return ours.contiguous(), ours.contiguous()

    def to_ours(self, *theirs: Tensor) -> Tensor:
        """The first, which is the one that computes."""
        return theirs[0]


@dataclass(frozen=True)
class SplitHeads:
    """Query, key and value as three tensors; ours is one with rows ``[head, (query, key, value), head_size]``.

    Attributes:
        num_heads: attention heads.
    """

    num_heads: int

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """``[3 * hidden, ...]`` to three of ``[hidden, ...]``."""
        by_head = ours.unflatten(0, (self.num_heads, 3, -1))
        return tuple(part.flatten(0, 1).contiguous() for part in by_head.unbind(1))

    def to_ours(self, *theirs: Tensor) -> Tensor:
        """Three of ``[hidden, ...]`` to ``[3 * hidden, ...]``."""
        by_head = [part.unflatten(0, (self.num_heads, -1)) for part in theirs]
        return torch.stack(by_head, dim=1).flatten(0, 2)


@dataclass(frozen=True)
class FusedHeads:
    """Query, key and value in one ``Conv1D``: ``[in, ((query, key, value), head, head_size)]``.

    Attributes:
        num_heads: attention heads.
    """

    num_heads: int

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """``[3 * hidden, in]`` to ``[in, 3 * hidden]`` in the other order; a bias stays in one dimension."""
        return (torch.cat(SplitHeads(self.num_heads).to_theirs(ours)).t().contiguous(),)

    def to_ours(self, *theirs: Tensor) -> Tensor:
        """The way back."""
        return SplitHeads(self.num_heads).to_ours(*theirs[0].t().chunk(3))
