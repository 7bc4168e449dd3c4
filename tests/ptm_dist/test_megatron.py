"""Megatron-Core against plain torch and against the native engine, on CPU processes through a shim.

The reference is the plain training of tests/parity/cells.py in float32. All of one world's layouts run in one group.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ptm_dist.checkpoint.state import load_state, save_state
from ptm_dist.engines.megatron import MegatronEngine
from ptm_dist.engines.megatron_config import check_device, check_installed, megatron_problems
from ptm_dist.errors import RecipeError
from ptm_dist.parallel.boxes import boxes_of
from ptm_dist.parallel.control import control_group
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from tests.distributed import run_distributed
from tests.parity.cells import (
    LEARNING_RATE,
    Cell,
    Problem,
    Trace,
    compare,
    initial_weights,
    reference_trace,
    slice_batch,
)

pytest.importorskip("megatron.core")

STEPS = 20
NEAR = 2e-6
"""Largest relative distance of losses and gradient norms from plain float32 training."""
ROUNDING = 10.0
"""Largest distance of weights, in units of the one that plain float32 training has from float64 training: Adam
divides rounding by small moments, so that the biases of queries are known to four digits only."""

INTERLEAVED = {"pipeline_parallel": 2, "pipeline_schedule": "interleaved_1f1b"}
SEQUENCE = {"tensor_parallel": 2, "sequence_parallel": True}


def problem(**settings: Any) -> Problem:
    return Problem(**{"precision": "fp32", "steps": STEPS, "num_layers": 4, **settings})


GPT2, BERT = problem(), problem(family="bert", steps=8)
ALONE = [
    Cell(GPT2, 1, {}),
    Cell(GPT2, 1, {"recompute": "full", "micro_batch_size": 5}),
    Cell(GPT2, 1, {"zero_stage": 1}),
]
PAIRS = [
    Cell(GPT2, 2, {"tensor_parallel": 2}),
    Cell(GPT2, 2, {**SEQUENCE, "recompute": "full"}),
    Cell(GPT2, 2, {"pipeline_parallel": 2, "pipeline_split": [1]}, accumulation=3),
    Cell(GPT2, 2, INTERLEAVED, accumulation=3),
    Cell(GPT2, 2, {"zero_stage": 1}, accumulation=2),
    Cell(GPT2, 2, {}),
    Cell(GPT2, 2, {"context_parallel": 2, "zero_stage": 1}),
    Cell(GPT2, 2, {"context_parallel": 2, "context_method": "ulysses"}),
    Cell(BERT, 2, SEQUENCE),
    Cell(BERT, 2, {**INTERLEAVED, "recompute": "full"}, accumulation=2),
    Cell(problem(family="gpt1", steps=8), 2, SEQUENCE),
    Cell(problem(family="gpt3", steps=8, tied=False), 2, {"zero_stage": 1, "context_parallel": 2}),
    Cell(problem(family="roberta", steps=8, tied=False), 2, INTERLEAVED, accumulation=2),
    Cell(problem(steps=8, documents=True), 2, {"tensor_parallel": 2}),
    Cell(problem(steps=8, global_batch=5), 2, {"zero_stage": 1}, accumulation=2),
]
FOURS = [
    Cell(GPT2, 4, {"tensor_parallel": 2, "pipeline_parallel": 2}, accumulation=2),
    Cell(GPT2, 4, {"zero_stage": 1, **INTERLEAVED}, accumulation=2),
    Cell(BERT, 4, {"zero_stage": 1, **SEQUENCE}),
    Cell(BERT, 4, {"context_parallel": 2, "pipeline_parallel": 2}, accumulation=2),
]


def build(cell: Cell, **changes: Any) -> MegatronEngine:
    recipe = cell.recipe().model_copy(update=changes)
    return MegatronEngine(recipe, resolve_layout(recipe.layout, cell.world_size), torch.device("cpu"))


def whole(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Whole tensors of all ranks' boxes; fails where an element has no owner or two different values."""
    everybody: list[Any] = [None] * dist.get_world_size()
    mine = [(n, b) for n, held in state.items() if n.startswith(prefix) for b in boxes_of(held)]
    dist.all_gather_object(everybody, [(n, b.global_shape, b.offset, b.local.detach().clone()) for n, b in mine])
    found: dict[str, torch.Tensor] = {}
    for name, shape, offset, local in (box for boxes in everybody for box in boxes):
        full = found.setdefault(name.removeprefix(prefix), torch.full(shape, torch.nan))
        target = LocalShard(local, shape, offset).cut(full)
        known = ~target.isnan()
        assert torch.equal(target[known], local[known]), f"ranks disagree about {name}"
        target.copy_(local)
    assert not any(full.isnan().any() for full in found.values())
    return found


