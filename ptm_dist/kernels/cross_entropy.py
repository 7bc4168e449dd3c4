"""Cross entropy of a block of logits, and its gradient in the place of the logits.

Two passes over a row: its statistics, then what they make of each of its logits. Where several processes have columns
of a row, they share their statistics in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.compiled import compiled
from ptm_dist.kernels.wide import wide_dtype

HIGHEST, TOTAL, TARGET, SUM, HIT = range(5)
"""Statistics of a row of logits x, as far as its columns are here: max(x), the sum of exp(x - max(x)), the target's x
(0 if it is not here), the sum of x (0 unless labels are smoothed), and whether the first highest one is the target (0
unless hits are counted)."""
NUM_STATISTICS = 5

_CPU_BLOCK, CUDA_BLOCK = 1 << 19, 1 << 24
"""Logits that the reference works on at a time: on a CPU they and two copies stay in its cache, on a GPU
an operation takes longer than its launch."""


@dataclass(frozen=True)
class CrossEntropy:
    """What the loss of a row is, and whether hits are counted.

    Attributes:
        smoothing: how much of the target is spread over the vocabulary (Szegedy et al. 2015, arXiv 1512.00567).
        z_loss: weight of the squared logarithm of the sum of exponentials (Chowdhery et al. 2022, arXiv 2204.02311).
        counts_hits: whether it is told that the likeliest token, the first of equals, is the target.
    """

    smoothing: float = 0.0
    z_loss: float = 0.0
    counts_hits: bool = False


@dataclass(frozen=True)
class Columns:
    """The columns of a vocabulary that are here.

    Attributes:
        begin: the first one.
        vocab_size: columns of the whole vocabulary.
    """

    begin: int
    vocab_size: int


class Rows(NamedTuple):
    """What rows are worth, each ``[rows]``.

    Attributes:
        losses: in nats; 0 where there is no target.
        hits: 1 or 0, in the format of the losses; 0 unless they are counted.
    """

    losses: Tensor
    hits: Tensor


def cross_entropy_(logits: Tensor, targets: Tensor, kind: CrossEntropy, choice: Choice, *, gradient: bool) -> Rows:
    """Losses of rows; if asked, their gradients take the place of the logits.

    Args:
        logits: ``[rows, vocab]``, any float dtype, rows side by side in memory; computed in float32, or in float64
            when they are float64.
        targets: ``[rows]``, int64; rows with ``IGNORE_INDEX`` have loss, hit and gradient 0.
        kind: of the loss.
        choice: of the form.
        gradient: replace each logit by the derivative of its row's loss.
    """
    columns = Columns(0, logits.shape[1])
    statistics = _compute(logits, targets, columns, kind, choice, None, gradient=gradient)
    return rows_of(statistics, targets, columns.vocab_size, kind)


def partial_statistics(logits: Tensor, targets: Tensor, columns: Columns, kind: CrossEntropy, choice: Choice) -> Tensor:
    """Statistics of rows, of the columns that are here.

    Args:
        logits: ``[rows, columns]``; there may be no columns.
        targets: over the whole vocabulary, ``[rows]``, int64.
        columns: that are here.
        kind: of the loss.
        choice: of the form.

    Returns: ``[5, rows]`` in the order of :data:`HIGHEST` and so on, float32, or float64 for float64.
    """
    return _compute(logits, targets, columns, kind, choice, None, gradient=False)


def joined(partial: Tensor) -> Tensor:
    """Statistics of the whole rows, ``[5, rows]``, from those of all processes in order, ``[processes, 5, rows]``."""
    highest, first = partial[:, HIGHEST].max(0)
    rest = partial[:, TOTAL] * (partial[:, HIGHEST] - highest).exp()
    hits = partial[:, HIT].gather(0, first[None])[0]
    return torch.stack([highest, rest.sum(0), partial[:, TARGET].sum(0), partial[:, SUM].sum(0), hits])


def gradient_(
    logits: Tensor, targets: Tensor, columns: Columns, statistics: Tensor, kind: CrossEntropy, choice: Choice
) -> None:
    """Replace logits by the derivatives of their rows' losses.

    Args:
        logits: ``[rows, columns]``.
        targets: over the whole vocabulary, ``[rows]``, int64.
        columns: that are here.
        statistics: of the whole rows, ``[5, rows]``.
        kind: of the loss.
        choice: of the form.
    """
    _compute(logits, targets, columns, kind, choice, statistics, gradient=True)


def rows_of(statistics: Tensor, targets: Tensor, vocab_size: int, kind: CrossEntropy) -> Rows:
    """Losses and hits from the statistics of whole rows, ``[5, rows]``."""
    # Differences to the highest logit first: small losses are no differences of large numbers.
    highest = statistics[HIGHEST]
    losses = statistics[TOTAL].log() - (1.0 - kind.smoothing) * (statistics[TARGET] - highest)
    if kind.smoothing:
        losses = losses - kind.smoothing * (statistics[SUM] / vocab_size - highest)
    if kind.z_loss:
        losses = losses + kind.z_loss * _log_sum_exp(statistics).square()
    ignored = targets == IGNORE_INDEX
    return Rows(losses.masked_fill(ignored, 0.0), statistics[HIT].masked_fill(ignored, 0.0))


def _log_sum_exp(statistics: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials of whole rows, ``[rows]``."""
    return statistics[TOTAL].log() + statistics[HIGHEST]


