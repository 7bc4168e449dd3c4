"""The float type in which kernels compute."""

from __future__ import annotations

import torch
import triton.language as tl

from ptm_dist.kernels.wide import wide_dtype


def wide_type(dtype: torch.dtype) -> tl.dtype:
    """:func:`ptm_dist.kernels.wide.wide_dtype`, as Triton calls it."""
    return _TYPES[wide_dtype(dtype)]


_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
