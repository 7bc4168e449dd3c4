"""Addition of a bias and GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.choice import Choice


def bias_gelu(hidden: Tensor, bias: Tensor, approximate: str, choice: Choice) -> Tensor:
    """``gelu(hidden + bias)``, ``[..., width]``; `approximate` is `tanh` or `none`, as in torch."""
    return F.gelu(hidden + bias, approximate=approximate)
