"""The DeepSpeed engine against plain training in one process, and against the native engine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from ptm_dist.engines.deepspeed_config import deepspeed_problems
from ptm_dist.errors import RecipeError
from ptm_dist.recipe.schema import Recipe
from tests.distributed import run_distributed
from tests.parity.cells import Problem, Trace, reference_trace
from tests.ptm_dist.deepspeed_cases import Case, Outcome, initial_states, outcomes, relay, running

GPT = Problem(precision="fp32", steps=20)
BERT = replace(GPT, family="bert")
ALBERT = replace(GPT, family="albert", steps=5)
SHORT = replace(GPT, steps=8)
# What DeepSpeed asks before it computes in fp16 on a CPU.
HAS_FP16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()
needs_fp16 = pytest.mark.skipif(not HAS_FP16, reason="this CPU has no arithmetic in fp16")
HALF = {precision: replace(SHORT, precision=precision) for precision in ("bf16", "fp16")}

PARITY = {
    f"{problem.family} ZeRO-{stage} x{accumulation}": Case(problem, {"zero_stage": stage}, accumulation)
    for problem in (GPT, BERT)
    for stage in range(4)
    for accumulation in (1, 3)
}
PARITY |= {
    "shared blocks": Case(ALBERT, {"zero_stage": 3}, 2),
    "optimizer on the host": Case(SHORT, {"zero_stage": 1, "offload": "optimizer"}, 3),
    "gradients and optimizer on the host": Case(SHORT, {"zero_stage": 2, "offload": "optimizer"}, 3),
    "everything on the host": Case(SHORT, {"zero_stage": 3, "offload": "parameters"}, 3),
    "recompute": Case(SHORT, {"zero_stage": 3, "recompute": "full", "recompute_every": 2}),
    "selective recompute": Case(SHORT, {"zero_stage": 2, "recompute": "selective"}),
    "dropout": Case(replace(SHORT, dropout=0.1), {"zero_stage": 3, "recompute": "full"}, 3),
}
LOW = {
    f"{precision} ZeRO-{stage}": Case(problem, {"zero_stage": stage}, 3)
    for precision, problem in HALF.items()
    for stage in range(4)
}
OVERFLOWING = {
    f"overflow ZeRO-{stage}": Case(replace(HALF["fp16"], steps=3), {"zero_stage": stage}, 2, scale_power=24)
    for stage in range(4)
}
OPTIMIZERS = {"sgd": {"kind": "sgd"}, "uncorrected": {"bias_correction": False}, "unclipped": {"clip_norm": 0.0}}
PAIRS = {
    f"{engine} {name}": Case(replace(SHORT, steps=4), {"zero_stage": stage}, 1, engine, optimizer)
    for name, optimizer in OPTIMIZERS.items()
    for engine, stage in (("native", 1), ("deepspeed", 2))
}


def is_possible(case: Case) -> bool:
    return HAS_FP16 or case.problem.precision != "fp16"


@pytest.fixture(scope="module")
def results() -> dict[str, Outcome]:
    cases = PARITY | LOW | OVERFLOWING | PAIRS
    return run_distributed(outcomes, 2, {name: case for name, case in cases.items() if is_possible(case)})[0]


@pytest.fixture(scope="module")
def references() -> dict[Problem, Trace]:
    problems = {replace(case.problem, precision="fp32") for case in (PARITY | LOW | OVERFLOWING).values()}
    return {problem: reference_trace(problem) for problem in problems}


def deviation(ours: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


def weight_deviation(ours: Trace, reference: Trace) -> float:
    """The worst, but for key biases, whose true gradient is zero: Adam makes steps of the noise."""
    names = [name for name in reference.weights if not name.endswith("qkv.bias")]
    return max(((ours.weights[n] - reference.weights[n]).norm() / reference.weights[n].norm()).item() for n in names)


@pytest.mark.parametrize("name", PARITY)
def test_every_stage_stays_on_the_curve_of_plain_training(name, results, references):
    ours, reference = results[name].trace, references[PARITY[name].problem]
    assert deviation(ours.losses, reference.losses) < 1e-6
    assert deviation(ours.norms, reference.norms) < 2e-6
    assert deviation([ours.validation], [reference.validation]) < 1e-6
    assert weight_deviation(ours, reference) < (1e-4 if PARITY[name].problem == ALBERT else 1e-5)


@pytest.mark.parametrize(
    "name", [name if is_possible(LOW[name]) else pytest.param(name, marks=needs_fp16) for name in LOW]
)
def test_low_precision_stays_near_single_precision(name, results, references):
    ours, reference = results[name].trace, references[replace(LOW[name].problem, precision="fp32")]
    # Rounding to 8 and to 11 bits of mantissa, of losses near 4.6.
    loss, norm = (5e-4, 1e-2) if name.startswith("bf16") else (5e-5, 1e-3)
    assert 1e-7 < deviation(ours.losses, reference.losses) < loss
    assert deviation(ours.norms, reference.norms) < norm
    assert {tensor.dtype for tensor in results[name].state.values()} == {torch.float32}


@needs_fp16
@pytest.mark.parametrize("name", OVERFLOWING)
def test_a_step_whose_gradients_overflow_is_computed_again_with_a_smaller_scale(name, results, references):
    ours, reference = results[name], references[replace(OVERFLOWING[name].problem, precision="fp32")]
    assert ours.skipped > 0
    assert deviation(ours.trace.losses, reference.losses) < 5e-5
    assert deviation(ours.trace.norms, reference.norms) < 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_does_what_the_native_engine_does(name, results):
    ours, native = results[f"deepspeed {name}"], results[f"native {name}"]
    assert ours.state.keys() == native.state.keys()
    assert deviation(ours.trace.losses, native.trace.losses) < 1e-6
    assert deviation(ours.trace.norms, native.trace.norms) < 2e-6
    assert weight_deviation(ours.trace, native.trace) < 1e-5


@pytest.mark.skipif(HAS_FP16, reason="this CPU has arithmetic in fp16")
def test_fp16_is_refused_with_what_to_use_where_the_device_has_none():
    case = Case(HALF["fp16"], {"zero_stage": 2})
    (message,) = run_distributed(refusal, 1, case)
    assert message.startswith("training.precision=fp16: DeepSpeed does not compute in it on this cpu; use ")


def refusal(case: Case) -> str:
    try:
        with running(case):
            return "not refused"
    except RecipeError as error:
        return str(error)


def test_initial_state_has_the_bits_of_the_native_engine():
    engines = [("native", 0, "fp32"), *(("deepspeed", stage, "fp32") for stage in range(4)), ("deepspeed", 3, "bf16")]
    cases = [Case(replace(BERT, precision=numbers), {"zero_stage": stage}, 1, name) for name, stage, numbers in engines]
    native, *others = run_distributed(initial_states, 2, cases)[0]
    for state in others:
        assert state.keys() == native.keys()
        assert all(torch.equal(state[name], native[name]) for name in native)


def test_a_run_moves_between_engines_and_stages_in_its_middle_with_the_same_bits(references):
    turns = [("native", 3), ("deepspeed", 1), ("deepspeed", 3), ("native", 0), ("deepspeed", 0), ("deepspeed", 2)]
    cases = [Case(GPT, {"zero_stage": stage}, 1, engine) for engine, stage in turns]
    losses, same = run_distributed(relay, 2, cases, 3)[0]
    assert same == [True] * 5
    assert deviation(losses, references[GPT].losses[:18]) < 1e-6


def test_a_run_that_stops_goes_on_with_the_same_bits():
    case = Case(replace(BERT, precision="bf16"), {"zero_stage": 2}, 2)
    stopped, through = run_distributed(stopped_and_through, 2, case)[0]
    assert stopped == through


def stopped_and_through(case: Case) -> tuple[list[float], list[float]]:
    return relay([case, case], 3)[0], relay([case], 6)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": {"tensor_parallel": 2}}, r"tensor_parallel=2.*use engine=native or megatron"),
        ({"layout": {"pipeline_parallel": 2}}, r"pipeline_parallel=2.*use engine=native or megatron"),
        ({"layout": {"context_parallel": 2}}, r"context_parallel=2.*use engine=native"),
        ({"layout": {"zero_stage": 1, "data_parallel_replicate": 2}}, r"data_parallel_replicate=2.*use engine=native"),
        ({"layout": {"zero_stage": 3, "compile": True}}, r"compile=true.*use layout.zero_stage=2"),
        ({"layout": {"zero_stage": 3, "recompute": "selective"}}, r"recompute=selective.*use layout.recompute=full"),
        ({"layout": {"offload": "optimizer"}}, r"needs layout.zero_stage 1, 2 or 3"),
        ({"layout": {"zero_stage": 2, "offload": "parameters"}}, r"need layout.zero_stage=3 with engine=deepspeed, no"),
        ({"layout": {"zero_stage": 3}, "deepspeed": {"offload_optimizer": "nvme"}}, r"=nvme needs deepspeed.nvme_path"),
        (
            {"layout": {"zero_stage": 2}, "deepspeed": {"offload_optimizer": "nvme", "nvme_path": "/nvme"}},
            r"set it, or use cpu",
        ),
        ({"training": {"precision": "fp64"}}, r"precision=fp64.*use engine=native"),
        ({"optimizer": {"kind": "lamb"}}, r"kind=lamb.*use engine=native"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_with_what_to_use_instead(changes, message):
    values = Case(GPT, {}).recipe().model_dump(mode="json")
    assert list(deepspeed_problems(Recipe.model_validate(values), Recipe.model_validate(values).layout, 2)) == []
    for section, keys in changes.items():
        values[section] = values[section] | keys
    recipe = Recipe.model_validate(values)
    (problem,) = deepspeed_problems(recipe, recipe.layout, 2)
    assert re.search(message, problem)
