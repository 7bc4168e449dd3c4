"""Cross entropy behind a matrix against torch's linear and cross_entropy in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.cross_entropy import CrossEntropy
from ptm_dist.kernels.linear_cross_entropy import Portion, Score, score_hidden

WEIGHT = 0.37
"""By which the loss counts: not 1, so that gradients made for 1 are seen."""
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Rounding of sums over a thousand terms, relative to the largest element; a chunk left out shows at 1e-1."""


@dataclass(frozen=True)
class Decoded:
    """Hidden states, a matrix and targets, every fifth one ignored.

    Attributes:
        tokens: in two samples, if even.
        width: of hidden states.
        vocab_size: rows of the matrix.
        bias: whether there is one.
        device: of the tensors.
    """

    tokens: int
    width: int
    vocab_size: int
    bias: bool = True
    device: str = "cpu"

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        generator = torch.Generator().manual_seed(self.tokens)
        samples = 2 if self.tokens % 2 == 0 else 1
        hidden = torch.randn(samples, self.tokens // samples, self.width, generator=generator)
        weight = torch.randn(self.vocab_size, self.width, generator=generator) / self.width**0.5
        bias = torch.randn(self.vocab_size, generator=generator) if self.bias else None
        targets = torch.randint(0, self.vocab_size, (self.tokens,), generator=generator)
        targets[::5] = IGNORE_INDEX
        leaves = [None if x is None else x.to(self.device, dtype).requires_grad_() for x in (hidden, weight, bias)]
        return leaves[0], leaves[1], leaves[2], targets.to(self.device)


def _gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> list[Tensor]:
    """Loss and gradients of torch's operations."""
    logits = F.linear(hidden, weight, bias).flatten(0, -2)
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none").sum()
    (loss * WEIGHT).backward()
    return [loss.detach(), *(leaf.grad for leaf in (hidden, weight, bias) if leaf is not None)]


def scored(
    given: Decoded, dtype: torch.dtype, asked: Form, portion: Portion | None, rows: Form = Form.REFERENCE
) -> list[Tensor]:
    """The same of ours."""
    hidden, weight, bias, targets = given.tensors(dtype)
    score = score_of(hidden, weight, bias, targets, asked, portion, rows)
    (score.loss * WEIGHT).backward()
    return [score.loss.detach(), *(leaf.grad for leaf in (hidden, weight, bias) if leaf is not None)]


def score_of(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    asked: Form,
    portion: Portion | None,
    rows: Form = Form.REFERENCE,
    *,
    counts_hits: bool = False,
) -> Score:
    choice = Choice({Operation.LINEAR_CROSS_ENTROPY: asked, Operation.CROSS_ENTROPY: rows})
    kind = CrossEntropy(counts_hits=counts_hits)
    return score_hidden(
        lambda states: F.linear(states, weight, bias), hidden, weight, bias, targets, kind, choice, None, portion
    )


def check_decoder(given: Decoded, asked: Form, portion: Portion | None, rows: Form = Form.REFERENCE) -> None:
    """Loss and all gradients, in float64 and in float32."""
    expected = _gradients(*given.tensors(torch.float64))
    for dtype, tolerance in TOLERANCES.items():
        for own, other in zip(scored(given, dtype, asked, portion, rows), expected, strict=True):
            assert own.dtype == dtype
            assert (own - other).abs().max() <= tolerance * other.abs().max()


def check_bfloat16_decoder(given: Decoded, asked: Form, portion: Portion | None) -> None:
    """Loss and gradients have twice the error of torch's own operations in bfloat16 at most."""
    expected, unfused = _exact(given), _gradients(*given.tensors(torch.bfloat16))
    for own, other, exact in zip(scored(given, torch.bfloat16, asked, portion), unfused, expected, strict=True):
        assert (own - exact).abs().max() <= 2 * (other - exact).abs().max()


def _exact(given: Decoded) -> list[Tensor]:
    """Loss and gradients in float64 of the numbers that bfloat16 has of hidden states, matrix and bias."""
    *leaves, targets = given.tensors(torch.bfloat16)
    hidden, weight, bias = (None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves)
    return _gradients(hidden, weight, bias, targets)
