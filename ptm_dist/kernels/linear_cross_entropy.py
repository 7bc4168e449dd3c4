"""Cross entropy of what a matrix makes of hidden states, without all of the logits in memory.

The loss of a row depends on its own logits alone, and its gradient is known once the loss is: a chunk of tokens goes
forward and backward at once, and its logits make room for those of the next one. What is kept for the backward pass
are the gradients of the hidden states and of the matrix, which are as large as these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.backward import is_wanted, scaled
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.cross_entropy import (
    Columns,
    CrossEntropy,
    Rows,
    cross_entropy_,
    gradient_,
    partial_statistics,
    rows_of,
)
from ptm_dist.kernels.wide import wide_dtype

_ALIGNED = 16
"""Rows of a chunk's logits start at multiples of so many elements: kernels then read several at a time."""


class Score(NamedTuple):
    """What predictions are worth, numbers in float32, or in float64 for float64.

    Attributes:
        loss: sum over targets, in nats.
        hits: how many targets were the likeliest token; 0 unless they are counted. Has no gradient.
    """

    loss: Tensor
    hits: Tensor


class SharedVocabulary(Protocol):
    """A matrix whose rows several processes share, each the logits of its own tokens of the vocabulary."""

    @property
    def columns(self) -> Columns:
        """The columns of the logits that are here."""

    @property
    def most(self) -> int:
        """Columns of the process that has most."""

    def join(self, partial: Tensor) -> Tensor:
        """Statistics of whole rows, ``[5, rows]``, from those of each process."""

    def gather(self, hidden: Tensor) -> Tensor:
        """All positions of hidden states of which each process may have some."""

    def start_sum(self, partial: Tensor) -> Callable[[], Tensor]:
        """Begin to sum gradients over processes; gives what waits for those of the positions that are here."""


