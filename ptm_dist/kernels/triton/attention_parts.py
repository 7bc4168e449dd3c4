"""What the kernels of attention share: how they read and write vectors, multiply matrices and are launched.

Arguments of all kernels:

    query, key, value, mask       and strides: of sample, head and position; the mask's of sample, head, query and key
    words, samples,
    query_places, key_places      of :class:`ptm_dist.kernels.seen.AttentionDrop`
    heads, rows, columns          how many heads, queries and keys there are
    HEAD, WIDTH                   size of a head, and the next power of 2
    SCORE_SCALE                   what scores are multiplied by
    ROWS, COLUMNS                 queries and keys of a block
    DOT, REAL                     types of factors of matrix products, and of everything else

Queries, keys and values may lie anywhere, if the features of a vector lie side by side; all other vectors lie as hidden
states do, ``[batch, positions, heads, head_size]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.philox import threshold
from ptm_dist.kernels.seen import Seen
from ptm_dist.kernels.triton.wide import wide_type

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def load_rows(
    start: tl.tensor,
    stride: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    DOT: tl.constexpr,
) -> tl.tensor:
    """Vectors of some positions, ``[positions, WIDTH]``; 0 behind the last one, and behind the head's size."""
    feature = tl.arange(0, WIDTH)[None, :]
    inside = row[:, None] < rows
    if HEAD != WIDTH:
        inside = inside & (feature < HEAD)
    return tl.load(start + row[:, None] * stride + feature, mask=inside, other=0.0).to(DOT)


@triton.jit
def store_rows(
    start: tl.tensor,
    stride: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    vectors: tl.tensor,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """The inverse of :func:`load_rows`."""
    feature = tl.arange(0, WIDTH)[None, :]
    inside = row[:, None] < rows
    if HEAD != WIDTH:
        inside = inside & (feature < HEAD)
    tl.store(start + row[:, None] * stride + feature, vectors.to(start.dtype.element_ty), mask=inside)


@triton.jit
def product(left: tl.tensor, right: tl.tensor, DOT: tl.constexpr, REAL: tl.constexpr) -> tl.tensor:
    """Of matrices; float32 factors are not rounded to fewer digits."""
    return tl.dot(left.to(DOT), right.to(DOT), input_precision="ieee", out_dtype=REAL)


@dataclass(frozen=True)
class Tile:
    """How a kernel is launched.

    Attributes:
        rows: queries of a block.
        columns: keys of a block, a multiple of 32.
        warps: of 32 threads in a program.
        stages: of loops that load ahead.
    """

    rows: int
    columns: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """As arguments of a launch."""
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": self.warps, "num_stages": self.stages}


SMALL = Tile(16, 32, 4, 1)
"""For the interpreter, in which a test has blocks of all kinds in few positions."""


def arguments(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> dict[str, Any]:
    """The arguments that the module names, but for ROWS and COLUMNS."""
    assert seen.drop is not None
    drop = seen.drop
    batch, heads, rows, head = query.shape
    vectors = {"query": query, "key": key, "value": value}
    vectors = {name: tensor if tensor.stride(-1) == 1 else tensor.contiguous() for name, tensor in vectors.items()}
    strides = {
        f"{name}_{axis}": step
        for name, tensor in vectors.items()
        for axis, step in zip(("sample", "head", "row"), tensor.stride(), strict=False)
    }
    mask = None if seen.mask is None else seen.mask.expand(batch, heads, rows, key.shape[2])
    of_mask = (0, 0, 0, 0) if mask is None else mask.stride()
    return {
        **vectors,
        **strides,
        "mask": mask,
        **dict(zip(("mask_sample", "mask_head", "mask_row", "mask_column"), of_mask, strict=True)),
        "BY_KEY": of_mask[2] == 0,
        "CAUSAL": seen.causal,
        "words": drop.key.contiguous(),
        "samples": drop.samples.contiguous(),
        "query_places": drop.queries.contiguous(),
        "key_places": drop.keys.contiguous(),
        "first_head": drop.first_head,
        "THRESHOLD": threshold(drop.probability),
        "IN_OCTETS": drop.in_octets,
        "heads": heads,
        "rows": rows,
        "columns": key.shape[2],
        "HEAD": head,
        "WIDTH": triton.next_power_of_2(head),
        "SCORE_SCALE": 1 / math.sqrt(head),
        "DOT": _factor_type(query),
        "REAL": wide_type(query.dtype),
    }


def as_hidden_states(tensor: Tensor) -> Tensor:
    """The same ``[batch, heads, positions, head_size]``, in memory as hidden states are."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _factor_type(tensor: Tensor) -> tl.dtype:
    """Of factors of matrix products: the tensor's own; the interpreter has no products of bfloat16."""
    if tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu":
        return tl.float32
    return getattr(tl, str(tensor.dtype).removeprefix("torch."))
