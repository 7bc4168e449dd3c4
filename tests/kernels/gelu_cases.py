"""GELU of a sum with a bias as torch computes it, and the comparison of another form with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.bias_gelu import bias_gelu
from ptm_dist.kernels.choice import Choice, Form, Operation

Results = tuple[Tensor, Tensor, Tensor]
"""Output, gradient of the input, gradient of the bias."""


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, among them some where GELU is flat or not a number away from 0, a bias, and a gradient."""
    generator = torch.Generator().manual_seed(sum(shape))
    hidden, gradient = (3.0 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    hidden.view(-1)[::7] *= 10.0
    bias = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    return hidden.to(device, dtype), bias.to(device, dtype), gradient.to(device, dtype)


def by_torch(hidden: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return F.gelu(hidden + bias, approximate=approximate)


def by_form(form: Form) -> Callable[[Tensor, Tensor, str], Tensor]:
    choice = Choice({Operation.BIAS_GELU: form})
    return lambda hidden, bias, approximate: bias_gelu(hidden, bias, approximate, choice)


def run(
    function: Callable[[Tensor, Tensor, str], Tensor], values: tuple[Tensor, Tensor, Tensor], approximate: str
) -> Results:
    hidden, bias = (tensor.clone().requires_grad_() for tensor in values[:2])
    out = function(hidden, bias, approximate)
    return out.detach(), *torch.autograd.grad(out, (hidden, bias), values[2])


def in_double(values: tuple[Tensor, Tensor, Tensor], approximate: str) -> Results:
    return run(by_torch, tuple(tensor.double() for tensor in values), approximate)


def assert_as_accurate(
    form: Form, values: tuple[Tensor, Tensor, Tensor], approximate: str, floor: float = 1e-6
) -> None:
    """No result is more than twice as far from double precision as torch's own operations in the same type.

    The floor, as a part of the largest number, is for where torch happens to round right: a last bit of float32.
    """
    exact = in_double(values, approximate)
    unfused = run(by_torch, values, approximate)
    for fused, plain, other in zip(run(by_form(form), values, approximate), unfused, exact, strict=True):
        assert fused.dtype == plain.dtype
        assert fused.shape == plain.shape
        assert (fused - other).abs().max() <= 2 * (plain - other).abs().max() + floor * other.abs().max()
