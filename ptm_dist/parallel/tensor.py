"""Tensor parallelism: each matrix is cut along one dimension (Megatron-LM, arXiv 1909.08053, section 3).

A module's parameters become this rank's rows or columns as plain tensors under the same names; which
dimension is cut is declared here by name. Shards may be uneven (a vocabulary or feed-forward width that the
ranks do not divide); only attention heads stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptm_dist.models.gpt import GPT
from ptm_dist.parallel.collectives import enter, leave
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.shards import chunk_range

_SPLIT_DIMENSION = {
    "embeddings.token.weight": 0,
    "attention.qkv.weight": 0,
    "attention.qkv.bias": 0,
    "attention.output.weight": 1,
    "ffn.up.weight": 0,
    "ffn.up.bias": 0,
    "ffn.down.weight": 1,
    "head.weight": 0,
}


def split_dimension(name: str) -> int | None:
    """Dimension along which tensor parallelism cuts the parameter `name`; None: every rank holds it whole."""
    suffixes = (dimension for suffix, dimension in _SPLIT_DIMENSION.items() if name.endswith(suffix))
    return next(suffixes, None)


@dataclass(frozen=True)
class TensorSplit:
    """How the matrices of a model are shared.

    Attributes:
        ranks: the tensor-parallel ranks.
        sequence_parallel: between the matrices, each rank keeps a range of positions (arXiv 2205.05198).
    """

    ranks: RankGroup
    sequence_parallel: bool

    def range(self, size: int) -> tuple[int, int]:
        """This rank's range of a cut dimension of `size`."""
        return chunk_range(size, self.ranks.size, self.ranks.rank)

    def cut(self, parameter: Tensor, dimension: int) -> nn.Parameter:
        """This rank's share of a whole parameter; on the meta device nothing is allocated."""
        begin, end = self.range(parameter.shape[dimension])
        return nn.Parameter(parameter.detach().narrow(dimension, begin, end - begin).clone())


class ColumnParallelLinear(nn.Linear):
    """A share of the outputs: ``[batch, seq, in]`` to ``[batch, seq, out_local]``."""

    def __init__(self, linear: nn.Linear, split: TensorSplit) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.weight = split.cut(linear.weight, 0)
        self.bias = None if linear.bias is None else split.cut(linear.bias, 0)

    def forward(self, hidden: Tensor) -> Tensor:
        """Whole or split positions in, all positions of this rank's outputs out."""
        hidden = enter(hidden, self.split.ranks, sequence_parallel=self.split.sequence_parallel)
        return F.linear(hidden, self.weight, self.bias)


class RowParallelLinear(nn.Linear):
    """A share of the inputs: ``[batch, seq, in_local]`` to ``[batch, seq, out]``, summed over ranks."""

    def __init__(self, linear: nn.Linear, split: TensorSplit) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.weight = split.cut(linear.weight, 1)
        self.bias = linear.bias

    def forward(self, share: Tensor) -> Tensor:
        """This rank's inputs in, whole or split positions of the sum out."""
        partial = F.linear(share, self.weight)
        out = leave(partial, self.split.ranks, sequence_parallel=self.split.sequence_parallel)
        return out if self.bias is None else out + self.bias


class VocabParallelEmbedding(nn.Embedding):
    """A share of the vocabulary's rows; a token's row comes from the one rank that holds it."""

    def __init__(self, embedding: nn.Embedding, split: TensorSplit) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.begin, self.end = split.range(embedding.num_embeddings)
        self.weight = split.cut(embedding.weight, 0)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids ``[batch, seq]`` to whole or split positions of ``[batch, seq, hidden]``."""
        absent = (input_ids < self.begin) | (input_ids >= self.end)
        if self.end > self.begin:
            rows = F.embedding((input_ids - self.begin).masked_fill(absent, 0), self.weight)
        else:
            # A rank without rows still takes part in the sum, and its empty weight in the backward pass.
            rows = self.weight.new_zeros(*input_ids.shape, self.weight.shape[1]) + self.weight.sum()
        partial = rows.masked_fill(absent.unsqueeze(-1), 0.0)
        return leave(partial, self.split.ranks, sequence_parallel=self.split.sequence_parallel)


class PositionRange(nn.Embedding):
    """Position embedding for the range of positions that sequence parallelism leaves on this rank."""

    def __init__(self, embedding: nn.Embedding, split: TensorSplit) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.weight = embedding.weight

    def forward(self, positions: Tensor) -> Tensor:
        """All positions ``[seq]`` to the embeddings of this rank's, ``[seq / ranks, hidden]``."""
        begin, end = self.split.range(positions.shape[0])
        return F.embedding(positions[begin:end], self.weight)


def apply_tensor_parallel(model: GPT, split: TensorSplit) -> None:
    """Replace the matrices of `model` by this rank's shares, in place; ties are kept."""
    tied = model.head.weight is model.embeddings.token.weight
    for layer in model.blocks():
        layer.attention.qkv = ColumnParallelLinear(layer.attention.qkv, split)
        layer.attention.output = RowParallelLinear(layer.attention.output, split)
        layer.ffn.up = ColumnParallelLinear(layer.ffn.up, split)
        layer.ffn.down = RowParallelLinear(layer.ffn.down, split)
    model.embeddings.token = VocabParallelEmbedding(model.embeddings.token, split)
    if split.sequence_parallel:
        model.embeddings.position = PositionRange(model.embeddings.position, split)
    model.head = ColumnParallelLinear(model.head, split)
    if tied:
        model.head.weight = model.embeddings.token.weight


def sum_replicated_gradients(gradients: list[Tensor], split: TensorSplit) -> None:
    """Sum, in place, gradients of whole parameters of which each rank saw a range of positions only."""
    if not split.sequence_parallel or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    split.ranks.sum(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
