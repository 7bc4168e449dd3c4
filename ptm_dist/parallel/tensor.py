"""Tensor parallelism: each matrix is cut along one dimension (Megatron-LM, arXiv 1909.08053, section 3).

A module's parameters become this rank's rows or columns as plain tensors under the same names; which
dimension is cut is declared here by name. Shares are as even as can be; where the ranks do not divide a
vocabulary, a feed-forward width or the number of attention heads, which stay whole, the first ranks have one more,
and some may have none.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ptm_dist.kernels.linear_cross_entropy import Score, SharedVocabulary
from ptm_dist.models.embeddings import Embeddings
from ptm_dist.models.heads import Decoder
from ptm_dist.models.model import LanguageModel
from ptm_dist.models.spec import ModelSpec
from ptm_dist.models.transformer import Linear
from ptm_dist.parallel.collectives import gather_positions, leave
from ptm_dist.parallel.loss import VocabularyShards
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.overlap import column_linear, column_linear_of_split
from ptm_dist.parallel.shards import balanced_range

_SPLIT_DIMENSION = {
    "embeddings.token.weight": 0,
    "attention.qkv.weight": 0,
    "attention.qkv.bias": 0,
    "attention.output.weight": 1,
    "ffn.up.weight": 0,
    "ffn.up.bias": 0,
    "ffn.down.weight": 1,
    "head.decoder.weight": 0,
    "head.decoder.bias": 0,
}
_FORWARD = inspect.signature(LanguageModel.forward)
_VECTORS_PER_HEAD = {"attention.qkv.weight": 3, "attention.qkv.bias": 3, "attention.output.weight": 1}


def split_dimension(name: str) -> int | None:
    """Dimension along which tensor parallelism cuts the parameter `name`; None: every rank holds it whole."""
    return _by_suffix(_SPLIT_DIMENSION, name)


def tensor_box(
    name: str, shape: tuple[int, ...], spec: ModelSpec, ranks: int, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which box of a parameter a tensor-parallel rank holds.

    Args:
        name: canonical name of the parameter.
        shape: of the whole parameter.
        spec: of the model.
        ranks: how many share the model; the first one's box is the largest.
        rank: which of them.

    Returns: first index in each dimension, and shape.
    """
    offset, local = [0] * len(shape), list(shape)
    dimension = split_dimension(name)
    if dimension is not None:
        unit = (_by_suffix(_VECTORS_PER_HEAD, name) or 0) * spec.block.head_size or 1
        begin, end = balanced_range(shape[dimension], ranks, rank, unit)
        offset[dimension], local[dimension] = begin, end - begin
    return tuple(offset), tuple(local)


def _by_suffix(values: Mapping[str, int], name: str) -> int | None:
    return next((value for suffix, value in values.items() if name.endswith(suffix)), None)


@dataclass
class Sequence:
    """What the rows of the forward pass at work hold.

    Attributes:
        positions: of a row, over all tensor-parallel ranks.
    """

    positions: int = 0