def _compute(
    logits: Tensor,
    targets: Tensor,
    columns: Columns,
    kind: CrossEntropy,
    choice: Choice,
    known: Tensor | None,
    *,
    gradient: bool,
) -> Tensor:
    """All three of them: statistics unless those of whole rows are `known`, then the gradient if asked."""
    if not logits.numel():
        return _without_columns(logits)
    match choice.form(Operation.CROSS_ENTROPY, logits):
        case Form.TRITON:
            from ptm_dist.kernels.triton.cross_entropy import launch

            return launch(logits, targets, columns, kind, known, gradient=gradient)
        case Form.COMPILE:
            return compiled(_reference)(logits, targets, columns, kind, known, gradient)
        case Form.REFERENCE:
            return _in_blocks(logits, targets, columns, kind, known, gradient=gradient)
        case form:
            raise ValueError(f"{Operation.CROSS_ENTROPY} has no form {form}")


def _without_columns(logits: Tensor) -> Tensor:
    statistics = logits.new_zeros(NUM_STATISTICS, len(logits), dtype=wide_dtype(logits.dtype))
    statistics[HIGHEST] = -torch.inf
    return statistics


def _in_blocks(
    logits: Tensor, targets: Tensor, columns: Columns, kind: CrossEntropy, known: Tensor | None, *, gradient: bool
) -> Tensor:
    """The reference on some rows after the other."""
    rows = max(1, (CUDA_BLOCK if logits.is_cuda else _CPU_BLOCK) // logits.shape[1])
    found = [
        _reference(
            logits[begin : begin + rows],
            targets[begin : begin + rows],
            columns,
            kind,
            None if known is None else known[:, begin : begin + rows],
            gradient,
        )
        for begin in range(0, len(logits), rows)
    ]
    return torch.cat(found, dim=1)


@torch.no_grad()
def _reference(
    logits: Tensor, targets: Tensor, columns: Columns, kind: CrossEntropy, known: Tensor | None, gradient: bool
) -> Tensor:
    wide = logits.to(wide_dtype(logits.dtype))
    local = targets - columns.begin
    is_here = (targets != IGNORE_INDEX) & (local >= 0) & (local < logits.shape[1])
    local = local.masked_fill(~is_here, 0)
    if known is None:
        statistics, exponentials = _statistics(wide, local, is_here, kind)
    else:
        statistics, exponentials = known, (wide - known[HIGHEST, :, None]).exp_()
    if gradient:
        counted, scale = (targets != IGNORE_INDEX).to(wide.dtype), statistics[TOTAL].reciprocal()
        if kind.z_loss:
            scale = scale * (1.0 + 2.0 * kind.z_loss * _log_sum_exp(statistics))
        exponentials *= (counted * scale)[:, None]
        if kind.smoothing:
            exponentials -= (counted * (kind.smoothing / columns.vocab_size))[:, None]
        hit = is_here.to(wide.dtype) * (1.0 - kind.smoothing)
        logits.copy_(exponentials.scatter_add_(1, local[:, None], -hit[:, None]))
    return statistics


def _statistics(wide: Tensor, local: Tensor, is_here: Tensor, kind: CrossEntropy) -> tuple[Tensor, Tensor]:
    """Statistics, ``[5, rows]``, and exponentials after subtraction of the highest, ``[rows, columns]``."""
    nothing = wide.new_zeros(len(wide))
    hits = nothing
    if kind.counts_hits:
        highest, likeliest = wide.max(1)
        hits = ((likeliest == local) & is_here).to(wide.dtype)
    else:
        highest = wide.amax(1)
    exponentials = (wide - highest[:, None]).exp_()
    target = wide.gather(1, local[:, None]).squeeze(1).masked_fill(~is_here, 0.0)
    everything = wide.sum(1) if kind.smoothing else nothing
    return torch.stack([highest, exponentials.sum(1), target, everything, hits]), exponentials
