"""The fused linear cross entropy of the package liger-kernel (arXiv 2410.10989), for comparison with our own."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.errors import RecipeError
from ptm_dist.kernels.backward import is_wanted, scaled
from ptm_dist.kernels.cross_entropy import CrossEntropy
from ptm_dist.kernels.linear_cross_entropy import Score


def score_with_liger(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, kind: CrossEntropy, is_shared: bool
) -> Score:
    """As :func:`ptm_dist.kernels.linear_cross_entropy.score_hidden`.

    Raises: RecipeError where liger-kernel is not installed, off CUDA, and for what it does not do: hits, and a
        vocabulary that tensor-parallel ranks share.
    """
    problems = {
        "liger-kernel is not installed": find_spec("liger_kernel") is None,
        f"it does not run on {hidden.device.type}": not hidden.is_cuda,
        "it does not share a vocabulary between tensor-parallel ranks": is_shared,
        "it does not count hits, which encoders report": kind.counts_hits,
    }
    for problem in (text for text, is_so in problems.items() if is_so):
        raise RecipeError(f"kernels.linear_cross_entropy=liger: {problem}; use auto or chunked")
    return Score(*_Liger.apply(hidden, weight, bias, targets, kind))


class _Liger(torch.autograd.Function):
    """Its own backward pass multiplies in place, which two passes for inputs and for weights would do twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, kind: CrossEntropy
    ) -> tuple[Tensor, Tensor]:
        compute = import_module("liger_kernel.ops.fused_linear_cross_entropy").fused_linear_cross_entropy_forward
        loss, *_, into_hidden, into_weight, into_bias = compute(
            hidden.flatten(0, -2),
            weight,
            targets,
            bias=bias,
            ignore_index=IGNORE_INDEX,
            lse_square_scale=kind.z_loss,
            label_smoothing=kind.smoothing,
            reduction="sum",
            accum_dtype=torch.float32,
        )
        ctx.save_for_backward(into_hidden.view_as(hidden), into_weight, into_bias)
        hits = torch.zeros_like(loss)
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            scaled(gradient, scale, gradient.dtype) if gradient is not None and is_wanted(ctx, place) else None
            for place, gradient in enumerate(ctx.saved_tensors)
        ]
        return *found, None, None