@dataclass(frozen=True)
class TensorSplit:
    """How the matrices of a model are shared.

    Attributes:
        ranks: the tensor-parallel ranks.
        sequence_parallel: between the matrices, each rank keeps a range of positions (arXiv 2205.05198).
        sequence: of how many; the model sets it before each forward pass.
    """

    ranks: RankGroup
    sequence_parallel: bool
    sequence: Sequence = field(default_factory=Sequence)

    def range(self, size: int, unit: int = 1) -> tuple[int, int]:
        """This rank's range of a cut dimension of `size`, in whole units."""
        return balanced_range(size, self.ranks.size, self.ranks.rank, unit)

    def cut(self, parameter: Tensor, dimension: int, unit: int = 1) -> nn.Parameter:
        """This rank's share of a whole parameter; on the meta device nothing is allocated."""
        begin, end = self.range(parameter.shape[dimension], unit)
        return nn.Parameter(parameter.detach().narrow(dimension, begin, end - begin).clone())

    def linear(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Whole or split positions in, all positions of the outputs that this rank has rows for out."""
        if self.sequence_parallel:
            return column_linear_of_split(hidden, weight, bias, self.ranks, self.sequence.positions)
        return column_linear(hidden, weight, bias, self.ranks)


class ColumnParallelLinear(Linear):
    """A share of the outputs: ``[batch, seq, in]`` to ``[batch, seq, out_local]``."""

    def __init__(self, linear: nn.Linear, split: TensorSplit, unit: int = 1) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.weight = split.cut(linear.weight, 0, unit)
        self.bias = None if linear.bias is None else split.cut(linear.bias, 0, unit)

    def forward(self, hidden: Tensor, *, with_bias: bool = True) -> Tensor:
        """Whole or split positions in, all positions of this rank's outputs out."""
        return self.split.linear(hidden, self.weight, self.bias if with_bias else None)


class VocabParallelDecoder(Decoder):
    """A share of the vocabulary: whole or split positions in, this rank's logits of all of them or the score out."""

    def __init__(self, decoder: Decoder, split: TensorSplit) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.vocab_size = decoder.out_features
        self.kind, self.choice, self.portion = decoder.kind, decoder.choice, decoder.portion
        self.weight = split.cut(decoder.weight, 0)
        self.bias = None if decoder.bias is None else split.cut(decoder.bias, 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., vocab_local]``."""
        return self.split.linear(hidden, self.weight, self.bias)

    def score(self, hidden: Tensor, targets: Tensor, shared: SharedVocabulary | None = None) -> Score:
        """The same on every rank."""
        positions = self.split.sequence.positions if self.split.sequence_parallel else 0
        return super().score(hidden, targets, VocabularyShards(self.split.ranks, self.vocab_size, positions))


class RowParallelLinear(nn.Linear):
    """A share of the inputs: ``[batch, seq, in_local]`` to ``[batch, seq, out]``, summed over ranks."""

    def __init__(self, linear: nn.Linear, split: TensorSplit, unit: int = 1) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.weight = split.cut(linear.weight, 1, unit)
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


class SequenceRangeEmbedding(nn.Embedding):
    """Position or segment embedding for the positions that sequence parallelism leaves on this rank."""

    def __init__(self, embedding: nn.Embedding, split: TensorSplit) -> None:
        nn.Module.__init__(self)
        self.split = split
        self.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of all positions ``[..., seq]`` to the embeddings of this rank's, ``[..., own, width]``."""
        begin, end = self.split.range(ids.shape[-1])
        return F.embedding(ids[..., begin:end], self.weight)


def apply_tensor_parallel(model: LanguageModel, split: TensorSplit) -> None:
    """Replace the matrices of `model` by this rank's shares, in place; ties are kept.

    With sequence parallelism the hidden states that a part without embeddings gets, and those that a part without
    heads gives, are this rank's positions; the former is told by its window how many there are.
    """
    head_size = model.spec.block.head_size
    for block in model.blocks():
        block.attention.first_head = split.range(model.spec.block.num_heads)[0]
        block.attention.qkv = ColumnParallelLinear(block.attention.qkv, split, 3 * head_size)
        block.attention.output = RowParallelLinear(block.attention.output, split, head_size)
        block.ffn.up = ColumnParallelLinear(block.ffn.up, split)
        block.ffn.down = RowParallelLinear(block.ffn.down, split)
    _split_embeddings(model.embeddings, split)
    _split_head(model, split)
    model.tie()
    if split.sequence_parallel:
        model.register_forward_pre_hook(partial(_note_positions, split.sequence), with_kwargs=True)
        model.stream_positions = partial(_own_positions, split)


def _own_positions(split: TensorSplit, positions: Tensor) -> Tensor:
    begin, end = split.range(len(positions))
    return positions[begin:end]


def _note_positions(sequence: Sequence, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    given = _FORWARD.bind(model, *arguments, **named).arguments
    window = given.get("window")
    sequence.positions = given["inputs"].shape[1] if window is None else len(window.positions)


def _split_embeddings(embeddings: Embeddings | None, split: TensorSplit) -> None:
    if embeddings is None:
        return
    embeddings.token = VocabParallelEmbedding(embeddings.token, split)
    if split.sequence_parallel:
        embeddings.position = SequenceRangeEmbedding(embeddings.position, split)
        if embeddings.segment is not None:
            embeddings.segment = SequenceRangeEmbedding(embeddings.segment, split)


def _split_head(model: LanguageModel, split: TensorSplit) -> None:
    """Heads that pick positions need all of them; they are small, so each rank computes them whole."""
    if model.head is None:
        return
    into_head = split
    if split.sequence_parallel and not model.spec.block.causal:
        model.before_heads = lambda hidden: gather_positions(hidden, split.ranks, split.sequence.positions)
        into_head = replace(split, sequence_parallel=False)
    model.head.decoder = VocabParallelDecoder(model.head.decoder, into_head)


def sees_range_of_positions(name: str, spec: ModelSpec, split: TensorSplit) -> bool:
    """Whether a rank's gradient of the whole parameter `name` covers its range of positions only."""
    if not split.sequence_parallel or split_dimension(name) is not None:
        return False
    return spec.block.causal or not name.startswith(("head.", "pair_head."))
