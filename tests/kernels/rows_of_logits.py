"""Cross entropy of rows against torch's in float64, for any form and device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.cross_entropy import Columns, CrossEntropy, cross_entropy_, gradient_, joined, partial_statistics
from ptm_dist.kernels.cross_entropy import rows_of as rows_of_statistics

KINDS = {
    "plain": CrossEntropy(),
    "hits": CrossEntropy(counts_hits=True),
    "smoothed": CrossEntropy(smoothing=0.1),
    "z-loss": CrossEntropy(z_loss=0.01),
    "all": CrossEntropy(smoothing=0.2, z_loss=0.001, counts_hits=True),
}
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6}
"""Rounding of sums over some hundred columns, of numbers up to about 10; a wrong term shows at 1e-3."""


def choice_of(form: Form) -> Choice:
    return Choice({Operation.CROSS_ENTROPY: form})


def case(rows: int, columns: int, dtype: torch.dtype, device: str = "cpu", scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits, with equal highest ones in some rows, and targets, every third one ignored."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    logits = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(0, columns, (rows,), generator=generator)
    logits[::2, -1] = logits[::2].amax(1) if rows else 0.0
    targets[1::4] = columns - 1
    targets[2::3] = IGNORE_INDEX
    return logits.to(device, dtype), targets.to(device)


def expected(logits: Tensor, targets: Tensor, kind: CrossEntropy) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradients and hits in float64."""
    wide = logits.double().requires_grad_()
    losses = F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=kind.smoothing)
    losses = losses + kind.z_loss * torch.logsumexp(wide, 1).square() * (targets != IGNORE_INDEX)
    losses.sum().backward()
    assert wide.grad is not None
    hits = (logits.argmax(1) == targets).double() * kind.counts_hits
    return losses.detach(), wide.grad, hits


def check_rows(form: Form, logits: Tensor, targets: Tensor, kind: CrossEntropy) -> None:
    """Losses, hits and gradients of a form; without a gradient the logits stay as they are."""
    losses, gradients, hits = expected(logits, targets, kind)
    tolerance = TOLERANCES[logits.dtype]
    own = logits.clone()
    for gradient in (False, True):
        found = cross_entropy_(own, targets, kind, choice_of(form), gradient=gradient)
        torch.testing.assert_close(found.losses.double(), losses, rtol=tolerance, atol=tolerance)
        assert torch.equal(found.hits.double(), hits)
        if not gradient:
            assert torch.equal(own, logits)
    torch.testing.assert_close(own.double(), gradients, rtol=tolerance, atol=tolerance)
    assert not own[targets == IGNORE_INDEX].any()


def check_columns_apart(form: Form, logits: Tensor, targets: Tensor, kind: CrossEntropy, cuts: list[int]) -> None:
    """Statistics of ranges of columns, some of them empty, make the same losses and gradients as all columns."""
    losses, gradients, hits = expected(logits, targets, kind)
    tolerance, choice, vocab_size = TOLERANCES[logits.dtype], choice_of(form), logits.shape[1]
    parts = [part.contiguous() for part in logits.tensor_split(cuts, dim=1)]
    shares = [Columns(begin, vocab_size) for begin in (0, *cuts)]
    partial = [
        partial_statistics(part, targets, share, kind, choice) for part, share in zip(parts, shares, strict=True)
    ]
    statistics = joined(torch.stack(partial))
    found = rows_of_statistics(statistics, targets, vocab_size, kind)
    for part, share in zip(parts, shares, strict=True):
        gradient_(part, targets, share, statistics, kind, choice)
    torch.testing.assert_close(found.losses.double(), losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.cat(parts, dim=1).double(), gradients, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.hits.double(), hits)


def check_bfloat16(form: Form, logits: Tensor, targets: Tensor) -> None:
    """Twice the error of torch's own operations in bfloat16 at most."""
    kind = CrossEntropy()
    losses, gradients, _ = expected(logits, targets, kind)
    plain = logits.clone().requires_grad_()
    plain_losses = F.cross_entropy(plain, targets, ignore_index=IGNORE_INDEX, reduction="none")
    plain_losses.sum().backward()
    own = logits.clone()
    found = cross_entropy_(own, targets, kind, choice_of(form), gradient=True)
    assert plain.grad is not None
    assert (found.losses - losses).abs().max() <= 2 * (plain_losses - losses).abs().max()
    assert (own - gradients).abs().max() <= 2 * (plain.grad - gradients).abs().max()


def check_large_and_absent_logits(form: Form, device: str = "cpu") -> None:
    """Exponentials do not overflow, and columns of minus infinity, as fill up a vocabulary, have no gradient."""
    logits, targets = case(6, 300, torch.float32, device, scale=300.0)
    check_rows(form, logits, targets, KINDS["hits"])
    # The blocks of the kernel at the start of a row hold no number at all.
    logits, targets = case(6, 9000, torch.float32, device)
    logits[:, :8500] = -torch.inf
    targets = targets.clamp(max=8999).where(targets == IGNORE_INDEX, 8999 - targets.clamp(min=0) % 400)
    check_rows(form, logits, targets, CrossEntropy(z_loss=0.01))


def check_nothing_is_left_of_old_memory(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are written in full: memory that they are made of may hold anything."""
    empty = Tensor.new_empty

    def poisoned(like: Tensor, *sizes: int, **options: torch.dtype) -> Tensor:
        made = empty(like, *sizes, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    for rows, columns in ((4, 47), (7, 130)):
        logits, targets = case(rows, columns, torch.float32)
        check_rows(form, logits, targets, KINDS["all"])
        check_columns_apart(form, logits, targets, KINDS["all"], [30, 30])
