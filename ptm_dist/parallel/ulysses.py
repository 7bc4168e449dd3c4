"""All-to-all attention (DeepSpeed Ulysses, arXiv 2309.14509): ranks swap positions for heads and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.seen import AttentionDrop
from ptm_dist.models.attention import SdpaMixer, Sight, Visible, Window
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.zigzag import chunk_ranges


@dataclass(frozen=True)
class Whole:
    """What a forward pass knows of whole sequences.

    Attributes:
        chunks: for each rank the lengths of its two chunks of positions.
        visible: prepared for all positions in order.
    """

    chunks: list[tuple[int, int]]
    visible: Visible

    @property
    def lengths(self) -> list[int]:
        """Positions that each rank holds."""
        return [front + back for front, back in self.chunks]

    def in_order(self, by_rank: list[Tensor]) -> Tensor:
        """From what each rank holds, ``[..., positions, head_size]``, the sequence, ``[..., length, head_size]``."""
        halves = [held.split(sizes, dim=-2) for held, sizes in zip(by_rank, self.chunks, strict=True)]
        fronts, backs = [half[0] for half in halves], [half[1] for half in halves]
        return torch.cat(fronts + backs[::-1], dim=-2)

    def by_rank(self, sequence: Tensor) -> list[Tensor]:
        """The other way round."""
        sizes = [front for front, _ in self.chunks] + [back for _, back in self.chunks[::-1]]
        pieces = sequence.split(sizes, dim=-2)
        return [torch.cat([pieces[rank], pieces[-1 - rank]], dim=-2) for rank in range(len(self.chunks))]


class UlyssesMixer:
    """Attention proper of a context-parallel rank, in the place of :class:`ptm_dist.models.attention.SdpaMixer`.

    Each rank computes some heads over the whole sequence: as many as others or one more, and none where there are
    fewer heads than ranks.

    Args:
        ranks: that share each sequence, in the order of :func:`ptm_dist.parallel.zigzag.window`.
        choice: of the form of attention with dropout.
        drops: whether some passes have dropout.
    """

    def __init__(self, ranks: RankGroup, choice: Choice | None = None, *, drops: bool = False) -> None:
        self._ranks = ranks
        self._sdpa = SdpaMixer(choice, drops=drops)

    def prepare(self, sight: Sight, window: Window) -> Whole:
        """Who sees whom in the whole sequence, of which `window` is this rank's share."""
        size = self._ranks.size
        chunks = [chunk_ranges(window.length, size, rank) for rank in range(size)]
        whole = Window.whole(window.length, window.positions.device)
        return Whole([(len(front), len(back)) for front, back in chunks], self._sdpa.prepare(sight, whole))

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Whole, drop: AttentionDrop | None = None
    ) -> Tensor:
        """``[batch, heads, n, head_size]`` of this rank's positions, three times, to the same shape; collective."""
        size, rank = self._ranks.size, self._ranks.rank
        batch, all_heads, positions, head_size = query.shape
        heads = [all_heads // size + (other < all_heads % size) for other in range(size)]
        parts = torch.stack([query, key, value]).split(heads, dim=2)
        shapes = [(3, batch, heads[rank], length, head_size) for length in visible.lengths]
        queries, keys, values = visible.in_order(_all_to_all(parts, shapes, self._ranks)).unbind(0)
        if drop is not None:
            everywhere = torch.arange(sum(visible.lengths), device=query.device)
            first = drop.first_head + sum(heads[:rank])
            drop = replace(drop, first_head=first, queries=everywhere, keys=everywhere)
        mixed = self._sdpa.mix(queries, keys, values, visible.visible, drop)
        back = [(batch, count, positions, head_size) for count in heads]
        return torch.cat(_all_to_all(visible.by_rank(mixed), back, self._ranks), dim=1)


def _all_to_all(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], ranks: RankGroup) -> list[Tensor]:
    """Give each rank its part and return what each gave to this one, of the shapes given; empty ones too."""
    sizes = [part.numel() for part in parts]
    arriving = [math.prod(shape) for shape in shapes]
    flat = _AllToAll.apply(torch.cat([part.reshape(-1) for part in parts]), sizes, arriving, ranks)
    return [part.view(shape) for part, shape in zip(flat.split(arriving), shapes, strict=True)]


class _AllToAll(torch.autograd.Function):
    """Forward: `sizes` elements to each rank, `arriving` from each. Backward: the way back."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, sizes: list[int], arriving: list[int], ranks: RankGroup) -> Tensor:
        ctx.sizes, ctx.arriving, ctx.ranks = sizes, arriving, ranks
        return _exchange(flat, sizes, arriving, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(gradients[0].contiguous(), ctx.arriving, ctx.sizes, ctx.ranks), None, None, None


def _exchange(flat: Tensor, sizes: list[int], arriving: list[int], ranks: RankGroup) -> Tensor:
    if ranks.size == 1:
        return flat.clone()
    received = flat.new_empty(sum(arriving))
    dist.all_to_all_single(received, flat, arriving, sizes, group=ranks.group)
    return received
