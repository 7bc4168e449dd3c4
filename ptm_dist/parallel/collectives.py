"""Collectives with a gradient, between the regions of a tensor-parallel model.

A *whole* region holds every position on each rank, a *split* region (sequence parallelism) a range of
positions ``[batch, own, hidden]``, as even as can be. Gradients go the way back, as in Megatron-LM
(arXiv 1909.08053, section 3; arXiv 2205.05198, section 4.2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.shards import balanced_range

# torch 2.13 gives two collectives new names and warns about the old ones, which torch 2.11 alone knows.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


Pending = Callable[[], Tensor]
"""Waits for a collective that is under way, and returns its result; called once."""


def share_positions(positions: int, ranks: RankGroup) -> list[int]:
    """How many positions each rank keeps in a split region, the most first; some may have none."""
    ranges = [balanced_range(positions, ranks.size, rank) for rank in range(ranks.size)]
    return [end - begin for begin, end in ranges]


def start_gather(split: Tensor, ranks: RankGroup, positions: int) -> Pending:
    """All ranks' positions in order: ``[batch, own, hidden]`` to ``[batch, positions, hidden]``."""
    counts = share_positions(positions, ranks)
    batch, own, hidden = split.shape
    # Every rank sends as many positions as the first one has.
    sent = split if own == counts[0] else F.pad(split, (0, 0, 0, counts[0] - own))
    sent = sent.contiguous()
    gathered = split.new_empty(ranks.size, batch, counts[0], hidden)
    work = _all_gather(gathered.view(-1), sent.view(-1), group=ranks.group, async_op=True)

    def finish() -> Tensor:
        work.wait()
        if counts[-1] == counts[0]:
            return gathered.transpose(0, 1).reshape(batch, positions, hidden)
        return torch.cat([share[:, :count] for share, count in zip(gathered, counts, strict=True)], dim=1)

    return finish


def start_reduce_scatter(partial: Tensor, ranks: RankGroup) -> Pending:
    """Sum over ranks, each keeping its positions: ``[batch, positions, hidden]`` to ``[batch, own, hidden]``."""
    batch, positions, hidden = partial.shape
    counts = share_positions(positions, ranks)
    if counts[-1] == counts[0]:
        by_rank = partial.view(batch, ranks.size, counts[0], hidden).transpose(0, 1).contiguous()
    else:
        shares = partial.split(counts, dim=1)
        by_rank = torch.stack([F.pad(share, (0, 0, 0, counts[0] - share.shape[1])) for share in shares])
    reduced = partial.new_empty(batch, counts[0], hidden)
    work = _reduce_scatter(reduced.view(-1), by_rank.view(-1), group=ranks.group, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return reduced[:, : counts[ranks.rank]]

    return finish


def start_sum(partial: Tensor, ranks: RankGroup) -> Pending:
    """Sum over ranks, in place."""
    work = dist.all_reduce(partial, group=ranks.group, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return partial

    return finish


def gather_stacked(tensor: Tensor, ranks: RankGroup) -> Tensor:
    """All ranks' tensors of one shape, in order: ``[...]`` to ``[ranks, ...]``."""
    gathered = tensor.new_empty(ranks.size, *tensor.shape)
    _all_gather(gathered.view(-1), tensor.contiguous().view(-1), group=ranks.group)
    return gathered


def gather_sequence(split: Tensor, ranks: RankGroup, positions: int) -> Tensor:
    """What :func:`start_gather` gives, at once."""
    return start_gather(split, ranks, positions)()


def reduce_scatter_sequence(partial: Tensor, ranks: RankGroup) -> Tensor:
    """What :func:`start_reduce_scatter` gives, at once."""
    return start_reduce_scatter(partial, ranks)()


def _sum(tensor: Tensor, ranks: RankGroup) -> Tensor:
    return ranks.sum(tensor.clone(memory_format=torch.contiguous_format))


class _Leave(torch.autograd.Function):
    """Forward: sum of the ranks' shares. Backward: nothing."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, ranks: RankGroup) -> Tensor:
        return _sum(partial, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _LeaveSplit(torch.autograd.Function):
    """Forward: sum and keep one's own positions. Backward: gather positions."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, ranks: RankGroup) -> Tensor:
        ctx.ranks, ctx.positions = ranks, partial.shape[1]
        return reduce_scatter_sequence(partial.contiguous(), ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gather_sequence(gradients[0], ctx.ranks, ctx.positions), None


class _GatherPositions(torch.autograd.Function):
    """Forward: gather positions. Backward: keep one's own, since every rank computes the same from the whole."""

    @staticmethod
    def forward(ctx: Any, split: Tensor, ranks: RankGroup, positions: int) -> Tensor:
        ctx.ranks = ranks
        return gather_sequence(split, ranks, positions)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        begin, end = balanced_range(gradients[0].shape[1], ctx.ranks.size, ctx.ranks.rank)
        return gradients[0][:, begin:end], None, None


def gather_positions(split: Tensor, ranks: RankGroup, positions: int) -> Tensor:
    """From split positions to a region where every rank computes the same: ``[batch, positions, hidden]``."""
    return _GatherPositions.apply(split, ranks, positions)


def leave(partial: Tensor, ranks: RankGroup, *, sequence_parallel: bool) -> Tensor:
    """Out of a region where each rank has its share of a sum: the sum, whole or one range of positions per rank."""
    return (_LeaveSplit if sequence_parallel else _Leave).apply(partial, ranks)


def sum_together(tensors: list[Tensor], ranks: RankGroup) -> None:
    """Sum tensors over ranks, in place and in one message; the same list, in the same order, on every rank."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    ranks.sum(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
