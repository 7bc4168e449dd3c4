"""Attention whose probabilities have dropout.

No mask is stored: the backward pass draws it again, and scores as well, from the output and a number for each query.
To the compiler and to selective recomputation attention is one operation, as torch's own is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptm_dist.kernels.attention_blocks import (
    attend_in_blocks,
    attend_in_blocks_backward,
    like_hidden_states,
)
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.seen import AttentionDrop, Seen
from ptm_dist.kernels.wide import wide_dtype

__all__ = ["AttentionDrop", "Seen", "attention"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    drop: AttentionDrop,
    choice: Choice,
) -> Tensor:
    """Scaled dot-product attention with dropout of its probabilities; 0 for a query that sees nothing.

    Args:
        query: ``[batch, heads, q, head_size]``.
        key: ``[batch, heads, k, head_size]``.
        value: see key.
        mask: which keys a query sees, bool, broadcast to ``[batch, heads, q, k]``; None: all, or as `is_causal` says.
        is_causal: query i sees keys 0 to i; there are as many keys as queries, and no mask.
        drop: dropout of the probabilities.
        choice: of the form.

    Returns: the shape and type of `query`.
    Raises: ValueError if a form is asked for that there is not.
    """
    form = choice.form(Operation.ATTENTION, query, drops=True)
    if form not in (Form.REFERENCE, Form.TRITON):
        raise ValueError(f"{Operation.ATTENTION} has no form {form}")
    places = (drop.key, drop.samples, drop.queries, drop.keys)
    numbers = (drop.probability, drop.first_head, drop.in_octets)
    asked = choice.asked.get(Operation.ATTENTION, "")
    output, _ = _forward(query, key, value, mask, is_causal, *places, *numbers, asked)
    return output


def _runs_kernel(asked: str, query: Tensor) -> bool:
    """Whether triton computes: seen to when attention runs, since the compiler around it leaves it as it is."""
    choice = Choice({Operation.ATTENTION: Form(asked)} if asked else {})
    return choice.form(Operation.ATTENTION, query, drops=True) is Form.TRITON


@torch.library.custom_op("ptm_dist::dropped_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    words: Tensor,
    samples: Tensor,
    queries: Tensor,
    keys: Tensor,
    probability: float,
    first_head: int,
    in_octets: bool,
    asked: str,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; the fields of :class:`AttentionDrop` one by one, since operations take no objects."""
    drop = AttentionDrop(probability, words, samples, first_head, queries, keys, in_octets)
    seen = Seen(mask, is_causal, drop)
    if _runs_kernel(asked, query):
        from ptm_dist.kernels.triton.attention import attend

        return attend(query, key, value, seen)
    return attend_in_blocks(query, key, value, seen)


@torch.library.custom_op("ptm_dist::dropped_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    words: Tensor,
    samples: Tensor,
    queries: Tensor,
    keys: Tensor,
    probability: float,
    first_head: int,
    in_octets: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    drop = AttentionDrop(probability, words, samples, first_head, queries, keys, in_octets)
    seen = Seen(mask, is_causal, drop)
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    if _runs_kernel(asked, query):
        from ptm_dist.kernels.triton.attention_backward import attend_backward

        return attend_backward(grad, query, key, value, output, lse, seen)
    return attend_in_blocks_backward(grad, query, key, value, output, lse, seen)


@_forward.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return like_hidden_states(query), query.new_empty(query.shape[:3], dtype=wide_dtype(query.dtype))


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return like_hidden_states(query), like_hidden_states(key), like_hidden_states(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, mask, ctx.is_causal, *places = inputs[:9]
    ctx.numbers = inputs[9:]
    ctx.save_for_backward(query, key, value, *output, mask, *places)
    ctx.set_materialize_grads(False)


def _turn(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * 10
    if grad is None:
        return None, None, None, *rest
    query, key, value, output, lse, mask, *places = ctx.saved_tensors
    return *_backward(grad, query, key, value, output, lse, mask, ctx.is_causal, *places, *ctx.numbers), *rest


_forward.register_autograd(_turn, setup_context=_keep)
