"""What an operation with a backward pass of its own asks about that pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 18
"""Elements that are multiplied at a time on a CPU, which first writes those of several types in the widest one."""


def is_wanted(ctx: Any, place: int) -> bool:
    """Whether the backward pass at work needs the gradient of an argument.

    A pipeline may ask for those of inputs first and for those of weights later, which `needs_input_grad` does not
    tell: it speaks of the graph, not of the pass.
    """
    if not ctx.needs_input_grad[place]:
        return False
    if torch.compiler.is_compiling():
        return True
    node = ctx.next_functions[place][0]
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # It does not answer for leaves whose gradient is returned and not accumulated; those are asked for.
        return True


def scaled(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor, `scale` times the given one.

    Args:
        tensor: of at least one dimension.
        scale: a number in float32 or wider, ``[]``; it is not rounded to the format of `tensor` first.
        dtype: of the result.
    """
    out = torch.empty_like(tensor, dtype=dtype)
    rows = max(1, len(tensor))
    if tensor.device.type == "cpu" and not tensor.dtype == dtype == scale.dtype and not torch.compiler.is_compiling():
        rows = max(1, _PIECE * rows // max(1, tensor.numel()))
    for part, place in zip(tensor.split(rows), out.split(rows), strict=True):
        torch.mul(part, scale[None], out=place)
    return out
