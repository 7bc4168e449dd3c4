"""Whole models whose positions are shared between ranks, against the same models in one process."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from ptm_dist.models.attention import Window
from ptm_dist.models.factory import model_spec
from ptm_dist.models.model import LanguageModel, Part
from ptm_dist.parallel.context import context_mixer, window
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.recompute import apply_recompute
from ptm_dist.recipe.schema import ModelSection, Recompute
from tests.distributed import run_distributed
from tests.ptm_dist.hf_models import randomise

BATCH, LENGTH, VOCAB = 3, 11, 41
METHODS = ("ring", "ulysses")
FAMILIES = ("gpt2", "gpt3", "gpt2 with documents", "bert")


@dataclass(frozen=True)
class Case:
    """A model and what it reads: the part before its last layer, which gives hidden states."""

    family: str

    def model(self, first: int = 0) -> LanguageModel:
        """The same weights in every process; from a later layer on, as a stage of a pipeline."""
        section = ModelSection(
            family=self.family.split()[0],
            vocab_size=VOCAB,
            hidden_size=24,
            num_layers=4,
            num_heads=3,
            ffn_hidden_size=40,
            max_positions=16,
            **({"attention_band": 3} if self.family == "gpt3" else {}),
        )
        model = LanguageModel(model_spec(section), Part(first, 3)).double()
        randomise(model)
        return model

    def reads(self, seed: int) -> dict[str, torch.Tensor]:
        """Arguments of a forward pass that are about tokens, and those about whole sequences."""
        draw = torch.Generator().manual_seed(seed)
        reads: dict[str, Any] = {"inputs": torch.randint(VOCAB, (BATCH, LENGTH), generator=draw)}
        places = torch.arange(LENGTH)
        if self.family == "bert":
            reads["segment_ids"] = torch.randint(2, (BATCH, LENGTH), generator=draw)
            reads["valid"] = places < torch.tensor([[LENGTH], [4], [7]])
        if "documents" in self.family:
            reads["documents"] = torch.stack([places // 4, (places > 1).long(), places // 7])
        return reads


def share(reads: dict[str, torch.Tensor], held: Window) -> dict[str, Any]:
    """What a rank passes to its model."""
    by_token = {name: reads[name][:, held.positions] for name in ("inputs", "segment_ids") if name in reads}
    return {**reads, **by_token, "window": held}


def target(hidden: torch.Tensor, held: Window, seed: int) -> torch.Tensor:
    """A sum that weighs every hidden number differently."""
    draw = torch.Generator().manual_seed(100 + seed)
    weights = torch.randn(BATCH, LENGTH, 24, generator=draw, dtype=torch.float64)
    return (hidden * weights[:, held.positions]).sum()


def two_passes(model: LanguageModel, case: Case, held: Window) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Hidden states of two passes, and the gradients of both together, of which the later is turned back first."""
    hidden = [model(**share(case.reads(seed), held)) for seed in (0, 1)]
    for seed in (1, 0):
        target(hidden[seed], held, seed).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [states.detach() for states in hidden], gradients


def everyone() -> RankGroup:
    return RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item() if found.numel() else 0.0


def model_errors(kinds: tuple[str, ...]) -> dict[Any, float]:
    """How far hidden states and gradients are from those of one process, by case."""
    ranks, whole = everyone(), Window.whole(LENGTH, torch.device("cpu"))
    held = window(LENGTH, ranks, torch.device("cpu"))
    errors = {}
    for family in FAMILIES:
        case = Case(family)
        expected, plain = two_passes(case.model(), case, whole)
        for method, kind in itertools.product(METHODS, kinds):
            model = case.model()
            model.mixer = context_mixer(method, ranks)
            if isinstance(kind, Recompute):
                apply_recompute(model, kind)
            if kind == "sharded":
                mesh = init_device_mesh("cpu", (ranks.size,))
                for part in [*model.blocks(), model]:
                    fully_shard(part, mesh=mesh, reshard_after_forward=True)
                    part.set_gradient_divide_factor(1.0)
            with torch.no_grad():
                seen = [model(**share(case.reads(seed), held)) for seed in (0, 1)]
            hidden, gradients = two_passes(model, case, held)
            assert gradients.keys() == plain.keys()
            sums = {
                name: grad.full_tensor() if kind == "sharded" else ranks.sum(grad) for name, grad in gradients.items()
            }
            errors[family, method, kind] = max(
                *(worst(one, other[:, held.positions]) for one, other in zip(hidden, expected, strict=True)),
                *(worst(one, other) for one, other in zip(seen, hidden, strict=True)),
                *(worst(sums[name], plain[name]) for name in plain),
            )
    return errors


@pytest.mark.parametrize(("world", "kinds"), [(2, (*Recompute, "sharded")), (3, (Recompute.NONE,))])
def test_a_model_on_several_ranks_gives_the_numbers_of_one(world, kinds):
    for errors in run_distributed(model_errors, world, kinds):
        assert len(errors) == len(FAMILIES) * len(METHODS) * len(kinds)
        assert {case: error for case, error in errors.items() if not error < 1e-12} == {}


def split_backward_errors() -> dict[Any, float]:
    """As a pipeline's middle stage: the gradient of what comes in first, those of weights later."""
    ranks, whole = everyone(), Window.whole(LENGTH, torch.device("cpu"))
    held = window(LENGTH, ranks, torch.device("cpu"))
    draw = torch.Generator().manual_seed(5)
    before, grad = torch.randn(2, BATCH, LENGTH, 24, generator=draw, dtype=torch.float64)
    errors = {}
    for family, method in itertools.product(FAMILIES, METHODS):
        case = Case(family)
        known = {name: given for name, given in case.reads(0).items() if name in ("valid", "documents")}
        plain, stage = case.model(first=1), case.model(first=1)
        leaf = before.clone().requires_grad_()
        plain(leaf, window=whole, **known).backward(grad)
        stage.mixer = context_mixer(method, ranks)
        entered = before[:, held.positions].requires_grad_()
        left = stage(entered, window=held, **known)
        parameters = list(stage.parameters())
        (turned,), groups = stage_backward_input([left], [grad[:, held.positions]], [entered], iter(parameters))
        stage_backward_weight(iter(parameters), groups)
        errors[family, method] = max(
            worst(turned, leaf.grad[:, held.positions]),
            *(worst(ranks.sum(p.grad), q.grad) for p, q in zip(parameters, plain.parameters(), strict=True)),
        )
    return errors


def test_the_two_halves_of_a_split_backward_pass_give_the_numbers_of_one():
    for errors in run_distributed(split_backward_errors, 2):
        assert {case: error for case, error in errors.items() if not error < 1e-12} == {}
