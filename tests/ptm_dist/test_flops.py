from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptm_dist.models import build_model
from ptm_dist.recipe.schema import Precision, Recipe
from ptm_dist.training.flops import (
    data_sheet_peak,
    flops_per_sample,
    flops_per_token,
    measure_matmul_peak,
    peak_flops,
    predictions_per_sample,
)
from tests.ptm_dist.recipes import small_recipe

LENGTH = 23
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt1": {},
    "gpt2": {},
    # A narrower one would be computed in blocks, which leave out what the convention counts.
    "gpt3": {"model__attention_band": 8},
    "bert": {"objective__kind": "mlm_nsp", "objective__max_predictions": 2},
    "roberta": {"objective__kind": "mlm"},
    "albert": {"objective__kind": "mlm_sop", "model__embedding_size": 12},
}


def recipe_of(family: str, **values: Any) -> Recipe:
    shape = {"model__vocab_size": 101, "model__num_layers": 3, "data__sequence_length": LENGTH}
    return small_recipe(**{**shape, "model__family": family, **FAMILIES[family], **values})


def flops_that_torch_counts(recipe: Recipe, samples: int, predictions: int) -> int:
    model = build_model(recipe.model)
    ids = torch.randint(0, recipe.model.vocab_size, (samples, LENGTH))
    masked = recipe.objective.kind != "causal"
    valid = torch.ones(samples, LENGTH, dtype=torch.bool) if masked else None
    positions = torch.arange(samples * predictions) if masked else None
    # The math kernel: torch counts the fused ones' recomputation of scores in the backward pass too.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(ids, torch.zeros_like(ids), valid, positions)
        sum(logits.sum() for logits in output if logits is not None).backward()
    return counter.get_total_flops()


# torch counts matrix products, as we do: embeddings' lookups and gradients, norms and sums are none.
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("other", [{}, {"model__ffn_hidden_size": 80}, {"model__tie_embeddings": False}])
def test_full_attention_flops_equal_those_that_torch_counts(family: str, other: dict[str, Any]):
    recipe = recipe_of(family, **other)
    # 15% of 23 tokens are 3.45.
    predictions = {"bert": 2, "roberta": 3, "albert": 3}.get(family, LENGTH)
    ours = flops_per_sample(recipe, LENGTH)
    assert 2 * ours.full == flops_that_torch_counts(recipe, 2, predictions)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_costs_its_share_of_a_sample(family: str):
    sample, token = flops_per_sample(recipe_of(family), LENGTH), flops_per_token(recipe_of(family), LENGTH)
    # Rounded to a whole number.
    assert abs(token.full * LENGTH - sample.full) <= LENGTH / 2
    assert abs(token.causal * LENGTH - sample.causal) <= LENGTH / 2


def test_causal_attention_is_half_of_full_attention():
    recipe = recipe_of("gpt2")
    short, long = flops_per_token(recipe, 10), flops_per_token(recipe, 30)
    assert long.full - short.full == 2 * (long.causal - short.causal)
    assert long.full - short.full == 12 * 3 * 32 * 20


def test_a_banded_layer_costs_the_area_of_its_band():
    dense, banded = (flops_per_sample(recipe_of("gpt3", model__attention_band=band), 200) for band in (0, 20))
    assert dense.full == banded.full
    # Of three layers the second is banded. The area under min(place, 20) for places from 0 to 200, not of 200 squared
    # / 2, for scores and for mixed values.
    saved = 200 * 200 / 2 - (20 * 20 / 2 + 180 * 20)
    assert dense.causal - banded.causal == 3 * 2 * 2 * 32 * saved
    assert flops_per_sample(recipe_of("gpt3", model__attention_band=1000), 200) == dense


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_an_encoder_hides_nothing_so_both_conventions_are_equal(family: str):
    flops = flops_per_token(recipe_of(family), LENGTH)
    assert flops.full == flops.causal


def test_shared_layers_cost_as_much_as_layers_of_their_own():
    shared, own = recipe_of("albert"), recipe_of("albert", model__layer_groups=3)
    assert flops_per_sample(shared, LENGTH) == flops_per_sample(own, LENGTH)


def test_a_phase_predicts_as_many_tokens_as_its_own_limit_allows():
    phase = {"until_step": 5, "sequence_length": 16, "max_predictions": 1}
    recipe = recipe_of("roberta", training__phases=[phase], objective__max_predictions=3)
    # 15% of 16 are 2, of 23 are 3, of 60 are 9.
    assert [predictions_per_sample(recipe, length) for length in (16, LENGTH, 60)] == [1, 3, 3]
    without = recipe_of("roberta", training__phases=[{**phase, "max_predictions": None}])
    assert predictions_per_sample(without, 16) == 2
    assert predictions_per_sample(recipe_of("gpt2"), 16) == 16


def test_a_large_model_needs_six_operations_per_parameter():
    size = {"vocab_size": 50257, "hidden_size": 12288, "num_layers": 96, "num_heads": 96, "max_positions": 1024}
    recipe = small_recipe(**{f"model__{key}": value for key, value in size.items()})
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(recipe.model).parameters())
    assert flops_per_token(recipe, 16).full == pytest.approx(6 * parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", Precision.BF16, False, 312.0),
        ("NVIDIA A100-SXM4-80GB", Precision.FP32, True, 156.0),
        ("NVIDIA H100 80GB HBM3", Precision.BF16, False, 989.4),
        ("NVIDIA H100 PCIe", Precision.BF16, False, 756.0),
        ("NVIDIA H200", Precision.BF16, True, 989.4),
        ("NVIDIA H200 NVL", Precision.BF16, False, 835.5),
        ("NVIDIA B200", Precision.BF16, False, 2250.0),
        ("NVIDIA L40S", Precision.FP32, False, 91.6),
        ("NVIDIA A10", Precision.BF16, False, 125.0),
        ("NVIDIA GeForce RTX 4090", Precision.BF16, False, 165.2),
        ("Tesla V100-SXM2-16GB", Precision.FP32, True, 15.7),
        ("AMD Instinct MI300X", Precision.BF16, False, 1307.4),
    ],
)
def test_known_devices_have_their_data_sheet_peak(device: str, precision: Precision, tf32: bool, tera: float):
    peak = data_sheet_peak(device, precision, use_tf32=tf32)
    assert peak is not None
    assert peak.flops_per_second == tera * 1e12
    assert peak.source.startswith("data sheet: ")


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("NVIDIA A100X", Precision.BF16),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", Precision.BF16),
        ("NVIDIA GeForce RTX 4090 D", Precision.BF16),
        ("Tesla V100-SXM2-16GB", Precision.BF16),
        ("NVIDIA L40S", Precision.FP64),
    ],
)
def test_devices_and_precisions_without_a_data_sheet_have_none(device: str, precision: Precision):
    assert data_sheet_peak(device, precision, use_tf32=False) is None


def test_the_peak_of_a_cpu_is_measured_briefly_and_said_to_be():
    device = torch.device("cpu")
    peak = peak_flops(device, Precision.FP32)
    assert "measured" in peak.source
    begin = time.process_time()
    assert measure_matmul_peak(device, torch.float32) > 1e8
    assert time.process_time() - begin < 1.0
