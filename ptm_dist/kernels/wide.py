"""The float type in which sums are kept."""

from __future__ import annotations

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """For sums over tensors of a float `dtype`: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)
