"""Attention whose probabilities have dropout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.philox import keep_scale, threshold, uniform16


@dataclass(frozen=True)
class AttentionDrop:
    """Dropout of attention probabilities.

    Attributes:
        probability: of a probability to become 0; above 0 and below 1.
        key: two words of 32 bits, ``[2]``, int64.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, int64.
        first_head: of the whole model, of the heads that are here.
        queries: place in the sequence of each query that is here, ``[q]``, int64.
        keys: place in the sequence of each key that is here, ``[k]``, int64.
    """

    probability: float
    key: Tensor
    samples: Tensor
    first_head: int
    queries: Tensor
    keys: Tensor

    def kept(self, heads: int) -> Tensor:
        """Which probabilities stay, ``[batch, heads, q, k]``, bool."""
        size = int(self.keys.max()) + 1
        head = torch.arange(self.first_head, self.first_head + heads, device=self.key.device)[None, :, None]
        counter = (self.queries[None, None, :], self.samples[:, None, None], head)
        numbers = uniform16(counter, size, (self.key[0], self.key[1]))
        return numbers[..., self.keys] >= threshold(self.probability)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    drop: AttentionDrop,
    choice: Choice,
) -> Tensor:
    """``[batch, heads, seq, head_size]``, three times, to the same shape."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    kept = drop.kept(query.shape[1]).to(scores.dtype) * keep_scale(drop.probability)
    return (scores.softmax(-1) * kept) @ value
