"""How positions are mixed: queries, keys and values in, mixed values out, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.attention import AttentionDrop, attention
from ptm_dist.kernels.choice import Choice


@dataclass(frozen=True)
class Sight:
    """Which keys a query sees.

    A query at place p of its row sees a key at place q of the same row, if none of these speaks against it.

    Attributes:
        causal: q <= p.
        band: p - q < band, unless band is 0. For causal models.
        valid: False at padding, ``[batch, seq]``, bool: such a key is seen by nobody. None: no padding.
        documents: number of the document of each token, ``[batch, seq]``, int64: query and key are in the same one.
            None: a row is one text.
    """

    causal: bool
    band: int = 0
    valid: Tensor | None = None
    documents: Tensor | None = None

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Which of some keys each of some queries sees.

        Args:
            queries: their places in the row, ``[q]``, int64.
            keys: their places in the row, ``[k]``, int64.

        Returns: bool, broadcast to ``[batch, heads, q, k]``; None if every query sees every key.
        """
        seen = None
        if self.causal:
            back = queries[:, None] - keys[None, :]
            seen = (back >= 0) & (back < self.band) if self.band else back >= 0
        if self.documents is not None:
            together = self.documents[:, None, queries, None] == self.documents[:, None, None, keys]
            seen = together if seen is None else together & seen
        if self.valid is not None:
            not_padding = self.valid[:, None, None, keys]
            seen = not_padding if seen is None else not_padding & seen
        return seen


@dataclass(frozen=True)
class Window:
    """The positions of its sequence that a row holds in this process.

    Attributes:
        positions: their places in the sequence, ``[seq]``, int64.
        length: positions of the whole sequence.
    """

    positions: Tensor
    length: int

    @classmethod
    def whole(cls, length: int, device: torch.device) -> Window:
        """All of them, in order."""
        return cls(torch.arange(length, device=device), length)


class Mixer(Protocol):
    """Attention proper, between the matrices of a block; one object serves all blocks of a model."""

    def prepare(self, sight: Sight, window: Window) -> Any:
        """What :meth:`mix` wants to know of a sight, worked out once for all layers that share it.

        Args:
            sight: of a forward pass, about whole sequences.
            window: the positions that a row holds here.
        """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, visible: Any, drop: AttentionDrop | None = None) -> Tensor:
        """Scaled dot-product attention.

        Args:
            query: ``[batch, heads, seq, head_size]``; keys and values have the same shape.
            key: see query.
            value: see query.
            visible: from :meth:`prepare`.
            drop: dropout of the probabilities, of the heads and positions that are here.

        Returns: ``[batch, heads, seq, head_size]``.
        """


class SdpaMixer:
    """torch's scaled_dot_product_attention over all positions of a row; with dropout a form of our own.

    Args:
        choice: of that form.
    """

    def __init__(self, choice: Choice | None = None) -> None:
        self._choice = choice or Choice()

    def prepare(self, sight: Sight, window: Window) -> tuple[Tensor | None, bool]:
        """A mask, or none and whether the function's own causal form is meant."""
        if sight.causal and not sight.band and sight.documents is None and sight.valid is None:
            return None, True
        return sight.mask(window.positions, window.positions), False

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: tuple[Tensor | None, bool],
        drop: AttentionDrop | None = None,
    ) -> Tensor:
        """``[batch, heads, seq, head_size]``, three times, to the same shape."""
        mask, is_causal = visible
        if drop is not None:
            return attention(query, key, value, mask, is_causal, drop, self._choice)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
