"""State that DeepSpeed keeps in files: the same curve, and the same bits on the way to checkpoints and back."""

from __future__ import annotations

import pytest

from ptm_dist.engines.deepspeed_swap import prepare_swapping
from ptm_dist.errors import RecipeError
from tests.distributed import run_distributed
from tests.parity.cells import reference_trace
from tests.ptm_dist.deepspeed_cases import Case
from tests.ptm_dist.nvme_cases import Findings, WideProblem, everything, is_built, refusal
from tests.ptm_dist.test_deepspeed import HAS_FP16, deviation, needs_fp16, weight_deviation

PROBLEMS = {
    "gpt2": WideProblem(precision="fp32", steps=10),
    "bert": WideProblem(family="bert", precision="fp32", steps=10),
    "bf16": WideProblem(precision="bf16", steps=4),
    "fp16": WideProblem(precision="fp16", steps=3),
}
PLACES = {
    "memory": {},
    "optimizer": {"offload_optimizer": "nvme"},
    "parameters": {"offload_parameters": "nvme"},
    "both": {"offload_optimizer": "nvme", "offload_parameters": "nvme"},
}
SWAPPED = [("gpt2", "optimizer"), ("gpt2", "both"), ("bert", "both"), ("bf16", "parameters"), ("fp16", "both")]
if not HAS_FP16:
    del PROBLEMS["fp16"], SWAPPED[-1]
ZERO_3 = {"zero_stage": 3}


def case_of(name: str, places: str, folder: str) -> Case:
    section = PLACES[places] | {"nvme_path": folder}
    # The first steps in fp16 overflow at this scale.
    return Case(PROBLEMS[name], ZERO_3, 2, section=section, scale_power=26 if name == "fp16" else None)


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> Findings:
    if not is_built():
        build = "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()"
        pytest.skip(f"async_io is not built, which takes minutes, once: DS_ACCELERATOR=cpu python -c '{build}'")
    folder = tmp_path_factory.mktemp("nvme")
    pairs = [*SWAPPED, *((name, "memory") for name in PROBLEMS)]
    cases = {f"{name} {places}": case_of(name, places, str(folder)) for name, places in pairs}
    native = Case(PROBLEMS["gpt2"], ZERO_3, 2, "native")
    turns = [native, cases["gpt2 both"], native, cases["gpt2 optimizer"]]
    found = run_distributed(everything, 2, cases, turns, folder, timeout=550)[0]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.mark.parametrize(("name", "places"), SWAPPED)
def test_training_with_state_on_nvme_stays_on_the_curve_of_state_in_memory(name, places, findings):
    ours, memory = findings.outcomes[f"{name} {places}"], findings.outcomes[f"{name} memory"]
    # DeepSpeed adds squares up in another order, and so clips otherwise in the last bits.
    loss, norm, weight = (1e-6, 1e-5, 1e-5) if PROBLEMS[name].precision == "fp32" else (5e-5, 1e-3, 1e-3)
    assert ours.skipped == memory.skipped
    assert deviation(ours.trace.losses, memory.trace.losses) < loss
    assert deviation(ours.trace.norms, memory.trace.norms) < norm
    assert weight_deviation(ours.trace, memory.trace) < weight


@pytest.mark.parametrize(("name", "tolerance"), [("gpt2", 3e-6), ("bert", 3e-5)])
def test_the_curve_is_that_of_plain_training(name, tolerance, findings):
    ours, reference = findings.outcomes[f"{name} both"].trace, reference_trace(PROBLEMS[name])
    assert deviation(ours.losses, reference.losses) < tolerance


@needs_fp16
def test_gradients_overflow_in_the_case_that_is_made_for_it(findings):
    assert findings.outcomes["fp16 both"].skipped > 0


@pytest.mark.parametrize(("name", "places"), SWAPPED)
def test_files_lie_in_a_folder_of_the_run_and_rank_and_are_gone_at_the_end(name, places, findings):
    files = findings.files[f"{name} {places}"]
    runs, ranks = {path.split("/")[0] for path in files}, {path.split("/")[1] for path in files}
    assert len(runs) == 1 and runs.pop().startswith("parity-")
    assert ranks == {"rank0", "rank1"}
    kinds = {"optimizer": any("exp_avg_sq" in path for path in files), "parameters": any("param" in p for p in files)}
    assert kinds == {kind: places in (kind, "both") for kind in kinds}
    assert findings.left[f"{name} {places}"] == {}


def test_state_moves_between_nvme_and_the_native_engine_with_the_same_bits(findings):
    assert findings.same == [True] * 3
    assert deviation(findings.losses, findings.outcomes["gpt2 both"].trace.losses[:8]) < 1e-6


def test_a_machine_that_cannot_build_the_operation_is_told_what_to_install(tmp_path):
    message = run_distributed(refusal, 1, case_of("gpt2", "both", str(tmp_path)))[0]
    assert "apt-get install g++ ninja-build libaio-dev" in message


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    recipe = case_of("gpt2", "both", str(tmp_path / "nvme")).recipe()
    with pytest.raises(RecipeError, match=r"nvme_path=.*/nvme is no folder of this machine; make it"):
        prepare_swapping(recipe, 0)
    assert not (tmp_path / "nvme").exists()
