from __future__ import annotations

import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptm_dist.models import build_model
from ptm_dist.recipe.schema import ModelSection, Precision
from ptm_dist.training.flops import data_sheet_peak, flops_per_token, measure_matmul_peak, peak_flops


@pytest.mark.parametrize("ffn_hidden_size", [None, 80])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_full_attention_flops_equal_those_that_torch_counts(ffn_hidden_size: int | None, tie_embeddings: bool):
    section = ModelSection(
        vocab_size=101,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        ffn_hidden_size=ffn_hidden_size,
        tie_embeddings=tie_embeddings,
    )
    model = build_model(section)
    batch, length = 2, 24
    # The math kernel: torch counts the fused ones' recomputation of scores in the backward pass too.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randint(0, 101, (batch, length))).sum().backward()
    assert flops_per_token(section, length).full * batch * length == counter.get_total_flops()


def test_causal_attention_is_half_of_full_attention():
    section = ModelSection(vocab_size=101, hidden_size=32, num_layers=3, num_heads=4)
    short, long = flops_per_token(section, 10), flops_per_token(section, 30)
    assert long.full - short.full == 2 * (long.causal - short.causal)
    assert long.full - short.full == 12 * 3 * 32 * 20


def test_a_large_model_needs_six_operations_per_parameter():
    section = ModelSection(vocab_size=50257, hidden_size=12288, num_layers=96, num_heads=96)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(section).parameters())
    assert flops_per_token(section, 16).full == pytest.approx(6 * parameters, rel=1e-3)


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
