"""Initial weights: a function of the seed, the parameter's name and the element's place, nothing else.

Each element's random number is a hash of its index in the whole tensor, so that a rank computes just the box
it holds and every layout starts from the same bits. Computed in float64 on the CPU, whatever the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptm_dist.models.spec import ModelSpec

_CHUNK = 1 << 20
"""Elements per pass: bounds the memory of the float64 intermediates."""


@dataclass(frozen=True)
class Constant:
    """Every element has this value."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Elements are drawn from a normal distribution around 0, if truncated from its middle, two `std` to each side."""

    std: float
    truncated: bool = False


def initial_distribution(name: str, spec: ModelSpec) -> Constant | Normal:
    """How the parameter `name` starts: zero biases, LayerNorm at identity, everything else normal."""
    initial = spec.initial
    if name.endswith("bias"):
        return Constant(0.0)
    if name.endswith("norm.weight"):
        return Constant(1.0)
    if name == "embeddings.position.weight":
        return Normal(initial.position_std, initial.truncated)
    if initial.scaled_residuals and name.endswith(("attention.output.weight", "ffn.down.weight")):
        return Normal(initial.std / math.sqrt(2 * spec.num_layers))
    return Normal(initial.std, initial.truncated)


def fill_initial(
    name: str,
    local: Tensor,
    global_shape: tuple[int, ...],
    offset: tuple[int, ...],
    spec: ModelSpec,
    seed: int,
) -> None:
    """Write the initial values of one box of a parameter.

    Args:
        name: canonical name of the parameter.
        local: the box, written in place; any float dtype, any device, may be empty.
        global_shape: shape of the whole parameter.
        offset: first index of the box in each dimension.
        spec: the model, for its standard deviations.
        seed: of the run.
    """
    distribution = initial_distribution(name, spec)
    if isinstance(distribution, Constant):
        local.fill_(distribution.value)
        return
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    for rows, indices in _indices_by_rows(tuple(local.shape), global_shape, offset):
        draw = _truncated_normal if distribution.truncated else _standard_normal
        local[rows].copy_(torch.from_numpy(draw(random_bits(indices, key)) * distribution.std))


def _indices_by_rows(
    shape: tuple[int, ...], global_shape: tuple[int, ...], offset: tuple[int, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Index of each element in the flattened whole tensor, a few rows of the box at a time."""
    if math.prod(shape) == 0:
        return
    strides = [math.prod(global_shape[dim + 1 :]) for dim in range(len(global_shape))]
    step = max(1, _CHUNK // math.prod(shape[1:]))
    for begin in range(0, shape[0], step):
        end = min(begin + step, shape[0])
        indices = np.zeros((1,) * len(shape), dtype=np.uint64)
        for dim, (first, size) in enumerate(zip((begin, *(0,) * (len(shape) - 1)), shape, strict=True)):
            last = end if dim == 0 else size
            along = np.arange(offset[dim] + first, offset[dim] + last, dtype=np.uint64) * np.uint64(strides[dim])
            indices = indices + along.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        yield slice(begin, end), indices


def random_bits(indices: np.ndarray, key: int) -> np.ndarray:
    """64 random bits per index, uint64, for a key of 64 bits: SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        bits = (indices + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return bits


def _standard_normal(bits: np.ndarray) -> np.ndarray:
    """Box-Muller on the two halves."""
    radius = ((bits >> np.uint64(32)) + np.uint64(1)) * 2.0**-32
    angle = (bits & np.uint64(0xFFFFFFFF)) * (2.0 * math.pi * 2.0**-32)
    return np.asarray(np.sqrt(-2.0 * np.log(radius)) * np.cos(angle))


def _truncated_normal(bits: np.ndarray) -> np.ndarray:
    """The inverse of the distribution function, from -2 to 2."""
    tail = 0.5 * math.erfc(math.sqrt(2.0))
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(tail + (1.0 - 2.0 * tail) * uniform)).numpy()
