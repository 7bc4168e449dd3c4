"""Dropout of a branch, its addition to the residual stream, and LayerNorm of the sum."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.dropout import Drop, dropped


def add(branch: Tensor, residual: Tensor, drop: Drop | None, choice: Choice) -> Tensor:
    """``residual + dropout(branch)``, ``[batch, seq, hidden]``."""
    return residual + dropped(branch, drop)


def add_norm(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, drop: Drop | None, choice: Choice
) -> tuple[Tensor, Tensor]:
    """LayerNorm of ``residual + dropout(branch)``, and the sum itself, ``[batch, seq, hidden]``."""
    total = add(branch, residual, drop, choice)
    return F.layer_norm(total, total.shape[-1:], weight, bias, eps), total
