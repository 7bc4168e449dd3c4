"""Cross entropy, over a vocabulary that tensor-parallel ranks may share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.parallel.mesh import ALONE, RankGroup
from ptm_dist.parallel.shards import balanced_range


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Three reductions forward (maximum, sum of exponentials, target logit), none backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, begin: int, ranks: RankGroup) -> Tensor:
        wide = logits.to(_accumulation_dtype(logits.dtype))
        columns = wide.shape[-1]
        ignored = targets == IGNORE_INDEX
        local = targets - begin
        absent = ignored | (local < 0) | (local >= columns)
        local = local.masked_fill(absent, 0)

        highest = wide.amax(-1) if columns else wide.new_full(targets.shape, -torch.inf)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=ranks.group)
        exponentials = (wide - highest.unsqueeze(-1)).exp_()
        both = wide.new_zeros(2, *targets.shape)
        both[0] = exponentials.sum(-1)
        if columns:
            picked = wide.gather(-1, local.unsqueeze(-1)).squeeze(-1) - highest
            both[1] = picked.masked_fill(absent, 0.0)
        ranks.sum(both)
        total, target_logit = both.unbind(0)

        ctx.save_for_backward(exponentials.div_(total.unsqueeze(-1)), local, absent, ignored)
        ctx.dtype = logits.dtype
        return (total.log() - target_logit).masked_fill(ignored, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local, absent, ignored = ctx.saved_tensors
        scale = gradients[0].masked_fill(ignored, 0.0)
        out = probabilities * scale.unsqueeze(-1)
        if out.shape[-1]:
            hit = scale.masked_fill(absent, 0.0)
            out.scatter_add_(-1, local.unsqueeze(-1), -hit.unsqueeze(-1))
        return out.to(ctx.dtype), None, None, None


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int, ranks: RankGroup = ALONE) -> Tensor:
    """Cross entropy over a vocabulary split across tensor-parallel ranks.

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
        wide = logits.to(_accumulation_dtype(logits.dtype))
        return F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX, reduction="none")
    begin, _ = balanced_range(vocab_size, ranks.size, ranks.rank)
    return _VocabParallelCrossEntropy.apply(logits, targets, begin, ranks)


@torch.no_grad()
def vocab_parallel_hits(logits: Tensor, targets: Tensor, vocab_size: int, ranks: RankGroup = ALONE) -> Tensor:
    """Whether the likeliest token, the first of equals, is the target; arguments as in the cross entropy.

    Returns: ``[tokens]``, bool, the same on every rank; False where there is no target.
    """
    if ranks.size == 1:
        return logits.argmax(-1) == targets
    begin, _ = balanced_range(vocab_size, ranks.size, ranks.rank)
    highest = logits.new_full(targets.shape, -torch.inf)
    likeliest = torch.zeros_like(targets)
    if logits.shape[-1]:
        highest, likeliest = logits.max(-1)
    best = highest.clone()
    dist.all_reduce(best, op=dist.ReduceOp.MAX, group=ranks.group)
    place = torch.where(highest == best, likeliest + begin, vocab_size)
    dist.all_reduce(place, op=dist.ReduceOp.MIN, group=ranks.group)
    return place == targets
