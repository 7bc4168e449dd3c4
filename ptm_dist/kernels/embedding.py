"""Sum of token, position and segment embeddings, its LayerNorm and dropout."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.dropout import Drop, dropped


def embed(
    token: Tensor,
    position: Tensor,
    segment: Tensor | None,
    norm: tuple[Tensor, Tensor, float] | None,
    drop: Drop | None,
    choice: Choice,
) -> Tensor:
    """``dropout(LayerNorm(token + position + segment))``, ``[batch, seq, width]``."""
    total = token + position
    if segment is not None:
        total = total + segment
    if norm is not None:
        weight, bias, eps = norm
        total = F.layer_norm(total, total.shape[-1:], weight, bias, eps)
    return dropped(total, drop)
