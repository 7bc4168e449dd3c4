"""What runs again in the backward pass gives the same gradients, to the bit, and stores less."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ptm_dist.models import LanguageModel
from ptm_dist.models.attention import Window
from ptm_dist.models.model import Part
from ptm_dist.parallel.context import context_mixer
from ptm_dist.parallel.mesh import ALONE, RankGroup
from ptm_dist.parallel.recompute import apply_recompute, compile_blocks
from ptm_dist.parallel.tensor import TensorSplit, apply_tensor_parallel
from ptm_dist.parallel.zigzag import window
from ptm_dist.recipe.schema import Recompute
from tests.distributed import run_distributed
from tests.ptm_dist.test_tensor_parallel import Case

FULL, SELECTIVE, NONE = Recompute.FULL, Recompute.SELECTIVE, Recompute.NONE


@dataclass
class Pass:
    """What a forward and backward pass gave; bytes alive between the two; operations called in the latter."""

    loss: float
    gradients: list[Tensor]
    stored: int
    calls: Counter[str]


class Record(TorchDispatchMode):
    """Counts operations, and the bytes that they gave and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._given: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor):
                self._given[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return out

    def alive(self) -> int:
        return sum(size for storage, size in self._given.items() if not storage.expired())


def one_pass(model: LanguageModel, case: Case, ranks: RankGroup = ALONE, here: Window | None = None) -> Pass:
    ids, segments, valid, chosen = case.inputs()
    here = here or Window.whole(case.length, ids.device)
    with Record() as forward:
        loss = case.loss(model(ids[:, here.positions], segments, valid, chosen, None, here), ranks)
    stored = forward.alive()
    with Record() as backward:
        loss.backward()
    return Pass(loss.item(), [parameter.grad for parameter in model.parameters()], stored, backward.calls)


def passed(case: Case, kind: Recompute, every: int = 1) -> Pass:
    model = case.model()
    apply_recompute(model, kind, every)
    return one_pass(model, case)


def assert_same(ours: Pass, plain: Pass) -> None:
    assert ours.loss == plain.loss
    assert len(ours.gradients) == len(plain.gradients)
    assert all(torch.equal(a, b) for a, b in zip(ours.gradients, plain.gradients, strict=True))


@pytest.mark.parametrize("family", ["gpt1", "gpt2", "gpt3", "bert", "roberta", "albert"])
@pytest.mark.parametrize("kind", [FULL, SELECTIVE])
@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_the_same_to_the_bit(family, kind, every):
    case = Case(family, 3)
    assert_same(passed(case, kind, every), passed(case, NONE))


def layer_norms(case: Case, kind: Recompute, every: int = 1) -> int:
    return passed(case, kind, every).calls["native_layer_norm"]


def test_only_every_nth_layer_runs_again():
    case = Case("gpt2", 3, layers=5)
    assert layer_norms(case, NONE) == 0
    # The norm before each matrix of a layer: two per layer that runs again.
    assert [layer_norms(case, FULL, every) for every in (1, 2, 3, 5)] == [10, 6, 4, 2]


def test_layers_that_share_a_block_are_chosen_one_by_one():
    case = Case("albert", 3, layers=5)
    assert_same(passed(case, FULL, 3), passed(case, NONE))
    # The second norm of a layer is the last thing that runs, and nothing needs its output.
    assert [layer_norms(case, FULL, every) for every in (1, 2, 3, 5)] == [10, 6, 4, 2]


def test_a_part_of_a_model_counts_layers_as_the_whole_does():
    spec = Case("gpt2", 3, layers=5).spec()
    first, second = (LanguageModel(spec, part) for part in (Part(0, 3), Part(3, 5)))
    for part in (first, second):
        apply_recompute(part, FULL, 2)
    wrapped = [
        part.layers[name] for part in (first, second) for name in part.layers if "forward" in vars(part.layers[name])
    ]
    assert wrapped == [first.layers["0"], first.layers["2"], second.layers["4"]]


def test_selective_recomputation_repeats_no_matrix_and_no_attention():
    plain, selective, full = (passed(Case("gpt2", 3), kind) for kind in (NONE, SELECTIVE, FULL))
    assert full.stored < selective.stored < plain.stored
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    products = [sum(calls.calls[name] for name in ("mm", "addmm")) for calls in (plain, selective, full)]
    assert products[0] == products[1] < products[2]
    assert [calls.calls[attention] for calls in (plain, selective, full)] == [0, 0, 2]
    assert selective.calls["native_layer_norm"] == 4
    assert selective.calls["gelu"] == 2


def sharded(cases: list[tuple[Case, str]]) -> list[list[bool]]:
    """For each case, whether full and selective recomputation give the bits of none, on this rank."""
    world = RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())
    same = []
    for case, layout in cases:
        passes = [sharded_pass(case, layout, kind, world) for kind in (NONE, FULL, SELECTIVE)]
        same.append(
            [
                passes[0].loss == ours.loss and all(map(torch.equal, ours.gradients, passes[0].gradients))
                for ours in passes[1:]
            ]
        )
    return same


def sharded_pass(case: Case, layout: str, kind: Recompute, world: RankGroup) -> Pass:
    model = case.model()
    ranks, here = ALONE, None
    if layout == "tensor":
        ranks = world
        apply_tensor_parallel(model, TensorSplit(world, case.sequence_parallel))
    else:
        model.mixer = context_mixer(layout, world)
        here = window(case.length, world, torch.device("cpu"))
    apply_recompute(model, kind)
    return one_pass(model, case, ranks, here)


def test_communication_inside_blocks_stays_exact():
    cases = [(Case(family, 3, 9, sp), "tensor") for family in ("gpt2", "bert") for sp in (False, True)]
    cases += [(Case("gpt2", 3, 9), method) for method in ("ring", "ulysses")]
    for same in run_distributed(sharded, 2, cases):
        assert same == [[True, True]] * len(cases)


def test_selective_recomputation_can_be_compiled(monkeypatch):
    # Without the compiler of kernels, which takes most of the time and knows nothing of recomputation.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case = Case("gpt2", 3)
    model = case.model()
    apply_recompute(model, SELECTIVE)
    compile_blocks(model)
    ids, segments, valid, chosen = case.inputs()
    compiled = case.loss(model(ids, segments, valid, chosen), ALONE)
    compiled.backward()
    plain = passed(case, NONE)
    assert compiled.item() == pytest.approx(plain.loss, rel=1e-12)
    for ours, theirs in zip(model.parameters(), plain.gradients, strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-12, atol=1e-12)
