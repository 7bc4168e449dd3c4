"""Floating-point operations of training, counted matrix by matrix, and the peak rates they are compared with."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from data_pipeline.samples.masking import MaskingPolicy
from ptm_dist.models import model_spec
from ptm_dist.models.spec import ModelSpec
from ptm_dist.recipe.phases import phases
from ptm_dist.recipe.schema import Precision, Recipe


@dataclass(frozen=True)
class TokenFlops:
    """Model FLOPs to train on one token, or on a whole sample: forward and backward, a multiply-add as two.

    Matrix products only, heads included; embedding lookups and their gradients, sums and recomputation excluded
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Attention is counted by two conventions.

    Attributes:
        full: every position attends to all S positions: the convention of nanoGPT, PaLM and Megatron-LM.
        causal: what a kernel computes that skips what a position does not see: S / 2 positions on average, fewer in
            a banded layer. An encoder hides nothing from a position, so the two are equal there.
    """

    full: int
    causal: int


def flops_per_token(recipe: Recipe, sequence_length: int) -> TokenFlops:
    """FLOPs per token of training on samples of `sequence_length` tokens, padding included, as a whole number.

    A masked language model's head works at the predicted positions only, so that a token's share of it depends on
    the objective, and on the length.
    """
    sample = flops_per_sample(recipe, sequence_length)
    return TokenFlops(full=round(sample.full / sequence_length), causal=round(sample.causal / sequence_length))


def flops_per_sample(recipe: Recipe, sequence_length: int) -> TokenFlops:
    """FLOPs of training on one sample of `sequence_length` tokens; exact.

    The backward pass of a matrix product is two such products, so training is three times the forward pass.
    """
    spec = model_spec(recipe.model)
    hidden, ffn, length = spec.block.hidden_size, spec.block.ffn_hidden_size, sequence_length
    weights = length * spec.num_layers * (4 * hidden * hidden + 2 * hidden * ffn)
    if spec.embedding.size != hidden:
        weights += length * spec.embedding.size * hidden
    weights += _head_products(spec, predictions_per_sample(recipe, length))
    full = weights + spec.num_layers * 2 * hidden * length * length
    causal = weights + sum(hidden * _visible_twice(spec, layer, length) for layer in range(spec.num_layers))
    return TokenFlops(full=3 * 2 * full, causal=3 * 2 * (causal if spec.block.causal else full))


def predictions_per_sample(recipe: Recipe, sequence_length: int) -> int:
    """Tokens to predict in one sample without padding, the most there can be.

    Args:
        recipe: its objective says how many; the phases whose samples are that long may have a limit of their own.
        sequence_length: tokens of the sample.
    """
    objective = recipe.objective
    if objective.kind == "causal":
        return sequence_length
    limits = [phase.max_predictions for phase in phases(recipe) if phase.sequence_length == sequence_length]
    return max(
        MaskingPolicy(objective.mask_fraction, limit).predictions(sequence_length)
        for limit in limits or [objective.max_predictions]
    )


def _head_products(spec: ModelSpec, predictions: int) -> int:
    """Multiply-adds of all heads for one sample."""
    hidden, width = spec.block.hidden_size, spec.embedding.size
    products = predictions * width * spec.embedding.vocab_size
    if not spec.block.causal:
        products += predictions * hidden * width
    return products + (hidden * hidden + 2 * hidden if spec.pair_head else 0)


def _visible_twice(spec: ModelSpec, layer: int, length: int) -> int:
    """Twice the pairs of positions of which one sees the other: a triangle, cut off where a band ends."""
    band = min(spec.band_of(layer) or length, length)
    return 2 * length * band - band * band


@dataclass(frozen=True)
class PeakRate:
    """The most operations per second a device could do.

    Attributes:
        flops_per_second: of one device, dense.
        source: where the number comes from, for people: a data sheet or a measurement.
    """

    flops_per_second: float
    source: str


@dataclass(frozen=True)
class _DataSheet:
    """Dense peaks in TFLOP/s by number format, on matrix units where the device has them; None: no such units."""

    name: str
    pattern: str
    bf16: float | None
    tf32: float | None
    fp32: float
    fp64: float | None


# More specific names first. Vendors' data sheets; figures given there with sparsity are halved. The RTX 4090's
# bf16 is the rate with float32 accumulation, which is what torch uses.
_DATA_SHEETS = (
    _DataSheet("NVIDIA B200", r"\bB200\b", 2250.0, 1125.0, 75.0, 37.0),
    _DataSheet("NVIDIA H200 NVL", r"\bH200 NVL\b", 835.5, 417.5, 60.0, 60.0),
    _DataSheet("NVIDIA H200 SXM", r"\bH200\b", 989.4, 494.7, 66.9, 66.9),
    _DataSheet("NVIDIA H100 NVL", r"\bH100 NVL\b", 835.5, 417.5, 60.0, 60.0),
    _DataSheet("NVIDIA H100 PCIe", r"\bH100 PCIe\b", 756.0, 378.0, 51.0, 51.0),
    _DataSheet("NVIDIA H100 SXM", r"\bH100\b", 989.4, 494.7, 66.9, 66.9),
    _DataSheet("NVIDIA A100", r"\bA100\b", 312.0, 156.0, 19.5, 19.5),
    _DataSheet("NVIDIA L40S", r"\bL40S\b", 362.05, 183.0, 91.6, None),
    _DataSheet("NVIDIA A10", r"\bA10\b", 125.0, 62.5, 31.2, None),
    _DataSheet("NVIDIA GeForce RTX 4090", r"\bRTX 4090(?! (?:D|Laptop))\b", 165.2, 82.6, 82.6, None),
    _DataSheet("NVIDIA V100 SXM2", r"\bV100-SXM2\b", None, None, 15.7, 7.8),
    _DataSheet("NVIDIA V100 PCIe", r"\bV100-PCIE\b", None, None, 14.0, 7.0),
    _DataSheet("AMD Instinct MI300X", r"\bMI300X\b", 1307.4, 653.7, 163.4, 163.4),
)

_DTYPES = {
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP32: torch.float32,
    Precision.FP64: torch.float64,
}


def peak_flops(device: torch.device, precision: Precision) -> PeakRate:
    """Peak of one device for a precision: from its data sheet if it is known, else measured in 0.2 s.

    Args:
        device: where the run computes.
        precision: of the step; float32 means TF32 where torch is allowed to use it.
    """
    if device.type == "cuda":
        use_tf32 = torch.get_float32_matmul_precision() != "highest"
        listed = data_sheet_peak(torch.cuda.get_device_name(device), precision, use_tf32=use_tf32)
        if listed is not None:
            return listed
    dtype = _DTYPES[precision]
    place = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)
    return PeakRate(measure_matmul_peak(device, dtype), f"measured: {dtype} matrix product on {place}")


def data_sheet_peak(device_name: str, precision: Precision, *, use_tf32: bool) -> PeakRate | None:
    """Dense peak by the device's name; None if the device, or this precision on it, is not listed.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        precision: of the step.
        use_tf32: whether float32 products may be rounded to TF32.
    """
    for sheet in _DATA_SHEETS:
        if re.search(sheet.pattern, device_name):
            break
    else:
        return None
    if precision is Precision.FP32 and use_tf32 and sheet.tf32 is not None:
        return PeakRate(sheet.tf32 * 1e12, f"data sheet: {sheet.name}, tf32 dense")
    listed = {
        Precision.BF16: sheet.bf16,
        Precision.FP16: sheet.bf16,
        Precision.FP32: sheet.fp32,
        Precision.FP64: sheet.fp64,
    }
    tera = listed[precision]
    if tera is None:
        return None
    return PeakRate(tera * 1e12, f"data sheet: {sheet.name}, {precision.value} dense")


def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square matrix products on `device`, in less than about 0.2 s of work."""
    size = 512 if device.type == "cpu" else 4096
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    deadline = time.perf_counter() + 0.15
    while fastest == float("inf") or time.perf_counter() < deadline:
        begin = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - begin)
    return 2.0 * size**3 / fastest
