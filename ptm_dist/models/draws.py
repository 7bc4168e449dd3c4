"""What the dropout of a forward pass is drawn from: the run's seed and step, and places in the global batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ptm_dist.kernels.attention import AttentionDrop
from ptm_dist.kernels.dropout import Drop
from ptm_dist.models.initialization import random_bits
from ptm_dist.models.spec import ModelSpec


class Site(IntEnum):
    """Where a layer drops out; what stands before the layers has a row of its own."""

    ATTENTION = 0
    """Probabilities of attention."""
    ATTENTION_OUTPUT = 1
    """What attention adds to the residual stream."""
    FFN_OUTPUT = 2
    """What the feed-forward layer adds to it."""


@dataclass(frozen=True)
class LayerDraws:
    """Of one layer, or of the embeddings.

    Attributes:
        probability: of an element of a hidden state.
        attention_probability: of an attention probability.
        keys: by :class:`Site`, ``[sites, 2]``, int64.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, int64.
        positions: place in the sequence of each position of the residual stream that is here, ``[n]``, int64.
        places: of each position that attention gets, ``[seq]``, int64: more than those where tensor-parallel ranks
            share the residual stream.
        stream_samples: sample of each position of the residual stream, where that is packed in one row, ``[1, n]``;
            None: `samples`. The positions are ``[1, n]`` then too.
    """

    probability: float
    attention_probability: float
    keys: Tensor
    samples: Tensor
    positions: Tensor
    places: Tensor
    stream_samples: Tensor | None = None

    def packed(self, rows: Tensor) -> LayerDraws:
        """The same for a residual stream of which only some positions are left, side by side.

        Args:
            rows: of the flattened ``[batch * seq]``, int64.
        """
        length = len(self.positions)
        return replace(
            self, positions=self.positions[rows % length][None], stream_samples=self.samples[rows // length][None]
        )

    def hidden(self, site: Site) -> Drop | None:
        """Dropout of hidden states; None if there is none."""
        if not self.probability:
            return None
        samples = self.samples if self.stream_samples is None else self.stream_samples
        return Drop(self.probability, self.keys[site], samples, self.positions)

    def attention(self, first_head: int) -> AttentionDrop | None:
        """Dropout of attention probabilities; None if there is none.

        Args:
            first_head: of the heads that are here.
        """
        if not self.attention_probability:
            return None
        key = self.keys[Site.ATTENTION]
        return AttentionDrop(self.attention_probability, key, self.samples, first_head, self.places, self.places)


@dataclass(frozen=True)
class Draws:
    """Of a forward pass.

    Attributes:
        keys: by layer and :class:`Site`, ``[layers + 1, sites, 2]``, int64; the last row is of the embeddings.
        samples: counter of each row's sample in the global order, its lower 32 bits, ``[batch]``, int64.
    """

    keys: Tensor
    samples: Tensor

    def of_layer(self, layer: int, spec: ModelSpec, positions: Tensor, places: Tensor) -> LayerDraws:
        """What a layer draws from; -1 for the embeddings.

        Args:
            layer: its number in the whole model.
            spec: of the model.
            positions: see :class:`LayerDraws`.
            places: see :class:`LayerDraws`.
        """
        return LayerDraws(spec.dropout, spec.attention_dropout, self.keys[layer], self.samples, positions, places)


def step_keys(spec: ModelSpec, seed: int, step: int, device: torch.device) -> Tensor | None:
    """:func:`dropout_keys` of a model on a device; None if it has no dropout."""
    return dropout_keys(seed, step, spec.num_layers).to(device, non_blocking=True) if spec.draws else None


def dropout_keys(seed: int, step: int, num_layers: int) -> Tensor:
    """Keys of all layers for one step, ``[layers + 1, sites, 2]``, int64 on the CPU.

    Each is a hash of seed, step, layer and site: equal ones are as unlikely as equal random numbers of 64 bits.
    """
    digest = hashlib.blake2b(f"{seed}/dropout".encode(), digest_size=8).digest()
    rows = (num_layers + 1) * len(Site)
    bits = random_bits(np.arange(step * rows, (step + 1) * rows, dtype=np.uint64), int.from_bytes(digest, "little"))
    words = np.stack([bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)], axis=-1).astype(np.int64)
    return torch.from_numpy(words).view(num_layers + 1, len(Site), 2)
