"""Attention and its gradient in plain torch, a block of scores at a time.

Shapes: queries ``[batch, heads, q, head_size]``, keys and values ``[batch, heads, k, head_size]``, log-sum-exp
``[batch, heads, q]``. Sums and everything between two matrix products are in float32, for float64 in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ptm_dist.kernels.seen import Seen
from ptm_dist.kernels.wide import wide_dtype

_ROWS = 128
"""Queries of a block, at most: few enough that causal blocks leave out most of what nobody sees."""
_SCORES = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Scores of a block, by device: as many as its cache holds, or enough to keep all of it busy."""


def like_hidden_states(heads: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a tensor like ``[batch, heads, seq, head_size]`` in which the heads of a position lie together."""
    return heads.new_empty(heads.transpose(1, 2).shape, dtype=dtype).transpose(1, 2)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Output, in the queries' type, and log-sum-exp of scores before dropout.

    A query that sees nothing gets 0 and minus infinity.
    """
    output = like_hidden_states(query).zero_()
    lse = query.new_full(query.shape[:3], -math.inf, dtype=wide_dtype(query.dtype))
    for block in _blocks(query, key, seen.causal):
        scores = block.scores(query, key, seen)
        highest = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True)
        if seen.drop is not None:
            weights *= block.factors(seen, weights.dtype)
        mixed = _product(weights, value[block.of_keys])
        output[block.of_queries] = mixed.div_(total.where(total > 0, 1.0))
        lse[block.of_queries] = total.log_().add_(highest)[..., 0]
    return output, lse


def attend_in_blocks_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in their types.

    Args:
        grad: of the output.
        query: as in the forward pass.
        key: see query.
        value: see query.
        output: of attention over all keys, of which these may be a part.
        lse: its log-sum-exp; plus infinity for a query that sees nothing at all.
        seen: as in the forward pass.
    """
    dtype = wide_dtype(query.dtype)
    grads = [like_hidden_states(tensor, dtype).zero_() for tensor in (query, key, value)]
    for block in _blocks(query, key, seen.causal):
        queries, keys = query[block.of_queries], key[block.of_keys]
        of_output = grad[block.of_queries]
        weights = block.scores(query, key, seen).sub_(lse[block.of_queries][..., None]).exp_()
        of_weights = _product(of_output, value[block.of_keys].mT)
        dropped = weights
        if seen.drop is not None:
            factors = block.factors(seen, dtype)
            of_weights *= factors
            dropped = factors.mul_(weights)
        grads[2][block.of_keys] += _product(dropped.mT, of_output)
        # Softmax takes off the mean of its gradient, which is that of the output times the output, dropout or not.
        means = (of_output.to(dtype) * output[block.of_queries]).sum(-1, keepdim=True)
        of_scores = of_weights.sub_(means).mul_(weights).mul_(_score_scale(query))
        grads[0][block.of_queries] += _product(of_scores, keys)
        grads[1][block.of_keys] += _product(of_scores.mT, queries)
    return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)


Ranges = tuple[slice, slice, slice]


@dataclass(frozen=True)
class _Block:
    """Some queries of some heads and samples, and the keys that they may see."""

    samples: slice
    heads: slice
    queries: slice
    keys: slice

    @property
    def of_queries(self) -> Ranges:
        return self.samples, self.heads, self.queries

    @property
    def of_keys(self) -> Ranges:
        return self.samples, self.heads, self.keys

    def scores(self, query: Tensor, key: Tensor, seen: Seen) -> Tensor:
        """Before the softmax; minus infinity where a query does not see a key."""
        scores = _product(query[self.of_queries], key[self.of_keys].mT).mul_(_score_scale(query))
        if seen.causal:
            diagonal = scores[..., self.queries.start :]
            diagonal.masked_fill_(diagonal.new_ones(diagonal.shape[-2:], dtype=torch.bool).triu_(1), -math.inf)
        elif seen.mask is not None:
            mask = seen.mask.expand(*query.shape[:3], key.shape[2])
            scores.masked_fill_(~mask[(*self.of_queries, self.keys)], -math.inf)
        return scores

    def factors(self, seen: Seen, dtype: torch.dtype) -> Tensor:
        """What dropout multiplies probabilities by."""
        assert seen.drop is not None
        drop = seen.drop.of(self.samples, self.heads, self.queries, self.keys)
        return drop.kept(self.heads.stop - self.heads.start).to(dtype).mul_(drop.scale)


def _blocks(query: Tensor, key: Tensor, causal: bool) -> Iterator[_Block]:
    """All scores, each once."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    if min(batch, heads, queries, keys) == 0:
        return
    room = _SCORES[query.device.type]
    rows = max(1, min(queries, _ROWS, room // keys))
    some_heads = max(1, min(heads, room // (rows * keys)))
    some_samples = max(1, min(batch, room // (rows * keys * heads)))
    for samples in _ranges(batch, some_samples):
        for of_heads in _ranges(heads, some_heads):
            for of_queries in _ranges(queries, rows):
                yield _Block(samples, of_heads, of_queries, slice(0, of_queries.stop if causal else keys))


def _ranges(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _score_scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Product of matrices in the wide type; factors are rounded to that of `right` where that makes it fast."""
    if right.is_cuda and right.dtype in (torch.float16, torch.bfloat16):
        flat = torch.bmm(left.to(right.dtype).flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
        return flat.unflatten(0, left.shape[:2])
    dtype = wide_dtype(right.dtype)
    return left.to(dtype) @ right.to(dtype)