def fill(engine: Any, weights: dict[str, torch.Tensor]) -> None:
    """The random weights that the reference starts from."""
    for name, held in engine.state().items():
        for box in boxes_of(held):
            if name.startswith("model."):
                box.local.copy_(box.cut(weights[name.removeprefix("model.")]))
    engine.loaded(0)


def trace_of(cell: Cell) -> Trace:
    engine = build(cell)
    fill(engine, initial_weights(cell.problem))
    trace = Trace()
    for step in range(cell.problem.steps):
        result = engine.step(slice_batch(cell.problem, step, engine), LEARNING_RATE)
        trace.losses.append(result.loss)
        trace.norms.append(result.grad_norm)
    trace.validation = engine.evaluate([slice_batch(cell.problem, cell.problem.steps, engine)]).loss
    trace.weights = whole(engine.state(), "model.")
    engine.close()
    return trace


def traces(cells: list[Cell]) -> list[Trace]:
    warnings.simplefilter("ignore")
    from tests.megatron_cpu import cuda_is_cpu

    with cuda_is_cpu():
        return [trace_of(cell) for cell in cells]


@pytest.mark.parametrize("cells", [ALONE, PAIRS, FOURS], ids=["1 process", "2 processes", "4 processes"])
def test_every_layout_trains_as_plain_torch_does(cells):
    problems = {cell.problem for cell in cells}
    references = {each: reference_trace(each) for each in problems}
    exact = {each: reference_trace(replace(each, precision="fp64")) for each in problems}
    for cell, trace in zip(cells, run_distributed(traces, cells[0].world_size, cells)[0], strict=True):
        reference = references[cell.problem]
        trace.gradients = reference.gradients  # never whole in a distributed optimizer
        errors = compare(trace, reference)
        assert max(errors.loss, errors.norm, errors.validation) < NEAR, (cell, errors)
        rounding = compare(reference, exact[cell.problem]).weight
        assert errors.weight < ROUNDING * rounding, (cell, errors, rounding)


def hand_over(folder: str, layouts: list[tuple[str, dict[str, Any]]]) -> tuple[list[float], list[str]]:
    """Two steps with each engine, one after the other, through checkpoints; the losses, and tensors that changed."""
    warnings.simplefilter("ignore")
    from tests.megatron_cpu import cuda_is_cpu

    control, losses, changed, before = control_group(), [], [], {}
    for number, (name, layout) in enumerate(layouts):
        cell = Cell(GPT2, 4, layout, accumulation=2)
        shim = cuda_is_cpu() if name == "megatron" else torch.enable_grad()
        with shim:
            engine = build(cell) if name == "megatron" else cell.engine()
            if number:
                load_state(engine.state(), Path(folder) / str(number - 1), control)
                engine.loaded(2 * number)
                now = whole(engine.state())
                changed += [tensor for tensor in before if not torch.equal(before[tensor], now[tensor])]
                assert now.keys() == before.keys()
            else:
                fill(engine, initial_weights(GPT2))
            for step in (2 * number, 2 * number + 1):
                losses.append(engine.step(slice_batch(GPT2, step, engine), LEARNING_RATE).loss)
            before = whole(engine.state())
        place = Path(folder) / str(number)
        if control.is_first:
            place.mkdir()
        dist.barrier()
        save_state(engine.state(), place, control)
        engine.close()
    return losses, changed


