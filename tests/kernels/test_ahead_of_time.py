"""What the machine code of every kernel needs, on GPUs that are not here: registers, no spills, wide loads and stores.

A kernel that is new needs a row: launch arguments at a usual shape, then what `python -m
tests.kernels.test_ahead_of_time` prints, with some registers more: compilers differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.kernels.compiled import Kernel, MachineCode, launched, measure

pytest.importorskip("triton")

ARCHITECTURES = (80, 90)
"""Of the A100, and of the H100 and H200."""


@dataclass(frozen=True)
class Limits:
    """Of one kernel on every architecture.

    Attributes:
        registers: at most, of a thread.
        wide_loads: at least so many loads of 128 bits.
        wide_stores: at least so many stores of 128 bits.
        tensor_cores: whether it multiplies matrices by them.
    """

    registers: int
    wide_loads: int
    wide_stores: int
    tensor_cores: bool = False


_MOMENTS = dict.fromkeys(("beta1", "rest1", "beta2", "rest2", "root_factor", "eps"), "fp32")
_STATE = {"weights": "*fp32", "firsts": "*fp32", "seconds": "*fp32"}
_GELU = {"hidden": "*bf16", "bias": "*bf16", "out": "*bf16", "rows": "i32:16", "width": "i32:16"}
_GELU_BACKWARD = _GELU | {"gradients": "*bf16", "sums": "*fp32", "tiles": "i32:16"}
_TILE = {"KIND": "tl.float32", "ROWS": 4, "COLUMNS": 512}

TABLE: dict[str, tuple[Kernel, Limits]] = {
    "adamw": (
        Kernel(
            "optimizer._adamw",
            _STATE
            | _MOMENTS
            | {"gradients": "*fp32", "divisor": "*fp32", "size": "i32:16", "rate": "fp32", "shrink": "fp32"},
            {"copy": None, "BLOCK": 1024},
        ),
        Limits(64, 8, 6),
    ),
    "adamw, bfloat16 gradient and copy": (
        Kernel(
            "optimizer._adamw",
            _STATE
            | _MOMENTS
            | {"gradients": "*bf16", "copy": "*bf16", "size": "i32:16", "rate": "fp32", "shrink": "fp32"},
            {"divisor": None, "BLOCK": 1024},
        ),
        Limits(64, 7, 7),
    ),
    "lamb, first half": (
        Kernel(
            "optimizer._lamb_update",
            _STATE
            | _MOMENTS
            | {"gradients": "*fp32", "updates": "*fp32", "squares": "*fp32", "divisor": "*fp32"}
            | {"width": "i32:16", "blocks": "i32", "programs": "i32", "first_factor": "fp32", "weight_decay": "fp32"},
            {"BLOCK": 1024},
        ),
        Limits(64, 8, 6),
    ),
    "lamb, second half": (
        Kernel(
            "optimizer._lamb_apply",
            {"weights": "*fp32", "updates": "*fp32", "factors": "*fp32", "width": "i32:16", "blocks": "i32"},
            {"copy": None, "BLOCK": 1024},
        ),
        Limits(32, 4, 2),
    ),
    "gelu": (Kernel("bias_gelu._forward", _GELU, _TILE | {"TANH": False}), Limits(48, 2, 2)),
    "gelu, tanh": (Kernel("bias_gelu._forward", _GELU, _TILE | {"TANH": True}), Limits(40, 2, 2)),
    "gelu backwards": (Kernel("bias_gelu._backward", _GELU_BACKWARD, _TILE | {"TANH": False}), Limits(80, 4, 3)),
    "gelu backwards, tanh": (Kernel("bias_gelu._backward", _GELU_BACKWARD, _TILE | {"TANH": True}), Limits(80, 4, 3)),
}


def measured() -> dict[str, dict[int, MachineCode]]:
    return dict(zip(TABLE, measure([kernel for kernel, _ in TABLE.values()], ARCHITECTURES), strict=True))


@pytest.fixture(scope="module")
def code() -> dict[str, dict[int, MachineCode]]:
    return measured()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", TABLE)
def test_machine_code_keeps_within_its_limits(code, name, architecture):
    found, limits = code[name][architecture], TABLE[name][1]
    assert found.spilled == 0
    assert found.registers <= limits.registers
    assert found.wide_loads >= limits.wide_loads
    assert found.wide_stores >= limits.wide_stores
    assert (found.tensor_cores > 0) == limits.tensor_cores


def test_every_kernel_that_is_launched_has_a_row():
    assert {kernel.name for kernel, _ in TABLE.values()} == launched()


if __name__ == "__main__":
    for key, by_architecture in measured().items():
        for number, needs in by_architecture.items():
            print(f"{key:40s} sm_{number} {needs}")