@dataclass(frozen=True)
class Portion:
    """How many tokens are worked on at a time.

    Attributes:
        tokens: at least. Each chunk reads the matrix twice and adds to its gradient once: with fewer tokens that takes
            longer than the products.
        logits: as many tokens as give so many logits, if they are more.
    """

    tokens: int
    logits: int

    @classmethod
    def of(cls, device: torch.device) -> Portion:
        """What is fast on a device.

        On a CPU 2^22 logits stay in its cache, which pays where the matrix is narrow. On a GPU 2^27 are 256 MiB of
        bfloat16; the addition to a gradient in float32 costs 8% of the products with 2,700 tokens at a time (by
        formula, H200).
        """
        return _ON_CUDA if device.type == "cuda" else _ON_CPU

    def at_a_time(self, tokens: int, columns: int) -> int:
        """Tokens of a chunk, where chunks are as few and as even as can be.

        Args:
            tokens: of all chunks.
            columns: of the logits, of the process that has most.
        """
        chunks = -(-tokens // max(self.tokens, self.logits // max(columns, 1)))
        return max(1, -(-tokens // max(1, chunks)))


_ON_CPU = Portion(1024, 1 << 22)
_ON_CUDA = Portion(2048, 1 << 27)


def score_hidden(
    linear: Callable[[Tensor], Tensor],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    kind: CrossEntropy,
    choice: Choice,
    shared: SharedVocabulary | None = None,
    portion: Portion | None = None,
) -> Score:
    """Cross entropy of the logits that a matrix makes.

    Args:
        linear: from hidden states to logits with `weight` and `bias`, differentiable; computes where all are stored.
        hidden: ``[..., in]``, any float dtype.
        weight: ``[vocab, in]``, the rows that are here.
        bias: ``[vocab]``, if there is one.
        targets: one for each position of all processes, ``[tokens]``, int64; ``IGNORE_INDEX`` where there is none.
        kind: of the loss.
        choice: of the forms.
        shared: who has the other rows; None: all are here.
        portion: tokens at a time; None: what suits the device.
    """
    form = form_of(choice.asked.get(Operation.LINEAR_CROSS_ENTROPY), len(targets), weight.shape[1])
    differentiates = torch.is_grad_enabled()
    if form is Form.WHOLE:
        logits = linear(hidden).flatten(0, -2)
        return Score(*_ScoreLogits.apply(logits, targets, kind, choice, shared, differentiates))
    if form is Form.LIGER:
        from ptm_dist.kernels.liger import score_with_liger

        return score_with_liger(hidden, weight, bias, targets, kind, shared is not None)
    columns = weight.shape[0] if shared is None else shared.most
    tokens = (portion or Portion.of(hidden.device)).at_a_time(len(targets), columns)
    work = _Work(kind, choice, shared, tokens, differentiates)
    return Score(*_ScoreChunks.apply(hidden, weight, bias, targets, work))


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` for a matrix that may have another use: what that one adds to its gradient is added in place.

    Autograd makes a third tensor of two gradients of which the first is a view, as ``F.linear``'s is: for embeddings
    that are the head's matrix too, a step's peak of memory.

    Args:
        hidden: ``[..., in]``.
        weight: ``[vocab, in]``.
        bias: ``[vocab]``, if there is one.
    """
    logits: Tensor = _Logits.apply(hidden, weight, bias)
    return logits


def form_of(asked: Form | None, tokens: int, width: int) -> Form:
    """WHOLE, CHUNKED or LIGER: what was asked for, else chunks of many tokens.

    With fewer tokens than the hidden states are wide, logits are fewer than the elements of the matrix, whose gradient
    chunks would store: they are stored instead.
    """
    return asked or (Form.CHUNKED if tokens > width else Form.WHOLE)


def _score_rows(
    logits: Tensor,
    targets: Tensor,
    kind: CrossEntropy,
    choice: Choice,
    shared: SharedVocabulary | None,
    *,
    gradient: bool,
) -> Rows:
    """Losses and hits, and the gradient in place of the logits if asked, whoever has the columns."""
    if shared is None:
        return cross_entropy_(logits, targets, kind, choice, gradient=gradient)
    statistics = shared.join(partial_statistics(logits, targets, shared.columns, kind, choice))
    if gradient:
        gradient_(logits, targets, shared.columns, statistics, kind, choice)
    return rows_of(statistics, targets, shared.columns.vocab_size, kind)


class _Logits(torch.autograd.Function):
    """A linear layer."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.linear(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            gradient @ weight if is_wanted(ctx, 0) else None,
            rows.T @ hidden.flatten(0, -2) if is_wanted(ctx, 1) else None,
            rows.sum(0) if is_wanted(ctx, 2) else None,
        )


class _ScoreLogits(torch.autograd.Function):
    """Takes the place of logits that nobody else reads."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        kind: CrossEntropy,
        choice: Choice,
        shared: SharedVocabulary | None,
        differentiates: bool,
    ) -> tuple[Tensor, Tensor]:
        own, differentiates = logits.detach(), differentiates and ctx.needs_input_grad[0]
        rows = _score_rows(own, targets, kind, choice, shared, gradient=differentiates)
        if differentiates:
            ctx.save_for_backward(own)
        loss, hits = rows.losses.sum(), rows.hits.sum()
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return scaled(gradient, scale, gradient.dtype), None, None, None, None, None


@dataclass(frozen=True)
class _Work:
    """Arguments of :func:`score_hidden`, and the tokens of a chunk."""

    kind: CrossEntropy
    choice: Choice
    shared: SharedVocabulary | None
    tokens: int
    differentiates: bool


class _ScoreChunks(torch.autograd.Function):
    """Gradients are made in the forward pass, for a loss that counts once, and multiplied in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, work: _Work
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[:3] if work.differentiates else (False, False, False)
        score, gradients = _pass_over_chunks(hidden, weight, bias, targets, work, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(score.hits)
        return score.loss, score.hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            scaled(gradient, scale, dtype) if gradient is not None and is_wanted(ctx, place) else None
            for place, (gradient, dtype) in enumerate(zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        ]
        return *found, None, None


def _pass_over_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    work: _Work,
    wanted: tuple[bool, bool, bool],
) -> tuple[Score, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """The score, and gradients of hidden states, matrix and bias as far as they are wanted.

    While those of the hidden states are summed over processes the last chunk's addition to the matrix's is made.
    """
    wide = wide_dtype(hidden.dtype)
    whole = hidden if work.shared is None else work.shared.gather(hidden)
    rows = whole.flatten(0, -2)
    loss, hits = rows.new_zeros((), dtype=wide), rows.new_zeros((), dtype=wide)
    into_hidden = torch.empty_like(whole, memory_format=torch.contiguous_format) if wanted[0] else None
    into_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
    into_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
    leaving = None
    buffer = _empty_logits(min(work.tokens, len(rows)), len(weight), rows)
    for begin in range(0, max(len(rows), 1), work.tokens):
        end = min(begin + work.tokens, len(rows))
        chunk, logits = rows[begin:end], buffer[: end - begin]
        torch.mm(chunk, weight.T, out=logits)
        if bias is not None:
            logits += bias
        found = _score_rows(logits, targets[begin:end], work.kind, work.choice, work.shared, gradient=any(wanted))
        loss += found.losses.sum()
        hits += found.hits.sum()
        if into_hidden is not None:
            torch.mm(logits, weight, out=into_hidden.flatten(0, -2)[begin:end])
            if work.shared is not None and end == len(rows):
                leaving = work.shared.start_sum(into_hidden)
        if into_weight is not None:
            _add_product(into_weight, logits.T, chunk)
        if into_bias is not None:
            into_bias += logits.sum(0, dtype=wide)
    return Score(loss, hits), (into_hidden if leaving is None else leaving(), into_weight, into_bias)


def _empty_logits(tokens: int, columns: int, like: Tensor) -> Tensor:
    return like.new_empty(tokens, -(-columns // _ALIGNED) * _ALIGNED)[:, :columns]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, where `total` may be wider than the others."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