def test_engines_hand_a_run_over_to_each_other_bit_by_bit(tmp_path):
    layouts = [
        ("native", {"zero_stage": 3, "tensor_parallel": 2}),
        ("megatron", {"tensor_parallel": 2, "pipeline_parallel": 2}),
        ("megatron", {"zero_stage": 1}),
        ("megatron", {"zero_stage": 1, **INTERLEAVED}),
        ("native", {"zero_stage": 1}),
    ]
    losses, changed = run_distributed(hand_over, 4, str(tmp_path), layouts)[0]
    assert not changed
    expected = reference_trace(GPT2).losses[: len(losses)]
    assert max(abs(a - b) / b for a, b in zip(losses, expected, strict=True)) < NEAR


def first_weights(precision: str) -> tuple[list[str], float]:
    """Weights that do not start as in the native engine, and the distance of the losses of two steps."""
    warnings.simplefilter("ignore")
    from tests.megatron_cpu import cuda_is_cpu

    ours = problem(precision=precision)
    native = Cell(ours, 2, {"zero_stage": 1}).engine()
    start = whole(native.state(), "model.")
    expected = [native.step(slice_batch(ours, step, native), LEARNING_RATE).loss for step in range(2)]
    different, far = [], 0.0
    for layout in ({"zero_stage": 1}, {"tensor_parallel": 2}):
        with cuda_is_cpu():
            engine = build(Cell(ours, 2, layout))
            mine = whole(engine.state(), "model.")
            different += [name for name in start if not torch.equal(mine[name], start[name])]
            losses = [engine.step(slice_batch(ours, step, engine), LEARNING_RATE).loss for step in range(2)]
            far = max(far, *(abs(a - b) / b for a, b in zip(losses, expected, strict=True)))
            engine.close()
    return different, far


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", NEAR), ("bf16", 2e-3)])
def test_a_run_starts_from_the_bits_that_the_native_engine_starts_from(precision, tolerance):
    different, far = run_distributed(first_weights, 2, precision)[0]
    assert not different
    assert far < tolerance


def recipe_with(**sections: Any) -> Recipe:
    plain = Cell(GPT2, 4, {}).recipe().model_dump()
    for section, values in sections.items():
        plain[section].update(values)
    return Recipe.model_validate(plain)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"family": "albert"}, "objective": {"kind": "mlm_sop"}}, "model.family=albert"),
        ({"training": {"precision": "fp64"}}, "training.precision=fp64"),
        ({"optimizer": {"kind": "lamb"}}, "optimizer.kind"),
        ({"optimizer": {"bias_correction": False}}, "optimizer.bias_correction"),
        ({"layout": {"zero_stage": 3}}, "layout.zero_stage"),
        ({"layout": {"tensor_parallel": 4}}, "model.ffn_hidden_size=50"),
        ({"layout": {"pipeline_parallel": 2, "pipeline_schedule": "gpipe"}}, "layout.pipeline_schedule"),
        ({"layout": {**INTERLEAVED, "pipeline_stages_per_rank": 1}}, "layout.pipeline_stages_per_rank"),
        ({"layout": {"context_parallel": 2}, "data": {"sequence_length": 6}}, "data.sequence_length=6"),
        ({"layout": {"recompute": "selective"}}, "layout.recompute"),
        ({"layout": {"offload": "optimizer"}}, "layout.offload"),
    ],
)
def test_what_it_cannot_do_is_said_with_what_can(sections, key):
    recipe = recipe_with(**sections)
    (message,) = megatron_problems(recipe, recipe.layout, 4)
    assert key in message
    assert "use" in message or "engine=native" in message


def test_what_it_can_do_is_no_problem():
    for cell in (*ALONE, *PAIRS, *FOURS):
        assert not list(megatron_problems(cell.recipe(), cell.recipe().layout, cell.world_size)), cell


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_machine_without_cuda_is_told_to_use_another_engine():
    with pytest.raises(RecipeError, match="needs CUDA; use engine=native or deepspeed"):
        check_device(torch.device("cpu"))


@pytest.mark.parametrize(("name", "value"), [("megatron.core", None), ("megatron.core.__version__", "0.1")])
def test_a_missing_or_another_megatron_is_told_how_to_be_installed(monkeypatch, name, value):
    check_installed()
    if value is None:
        monkeypatch.setitem(sys.modules, name, value)
    else:
        monkeypatch.setattr(name, value)
    with pytest.raises(RecipeError, match=r"pip install 'ptm-dist\[megatron\]'"):
        check_installed()
