"""Cross entropy over a vocabulary that tensor-parallel ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.cross_entropy import (
    Columns,
    CrossEntropy,
    gradient_,
    joined,
    partial_statistics,
    rows_of,
)
from ptm_dist.kernels.wide import wide_dtype
from ptm_dist.parallel.collectives import (
    Pending,
    gather_sequence,
    gather_stacked,
    start_reduce_scatter,
    start_sum,
)
from ptm_dist.parallel.mesh import ALONE, RankGroup
from ptm_dist.parallel.shards import balanced_range


@dataclass(frozen=True)
class VocabularyShards:
    """The matrix of a head whose rows ranks share (:class:`ptm_dist.kernels.linear_cross_entropy.SharedVocabulary`).

    Attributes:
        ranks: that share it; the first ones may have one row more, some may have none.
        vocab_size: of all.
        positions: of all ranks, where each has a range of the positions of the hidden states; 0 where it has all.
    """

    ranks: RankGroup
    vocab_size: int
    positions: int = 0

    @property
    def columns(self) -> Columns:
        """Of this rank."""
        begin, _ = balanced_range(self.vocab_size, self.ranks.size, self.ranks.rank)
        return Columns(begin, self.vocab_size)

    @property
    def most(self) -> int:
        """Of the first rank."""
        return -(-self.vocab_size // self.ranks.size)

    def join(self, partial: Tensor) -> Tensor:
        """One exchange, after which every rank computes the same from the same numbers."""
        return joined(gather_stacked(partial, self.ranks))

    def gather(self, hidden: Tensor) -> Tensor:
        """``[batch, own, hidden]`` to ``[batch, positions, hidden]``."""
        return gather_sequence(hidden, self.ranks, self.positions) if self.positions else hidden

    def start_sum(self, partial: Tensor) -> Pending:
        """Sum over ranks, in place, or each rank's positions of the sum."""
        return (start_reduce_scatter if self.positions else start_sum)(partial, self.ranks)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """One exchange forward, none backward; stores the logits as they are."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shards: VocabularyShards) -> Tensor:
        kind, choice = CrossEntropy(), Choice()
        statistics = shards.join(partial_statistics(logits, targets, shards.columns, kind, choice))
        ctx.save_for_backward(logits, targets, statistics)
        ctx.columns = shards.columns
        return rows_of(statistics, targets, shards.vocab_size, kind).losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, statistics = ctx.saved_tensors
        found = logits.to(statistics.dtype, copy=True)
        gradient_(found, targets, ctx.columns, statistics, CrossEntropy(), Choice())
        return found.mul_(gradients[0][:, None]).to(logits.dtype), None, None


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int, ranks: RankGroup = ALONE) -> Tensor:
    """Cross entropy over a vocabulary split across tensor-parallel ranks, where its logits exist already.

    Args:
        logits: this rank's columns, ``[tokens, vocab_local]``, any float dtype; computed in float32, or in
            float64 when they are float64.
        targets: global token ids, ``[tokens]``, int64; rows with ``IGNORE_INDEX`` give 0.
        vocab_size: size of the whole vocabulary; shards may be uneven or empty.
        ranks: the ranks that hold the other columns.

    Returns:
        Loss per token in nats, ``[tokens]``, the same on every rank.

    Source: Megatron-LM (arXiv 1909.08053), section 3.
    """
    if ranks.size == 1:
        wide = logits.to(wide_dtype(logits.dtype))
        return F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return _VocabParallelCrossEntropy.apply(logits, targets, VocabularyShards(ranks, vocab_size))


@torch.no_grad()
def vocab_parallel_hits(logits: Tensor, targets: Tensor, vocab_size: int, ranks: RankGroup = ALONE) -> Tensor:
    """Whether the likeliest token, the first of equals, is the target; arguments as in the cross entropy.

    Returns: ``[tokens]``, bool, the same on every rank; False where there is no target.
    """
    if ranks.size == 1:
        return logits.argmax(-1) == targets
    shards, kind = VocabularyShards(ranks, vocab_size), CrossEntropy(counts_hits=True)
    statistics = shards.join(partial_statistics(logits, targets, shards.columns, kind, Choice()))
    return rows_of(statistics, targets, vocab_size, kind).hits > 0.0
