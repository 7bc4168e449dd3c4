"""How positions are mixed: queries, keys and values in, mixed values out, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.attention import AttentionDrop, attention
from ptm_dist.kernels.choice import Choice
from ptm_dist.models.banded import banded_attention, block_mask, pays


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


@dataclass(frozen=True)
class Visible:
    """A sight as torch's scaled_dot_product_attention takes it.

    Attributes:
        mask: bool, broadcast to ``[batch, heads, q, k]``; None: there is none.
        is_causal: the function's own causal form is meant.
        block_mask: of a band that is computed in blocks (:mod:`ptm_dist.models.banded`), in place of both.
    """

    mask: Tensor | None
    is_causal: bool
    block_mask: Tensor | None = None


class SdpaMixer:
    """torch's scaled_dot_product_attention over all positions of a row; with dropout a form of our own.

    Args:
        choice: of that form.
        drops: whether some passes have dropout; bands are masks over whole rows then.
    """

    def __init__(self, choice: Choice | None = None, *, drops: bool = False) -> None:
        self._choice = choice or Choice()
        self._drops = drops

    def prepare(self, sight: Sight, window: Window) -> Visible:
        """What scaled_dot_product_attention needs to know of a sight."""
        if sight.causal and sight.documents is None and sight.valid is None:
            if not sight.band:
                return Visible(None, is_causal=True)
            if pays(window.length, sight.band) and not self._drops:
                return Visible(None, is_causal=True, block_mask=block_mask(sight.band, window.positions.device))
        return Visible(sight.mask(window.positions, window.positions), is_causal=False)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Visible,
        drop: AttentionDrop | None = None,
    ) -> Tensor:
        """``[batch, heads, seq, head_size]``, three times, to the same shape."""
        if drop is not None:
            drop = replace(drop, in_octets=True)  # All positions, in order.
            return attention(query, key, value, visible.mask, visible.is_causal, drop, self._choice)
        if visible.block_mask is not None:
            return banded_attention(query, key, value, visible.block_mask)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible.mask, is_causal=visible.is_causal)
