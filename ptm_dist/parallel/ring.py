"""Ring attention: each rank keeps its queries, keys and values go round (arXiv 2310.01889)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.philox import PER_COUNTER
from ptm_dist.kernels.seen import AttentionDrop, Seen
from ptm_dist.kernels.wide import wide_dtype
from ptm_dist.models.attention import Sight, Window
from ptm_dist.parallel.chunk_attention import Merge, attend, attend_backward
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.tiles import Tile, tiles
from ptm_dist.parallel.zigzag import chunk_ranges, places

_KEPT_MASKS = 1 << 26
"""Masks of a forward pass up to so many bytes are kept for all of its layers; larger ones are made when needed."""


@dataclass(frozen=True)
class Round:
    """The way of keys and values around the ring, for one forward pass.

    Attributes:
        tiles: what is to compute, by how many ranks the keys have travelled.
        chunks: positions that ranks hold, by how far they are behind this one in the ring.
    """

    tiles: list[list[Tile]]
    chunks: list[tuple[range, range]]

    @property
    def lengths(self) -> list[int]:
        """How many positions ranks hold, by how far they are behind this one in the ring."""
        return [len(front) + len(back) for front, back in self.chunks]

    def drops(self, drop: AttentionDrop | None) -> list[AttentionDrop | None]:
        """For each rank, by how far it is behind, dropout between this rank's queries and that rank's keys."""
        if drop is None:
            return [None] * len(self.chunks)
        device = drop.keys.device
        return [replace(drop, keys=places(held, device), in_octets=_in_octets(held)) for held in self.chunks]


class RingMixer:
    """Attention proper of a context-parallel rank, in the place of :class:`ptm_dist.models.attention.SdpaMixer`.

    Args:
        ranks: that share each sequence, in the order of :func:`ptm_dist.parallel.zigzag.window`.
        choice: of the form of attention with dropout.
    """

    def __init__(self, ranks: RankGroup, choice: Choice | None = None) -> None:
        self._ranks = ranks
        self._choice = choice or Choice()

    def prepare(self, sight: Sight, window: Window) -> Round:
        """What to compute of each rank's keys; `window` is this rank's of :func:`ptm_dist.parallel.zigzag.window`."""
        size, rank = self._ranks.size, self._ranks.rank
        sources = [(rank - hops) % size for hops in range(size)]
        chunks = [chunk_ranges(window.length, size, source) for source in sources]
        device = window.positions.device
        todo = [tiles(sight, chunks[0], source, device) for source in chunks]
        by_row = next((known for known in (sight.documents, sight.valid) if known is not None), None)
        if len(window.positions) * window.length * (1 if by_row is None else len(by_row)) <= _KEPT_MASKS:
            todo = [[Tile(tile.queries, tile.keys, cache(tile.seen)) for tile in group] for group in todo]
        return Round(todo, chunks)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Round, drop: AttentionDrop | None = None
    ) -> Tensor:
        """``[batch, heads, n, head_size]`` of this rank's positions, three times, to the same shape; collective."""
        mixed: Tensor = _Ring.apply(query, key, value, visible, visible.drops(drop), self._choice, self._ranks)
        return mixed


class _Ring(torch.autograd.Function):
    """Forward: keys and values go round. Backward: once more, and their gradients go with them and come home."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Round,
        drops: list[AttentionDrop | None],
        choice: Choice,
        ranks: RankGroup,
    ) -> Tensor:
        merge = Merge(query)
        for hops, block in enumerate(_around(torch.stack([key, value]), visible.lengths, ranks)):
            for tile in visible.tiles[hops]:
                keys, values = block[:, :, :, tile.keys]
                seen = _seen(tile, drops[hops], query)
                merge.add(tile.queries, *attend(query[:, :, tile.queries], keys, values, seen, choice))
        output, lse = merge.result()
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.visible, ctx.drops, ctx.choice, ctx.ranks = visible, drops, choice, ranks
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        lengths, ranks = ctx.visible.lengths, ctx.ranks
        grad = grad.contiguous()
        query_grad = torch.zeros(query.shape, dtype=wide_dtype(query.dtype), device=query.device)
        travelling = None
        for hops, block in enumerate(_around(torch.stack([key, value]), lengths, ranks)):
            block_grad = torch.zeros(block.shape, dtype=query_grad.dtype, device=block.device)
            for tile in ctx.visible.tiles[hops]:
                rows = [whole[:, :, tile.queries] for whole in (grad, query, output, lse)]
                keys, values = block[:, :, :, tile.keys]
                seen = _seen(tile, ctx.drops[hops], query)
                grads = attend_backward(rows[0], rows[1], keys, values, rows[2], rows[3], seen, ctx.choice)
                query_grad[:, :, tile.queries] += grads[0]
                block_grad[0, :, :, tile.keys] += grads[1]
                block_grad[1, :, :, tile.keys] += grads[2]
            if travelling is not None:
                block_grad += travelling.arrived()
            travelling = _Passing(block_grad, lengths[(hops + 1) % ranks.size], ranks)
        assert travelling is not None
        key_grad, value_grad = travelling.arrived().to(key.dtype)
        return query_grad.to(query.dtype), key_grad, value_grad, None, None, None, None


def _seen(tile: Tile, drop: AttentionDrop | None, query: Tensor) -> Seen:
    """What a tile's queries see, and which of their probabilities stay."""
    seen = tile.seen()
    if drop is None:
        return seen
    everyone = [slice(0, size) for size in query.shape[:2]]
    return replace(seen, drop=drop.of(everyone[0], everyone[1], tile.queries, tile.keys))


def _in_octets(chunks: tuple[range, range]) -> bool:
    """Whether keys with these places, and those of either chunk, are in octets; see :class:`AttentionDrop`."""
    return len(chunks[0]) % PER_COUNTER == 0 and all(chunk.start % PER_COUNTER == 0 for chunk in chunks if chunk)


def _around(block: Tensor, lengths: Sequence[int], ranks: RankGroup) -> Iterator[Tensor]:
    """What ranks hold, by how far they are behind this one; the next is under way while the caller works on one."""
    for length in lengths[1:]:
        passing = _Passing(block, length, ranks)
        yield block
        block = passing.arrived()
    yield block


class _Passing:
    """A block on its way to the next rank, while the previous rank's comes here.

    Args:
        block: ``[2, batch, heads, positions, head_size]``.
        length: positions of the block that comes.
        ranks: the ring.
    """

    def __init__(self, block: Tensor, length: int, ranks: RankGroup) -> None:
        self._sent = block
        self._coming = block
        self._works: list[dist.Work] = []
        if ranks.size == 1:
            return
        group = ranks.group
        assert group is not None
        following, previous = (dist.get_global_rank(group, (ranks.rank + step) % ranks.size) for step in (1, -1))
        self._coming = block.new_empty(*block.shape[:3], length, block.shape[4])
        ends = [(dist.isend, self._sent, following), (dist.irecv, self._coming, previous)]
        # Neither library sends nothing; both ends know when there is nothing.
        operations = [dist.P2POp(end, data, peer, group) for end, data, peer in ends if data.numel()]
        if operations:
            self._works = dist.batch_isend_irecv(operations)

    def arrived(self) -> Tensor:
        """The previous rank's block."""
        for work in self._works:
            work.wait()
        return self._coming
