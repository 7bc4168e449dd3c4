"""Which keys a query sees, and which of its attention probabilities dropout leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptm_dist.kernels.masks import octets_at_least
from ptm_dist.kernels.philox import PER_COUNTER, keep_scale, threshold


@dataclass(frozen=True)
class AttentionDrop:
    """Dropout of attention probabilities.

    Whether a probability stays depends on its place alone: that of key and query in the sequence, the sample, the head.
    The key at place k looks at number k of the counter ``(query, sample, head)``, see
    :func:`ptm_dist.kernels.philox.uniform16`.

    Attributes:
        probability: of a probability to become 0; above 0 and below 1.
        key: two words of 32 bits, ``[2]``, int64.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, int64.
        first_head: of the whole model, of the heads that are here.
        queries: place in the sequence of each query that is here, ``[q]``, int64.
        keys: place in the sequence of each key that is here, ``[k]``, int64.
        in_octets: the places of keys 8 n to 8 n + 7 follow each other from a multiple of 8 on, the last ones may be
            missing: 8 numbers are drawn at once then, else all 8 for each key.
    """

    probability: float
    key: Tensor
    samples: Tensor
    first_head: int
    queries: Tensor
    keys: Tensor
    in_octets: bool = False

    @property
    def scale(self) -> float:
        """What kept probabilities are multiplied by."""
        return keep_scale(self.probability)

    def kept(self, heads: int) -> Tensor:
        """Which probabilities stay, ``[batch, heads, q, k]``, bool."""
        head = torch.arange(self.first_head, self.first_head + heads, device=self.key.device)[None, :, None]
        counter = (self.queries[None, None, :], self.samples[:, None, None], head)
        octets = self.keys[:: PER_COUNTER if self.in_octets else 1] // PER_COUNTER
        drawn = octets_at_least(threshold(self.probability), counter, octets, self.key)
        if self.in_octets:
            return drawn[..., : len(self.keys)]
        chosen = torch.arange(len(self.keys), device=self.keys.device) * PER_COUNTER + self.keys % PER_COUNTER
        return drawn[..., chosen]

    def of(self, samples: slice, heads: slice, queries: slice, keys: slice) -> AttentionDrop:
        """Of a part of what is here; keys that are in octets must be cut between them."""
        return replace(
            self,
            samples=self.samples[samples],
            first_head=self.first_head + heads.start,
            queries=self.queries[queries],
            keys=self.keys[keys],
        )


@dataclass(frozen=True)
class Seen:
    """Which keys of a part its queries see: all, if there is neither mask nor order.

    Attributes:
        mask: bool, broadcast to ``[batch, heads, q, k]``.
        causal: query i sees keys 0 to i; there are as many keys as queries, and no mask.
        drop: dropout of what is seen.
    """

    mask: Tensor | None = None
    causal: bool = False
    drop: AttentionDrop | None = None

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as something to add to scores: 0 or minus infinity, the mask's shape."""
        if self.mask is None:
            return None
        return torch.zeros_like(self.mask, dtype=dtype).masked_fill_(~self.mask, -math.inf)
