"""Attention over parts of the keys, put together, against torch's attention over all of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ptm_dist.kernels.seen import Seen
from ptm_dist.parallel.attention_kernels import (
    CpuKernel,
    EfficientKernel,
    FlashKernel,
    Kernel,
    PlainKernel,
    kernel_for,
)
from ptm_dist.parallel.chunk_attention import Merge, attend, attend_backward

QUERIES, KEYS, SIZE = 37, 1100, 16


def tensors(queries: int, keys: int, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of the output, laid out as a model's matrix gives them."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, count, 3, SIZE) for count in (queries, keys, keys, queries)]
    drawn = [torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype) for shape in shapes]
    return [tensor.transpose(1, 2) for tensor in drawn]


def some_mask(queries: int, keys: int, device: str = "cpu") -> torch.Tensor:
    """Which every query sees something of, the first ones only late keys, but few see something everywhere."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 1, queries, keys, generator=draw) < 0.3
    mask[0, :, : queries // 2, : keys * 2 // 3] = False
    return mask.to(device)


def reference(query, key, value, grad, mask):
    """Output, gradients and log-sum-exp, by torch, in float64."""
    leaves = [leaf.double().clone().requires_grad_() for leaf in (query, key, value)]
    output = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    grads = torch.autograd.grad(output, leaves, grad.double())
    scores = leaves[0] @ leaves[1].mT / math.sqrt(SIZE)
    lse = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).logsumexp(-1)
    return [output.detach(), *grads, lse.detach()]


def alone(kernel: Kernel, query, key, value, grad, seen):
    output, lse = kernel.forward(query, key, value, seen)
    return [output, *kernel.backward(grad, query, key, value, output, lse, seen), lse]


def in_parts(query, key, value, grad, mask, parts):
    """The same from parts of the keys, and of the queries in turn."""
    tiles = [(rows, cols) for cols in parts for rows in (slice(0, 20), slice(20, query.shape[2]))]
    cut = [(rows, cols, Seen(None if mask is None else mask[:, :, rows, cols])) for rows, cols in tiles]
    merge = Merge(query)
    for rows, cols, seen in cut:
        merge.add(rows, *attend(query[:, :, rows], key[:, :, cols], value[:, :, cols], seen))
    output, lse = merge.result()
    grads = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in (query, key, value)]
    for rows, cols, seen in cut:
        ours = [tensor[:, :, rows] for tensor in (grad, query, output, lse)]
        shares = attend_backward(ours[0], ours[1], key[:, :, cols], value[:, :, cols], ours[2], ours[3], seen)
        for whole, place, share in zip(grads, (rows, cols, cols), shares, strict=True):
            whole[:, :, place] += share
    return [output, *grads, lse]


def worst(found, expected) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((one.double() - other).abs().max() / other.abs().max()).item() for one, other in pairs)


@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_any_size_add_up_to_attention(masked):
    given = tensors(QUERIES, KEYS, torch.float64)
    mask = some_mask(QUERIES, KEYS) if masked else None
    parts = [slice(0, 600), slice(600, 1099), slice(1099, 1100)]
    assert worst(in_parts(*given, mask, parts), reference(*given, mask)) < 1e-13


@pytest.mark.parametrize("kernel", [CpuKernel(), PlainKernel()])
@pytest.mark.parametrize("shape", ["masked", "whole", "causal"])
def test_kernels_of_the_cpu_give_attention_and_its_gradient(kernel, shape):
    given = tensors(QUERIES, QUERIES if shape == "causal" else KEYS, torch.float64)
    causal = torch.ones(QUERIES, QUERIES, dtype=torch.bool).tril()
    mask = {"masked": some_mask(QUERIES, KEYS), "whole": None, "causal": causal}[shape]
    seen = Seen(causal=True) if shape == "causal" else Seen(mask)
    assert worst(alone(kernel, *given, seen), reference(*given, mask)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_nothing_and_gives_nothing(dtype):
    query, key, value, grad = tensors(QUERIES, KEYS, dtype)
    mask = some_mask(QUERIES, KEYS)
    mask[1, :, 5] = False
    output, lse = attend(query, key, value, Seen(mask))
    assert output[1, :, 5].eq(0).all() and lse[1, :, 5].eq(-math.inf).all()
    found = in_parts(query, key, value, grad, mask, [slice(0, 700), slice(700, KEYS)])
    assert all(tensor[:4].isfinite().all() for tensor in found[:4])
    assert found[1][1, :, 5].eq(0).all()
    without = in_parts(query, key, value, grad.masked_fill(~mask.any(-1)[..., None], 7.0), mask, [slice(0, KEYS)])
    again = in_parts(query, key, value, grad, mask, [slice(0, KEYS)])
    assert all(torch.equal(one, other) for one, other in zip(without[1:4], again[1:4], strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", ["masked", "whole", "causal"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kernels_of_cuda_give_attention_and_its_gradient(shape, dtype):
    keys = QUERIES if shape == "causal" else KEYS
    given = tensors(QUERIES, keys, dtype, "cuda")
    causal = torch.ones(QUERIES, QUERIES, dtype=torch.bool, device="cuda").tril()
    mask = {"masked": some_mask(QUERIES, KEYS, "cuda"), "whole": None, "causal": causal}[shape]
    seen = Seen(causal=True) if shape == "causal" else Seen(mask)
    kernel = kernel_for(*given[:3], seen)
    half = FlashKernel if seen.mask is None else EfficientKernel
    assert isinstance(kernel, {torch.float64: PlainKernel, torch.float32: EfficientKernel}.get(dtype, half))
    expected = reference(*given, mask)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert worst(alone(kernel, *given, seen), expected) < limit
    if shape != "causal":
        parts = [slice(0, 601), slice(601, 1099), slice(1099, 1100)]
        assert worst(in_parts(*given, mask, parts), expected) < limit
