"""A model whose matrices are shared computes what the plain model does, however unevenly they are shared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.models import LanguageModel, ModelOutput, model_spec
from ptm_dist.models.attention import Window
from ptm_dist.models.model import Part
from ptm_dist.models.spec import ModelSpec
from ptm_dist.parallel.collectives import sum_together
from ptm_dist.parallel.loss import vocab_parallel_cross_entropy
from ptm_dist.parallel.mesh import ALONE, RankGroup
from ptm_dist.parallel.shards import LocalShard, balanced_range
from ptm_dist.parallel.tensor import (
    TensorSplit,
    apply_tensor_parallel,
    sees_range_of_positions,
    tensor_box,
)
from ptm_dist.recipe.schema import ModelSection
from tests.distributed import run_distributed

TOLERANCE = 1e-12
"""A mistake shows at 1e-3, another order of sums at 1e-14."""


@dataclass(frozen=True)
class Case:
    family: str
    heads: int
    length: int = 8
    sequence_parallel: bool = False
    vocab_size: int = 101
    tied: bool = True
    parts: int = 1
    layers: int = 2

    def spec(self) -> ModelSpec:
        own = {"albert": {"embedding_size": 20, "layer_groups": 1}}.get(self.family, {})
        return model_spec(
            ModelSection(
                family=self.family,
                vocab_size=self.vocab_size,
                max_positions=self.length,
                hidden_size=12 * self.heads,
                num_heads=self.heads,
                num_layers=self.layers,
                ffn_hidden_size=50,
                tie_embeddings=self.tied,
                **own,
            )
        )

    def model(self) -> LanguageModel:
        """The plain model, with the same random weights on every rank."""
        model = LanguageModel(self.spec()).double()
        generator = torch.Generator().manual_seed(self.heads)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
        return model

    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Ids, segments, what is not padding, and where a masked model predicts."""
        generator = torch.Generator().manual_seed(self.length)
        ids = torch.randint(0, self.vocab_size, (3, self.length), generator=generator)
        if self.spec().block.causal:
            return ids, None, None, None
        lengths = torch.tensor([self.length, max(1, self.length - 2), max(1, self.length // 2)])
        valid = torch.arange(self.length) < lengths[:, None]
        chosen = torch.tensor([0, self.length - 1, 2 * self.length])
        return ids, (ids % 2 if self.family != "roberta" else None), valid, chosen

    def loss(self, output: ModelOutput, ranks: RankGroup) -> Tensor:
        """Cross entropy of tokens that differ in weight, and of pairs."""
        logits = output.tokens.flatten(0, -2)
        targets = torch.arange(len(logits)) * 7 % self.vocab_size
        losses = vocab_parallel_cross_entropy(logits, targets, self.vocab_size, ranks)
        loss = (losses * torch.arange(1, len(logits) + 1)).mean()
        return loss if output.pairs is None else loss + F.cross_entropy(output.pairs, torch.tensor([0, 1, 1]))


def in_two_parts(whole: LanguageModel) -> list[LanguageModel]:
    """The layers of an untied model as two pipeline stages have them."""
    parts = [LanguageModel(whole.spec, part).double() for part in (Part(0, 1), Part(1, 2))]
    for part in parts:
        part.load_state_dict({name: value for name, value in whole.state_dict().items() if name in part.state_dict()})
    return parts


def trained(case: Case, ranks: RankGroup) -> tuple[float, dict[str, Tensor]]:
    """Loss and this rank's gradients."""
    model = case.model()
    split = TensorSplit(ranks, case.sequence_parallel)
    parts = in_two_parts(model) if case.parts == 2 else [model]
    ids, segments, *rest = case.inputs()
    hidden = ids
    for part in parts:
        if ranks.size > 1:
            apply_tensor_parallel(part, split)
        hidden = part(hidden, segments, *rest, window=Window.whole(case.length, ids.device))
    loss = case.loss(hidden, ranks)
    loss.backward()
    gradients = {name: parameter.grad for part in parts for name, parameter in part.named_parameters()}
    sum_together([g for name, g in gradients.items() if sees_range_of_positions(name, model.spec, split)], split.ranks)
    return loss.item(), gradients


def deviations(cases: list[Case]) -> list[float]:
    """By case the worst relative deviation of this rank's loss and boxes of gradients from the plain model's."""
    ranks = RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())
    worst = []
    for case in cases:
        loss, gradients = trained(case, ranks)
        plain_loss, plain = trained(replace(case, sequence_parallel=False, parts=1), ALONE)
        errors = [abs(loss / plain_loss - 1.0)]
        for name, whole in plain.items():
            offset, shape = tensor_box(name, tuple(whole.shape), case.spec(), ranks.size, ranks.rank)
            assert tuple(gradients[name].shape) == shape, (case, name)
            expected = LocalShard(gradients[name], tuple(whole.shape), offset).cut(whole)
            errors.append(((gradients[name] - expected).norm() / whole.norm()).item())
        worst.append(max(errors))
    return worst


def check(world_size: int, cases: list[Case]) -> None:
    for rank, errors in enumerate(run_distributed(deviations, world_size, cases)):
        for case, error in zip(cases, errors, strict=True):
            assert error < TOLERANCE, (rank, case, error)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_that_do_not_divide_the_heads_compute_what_one_does(world_size):
    cases = [Case(family, heads) for family in ("gpt2", "bert", "albert") for heads in (1, 3, 4)]
    check(world_size, [*cases, Case("gpt1", 3, tied=False), Case("gpt2", 3, vocab_size=3)])


@pytest.mark.parametrize("world_size", [2, 4])
def test_split_positions_that_the_ranks_do_not_divide_or_that_some_lack_compute_what_one_does(world_size):
    lengths = {"gpt1": 9, "gpt2": 9, "bert": 7, "albert": 5, "roberta": 3}
    cases = [Case(family, 3, length, sequence_parallel=True) for family, length in lengths.items()]
    cases += [Case("gpt2", heads, length, sequence_parallel=True) for heads, length in ((4, 8), (1, 1))]
    cases += [Case(family, 3, 9, sequence_parallel=True, tied=False, parts=2) for family in ("gpt2", "bert")]
    check(world_size, cases)


@pytest.mark.parametrize(("size", "unit", "parts"), [(101, 1, 4), (50, 1, 4), (12, 1, 3), (36, 12, 2), (12, 12, 3)])
def test_shares_follow_each_other_and_differ_by_a_unit_at_most(size, unit, parts):
    ranges = [balanced_range(size, parts, index, unit) for index in range(parts)]
    assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == size
    units = [(end - begin) / unit for begin, end in ranges]
    assert units == sorted(units, reverse=True)
    assert units[0] - units[-1] in {0, 1}
    assert all(count == int(count) for count in units)


def test_heads_stay_whole_and_the_first_ranks_have_one_more():
    spec = Case("gpt2", 3).spec()
    size, hidden = spec.block.head_size, spec.block.hidden_size
    boxes = {
        name: [tensor_box(f"layers.0.{name}", shape, spec, 2, rank) for rank in (0, 1)]
        for name, shape in {
            "attention.qkv.weight": (3 * hidden, hidden),
            "attention.qkv.bias": (3 * hidden,),
            "attention.output.weight": (hidden, hidden),
            "attention.output.bias": (hidden,),
            "ffn.up.weight": (51, hidden),
        }.items()
    }
    assert boxes == {
        "attention.qkv.weight": [((0, 0), (6 * size, hidden)), ((6 * size, 0), (3 * size, hidden))],
        "attention.qkv.bias": [((0,), (6 * size,)), ((6 * size,), (3 * size,))],
        "attention.output.weight": [((0, 0), (hidden, 2 * size)), ((0, 2 * size), (hidden, size))],
        "attention.output.bias": [((0,), (hidden,)), ((0,), (hidden,))],
        "ffn.up.weight": [((0, 0), (26, hidden)), ((26, 0), (25, hidden))],
    }
