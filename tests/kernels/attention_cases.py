"""Cases of attention with dropout, beside torch's operations with an explicit mask."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ptm_dist.kernels.attention import AttentionDrop, attention
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.philox import philox, threshold

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
KINDS = ("causal", "full", "padding", "documents")


def a_drop(batch: int, queries: int, keys: int, *, in_octets: bool = True, probability: float = 0.3, device="cpu"):
    """Words of all sizes, heads from the fifth on."""
    samples = (torch.arange(batch) * 1_400_000_001 + 5) % 2**32
    words = (torch.tensor([0xFEDCBA98, 0x12345678]), samples)
    key, samples = (word.to(device) for word in words)
    places = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return AttentionDrop(probability, key, samples, 5, *places, in_octets)


def plain_kept(drop: AttentionDrop, heads: int) -> Tensor:
    """Which probabilities stay, one number after the other from the words of Philox."""
    head = torch.arange(drop.first_head, drop.first_head + heads, device=drop.key.device)[None, :, None, None]
    counter = (drop.keys // 8, drop.queries[:, None], drop.samples[:, None, None, None], head)
    words = torch.stack(torch.broadcast_tensors(*philox(counter, (drop.key[0], drop.key[1]))))
    chosen = (drop.keys % 8 // 2).expand(words.shape[1:])[None]
    return (words.gather(0, chosen)[0] >> drop.keys % 2 * 16) % 65536 >= threshold(drop.probability)


def mask_of(kind: str, batch: int, queries: int, keys: int, device="cpu") -> Tensor | None:
    """What :func:`attention` takes as a mask; one sample of "documents" has a query that sees nothing."""
    if kind == "padding":
        lengths = keys - torch.arange(batch) * (keys // 3)
        return (torch.arange(keys) < lengths[:, None])[:, None, None].to(device)
    if kind == "documents":
        rows, columns = torch.arange(queries)[:, None], torch.arange(keys)
        mask = (rows // 7 == columns // 7).expand(batch, 1, queries, keys).clone()
        mask[:, :, :, ::5] &= rows % 2 == 0
        mask[0, :, 3] = False
        return mask.to(device)
    return None


def plain(kind: str, drop: AttentionDrop) -> Function:
    """Softmax, times the mask, times values; 0 where nothing is seen."""

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        mask = mask_of(kind, query.shape[0], query.shape[2], key.shape[2], query.device)
        if kind == "causal":
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1).nan_to_num(0.0)
        factors = plain_kept(drop, query.shape[1]).to(weights.dtype) * (65536 / (65536 - threshold(drop.probability)))
        return (weights * factors) @ value

    return function


def ours(kind: str, drop: AttentionDrop, form: Form) -> Function:
    """In one of our forms."""

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = mask_of(kind, query.shape[0], query.shape[2], key.shape[2], query.device)
        return attention(query, key, value, mask, kind == "causal", drop, Choice({Operation.ATTENTION: form}))

    return function


def numbers(batch: int, heads: int, queries: int, keys: int, head_size: int, device="cpu") -> list[Tensor]:
    """Queries, keys, values and the gradient of the output, as a model has them in memory, in float64.

    Their values are the same in float16, bfloat16 and wider types.
    """
    draw = torch.Generator().manual_seed(queries)
    shapes = [(batch, count, heads, head_size) for count in (queries, keys, keys, queries)]
    drawn = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return [((one * 32).round() / 32).clamp(-3.9, 3.9).to(device).transpose(1, 2) for one in drawn]


def results(function: Function, given: list[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Output and the gradients of queries, keys and values."""
    *leaves, grad = (tensor.detach().to(dtype) for tensor in given)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, beside the largest value of its tensor."""
    pairs = zip(found, expected, strict=True)
    return max(float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs)


def assert_as_accurate(fused: Function, unfused: Function, given: list[Tensor], dtype: torch.dtype) -> None:
    """The error to float64 is at most twice that of torch's operations in the same type.

    One rounding of the largest value is allowed on top, since torch may happen to be exact where there are few values.
    """
    exact = results(unfused, given)
    for mine, usual, true in zip(results(fused, given, dtype), results(unfused, given, dtype), exact, strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        budget = 2 * float((usual.double() - true).abs().max()) + torch.finfo(dtype).eps * float(true.abs().max())
        assert float((mine.double() - true).abs().max()) <= budget
