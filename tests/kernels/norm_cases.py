"""Cases of fused dropout, addition and LayerNorm, beside torch's operations with an explicit mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.add_norm import add, add_norm
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.embedding import embed
from ptm_dist.kernels.philox import threshold, uniform16

EPS = 1e-5
Function = Callable[..., tuple[Tensor, ...]]


def choice_of(form: Form) -> Choice:
    return Choice({Operation.ADD_NORM: form, Operation.EMBEDDING: form})


def a_drop(batch: int, seq: int, *, probability: float = 0.3, own_positions: bool = False, device="cpu") -> Drop:
    """Words of all sizes; `own_positions`: of each sample."""
    positions = torch.arange(seq) + 7
    if own_positions:
        positions = positions + 100 * torch.arange(batch)[:, None]
    samples = (torch.arange(batch) * 1_400_000_001 + 5) % 2**32
    words = (torch.tensor([0xFEDCBA98, 0x12345678]), samples, positions)
    return Drop(probability, *(word.to(device) for word in words))


def plain_factors(drop: Drop | None, like: Tensor) -> Tensor:
    """What dropout multiplies by, from the plain form of Philox."""
    if drop is None:
        return torch.ones_like(like)
    positions = drop.positions if drop.positions.dim() == 2 else drop.positions[None]
    samples = drop.samples[:, None]
    counter = (positions, samples, torch.zeros_like(samples))
    numbers = uniform16(counter, like.shape[-1], (drop.key[0], drop.key[1]))
    least = threshold(drop.probability)
    return (numbers >= least).to(like.dtype) * (65536 / (65536 - least))


def plain_add_norm(drop: Drop | None) -> Function:
    def function(branch, residual, weight, bias):
        total = residual + branch * plain_factors(drop, branch)
        return F.layer_norm(total, total.shape[-1:], weight, bias, EPS), total

    return function


def fused_add_norm(drop: Drop | None, form: Form) -> Function:
    def function(branch, residual, weight, bias):
        return add_norm(branch, residual, weight, bias, EPS, drop, choice_of(form))

    return function


def plain_add(drop: Drop | None) -> Function:
    return lambda branch, residual: (residual + branch * plain_factors(drop, branch),)


def fused_add(drop: Drop | None, form: Form) -> Function:
    return lambda branch, residual: (add(branch, residual, drop, choice_of(form)),)


def _parts(token, position, *others, segments: bool):
    """Token, position, segment, norm."""
    segment = others[0] if segments else None
    affine = others[segments:]
    return token, position, segment, (*affine, EPS) if affine else None


def plain_embed(drop: Drop | None, *, segments: bool) -> Function:
    def function(*inputs):
        token, position, segment, norm = _parts(*inputs, segments=segments)
        total = token + position if segment is None else token + position + segment
        if norm is not None:
            total = F.layer_norm(total, total.shape[-1:], *norm)
        return (total * plain_factors(drop, total),)

    return function


def fused_embed(drop: Drop | None, form: Form, *, segments: bool) -> Function:
    return lambda *inputs: (embed(*_parts(*inputs, segments=segments), drop, choice_of(form)),)


def numbers(*shape: int, seed: int, device="cpu") -> Tensor:
    """float64 values that float16, bfloat16 and wider types hold alike, so that all of them get the same."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values * 32).round() / 32).clamp(-3.9, 3.9).to(device)


@dataclass(frozen=True)
class Run:
    """Outputs and the gradients of inputs, in the order of both."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]

    def all(self) -> list[Tensor]:
        """All that there is."""
        return [*self.outputs, *(gradient for gradient in self.gradients if gradient is not None)]


def run(function: Function, inputs: list[Tensor], dtype: torch.dtype, *, used: tuple[int, ...] = (0, 1)) -> Run:
    """Forwards and backwards; only the outputs `used` have a gradient."""
    leaves = [value.detach().to(dtype, copy=True).requires_grad_() for value in inputs]
    outputs = function(*leaves)
    of_outputs = [
        numbers(*out.shape, seed=90 + index, device=out.device).to(dtype) for index, out in enumerate(outputs)
    ]
    chosen = [index for index in used if index < len(outputs)]
    torch.autograd.backward([outputs[index] for index in chosen], [of_outputs[index] for index in chosen])
    return Run([out.detach() for out in outputs], [leaf.grad for leaf in leaves])


def assert_as_accurate(
    fused: Function, plain: Function, inputs: list[Tensor], dtype: torch.dtype, *, used: tuple[int, ...] = (0, 1)
) -> None:
    """The error to float64 is at most twice that of torch's operations in the same type.

    One rounding of the largest value is allowed on top, since torch may happen to be exact where there are few values.
    """
    exact = run(plain, inputs, torch.float64, used=used).all()
    found = run(fused, inputs, dtype, used=used).all()
    usual = run(plain, inputs, dtype, used=used).all()
    assert len(found) == len(usual) == len(exact)
    for ours, theirs, true in zip(found, usual, exact, strict=True):
        assert ours.dtype == dtype and ours.shape == true.shape
        floor = torch.finfo(dtype).eps * float(true.abs().max())
        budget = 2 * float((theirs.double() - true).abs().max()) + floor
        assert float((ours.double() - true).abs().max()) <= budget


def add_norm_inputs(batch: int, seq: int, width: int, device="cpu") -> list[Tensor]:
    shapes = [(batch, seq, width), (batch, seq, width), (width,), (width,)]
    return [numbers(*shape, seed=index, device=device) for index, shape in enumerate(shapes)]


def embed_inputs(
    batch: int, seq: int, width: int, *, normed: bool, segments: bool, own_positions: bool = False, device="cpu"
) -> list[Tensor]:
    """Token, position, segment if there are segments, weight and bias if there is a norm."""
    whole, one = (batch, seq, width), (width,)
    shapes = [whole, whole if own_positions else whole[1:], *[whole] * segments, *[one, one] * normed]
    return [numbers(*shape, seed=index, device=device) for index, shape in enumerate(shapes)]
