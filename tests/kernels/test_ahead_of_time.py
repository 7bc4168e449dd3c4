"""What the machine code of every kernel needs, on GPUs that are not here: registers, no spills, wide loads and stores.

A kernel that is new needs a row: launch arguments at a usual shape, then what `python -m
tests.kernels.test_ahead_of_time` prints, with some registers more: compilers differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.kernels.compiled import Kernel, MachineCode, Value, launched, measure

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
_DROP = {"key": "*i64", "samples": "*i64", "places": "*i64", "seq": "i32:16", "place_stride": "i32"}
_NO_DROP: dict[str, Value] = {"key": None, "samples": None, "places": None}
_ROW: dict[str, Value] = {"WIDTH": 1024, "BLOCK": 1024, "REAL": "tl.float32", "THRESHOLD": 6554}
_STATISTICS = {"means": "*fp32", "inverses": "*fp32"}
_NORM = {"weight": "*bf16", "bias": "*bf16", **_STATISTICS}
_NORM_BACKWARD = _STATISTICS | {"total": "*bf16", "weight": "*bf16", "of_weight": "*fp32", "of_bias": "*fp32"}
_SHARE = {"rows": "i32:16", "rows_each": "i32"}
_ADD_NORM = _NORM | dict.fromkeys(("branch", "residual", "normed", "total"), "*bf16") | _DROP
_ADD_NORM_BACKWARD = (
    _NORM_BACKWARD | _SHARE | _DROP | dict.fromkeys(("of_normed", "of_total", "of_residual", "of_branch"), "*bf16")
)
_EMBEDDING = _NORM | dict.fromkeys(("token", "position", "segment", "out", "total"), "*bf16") | _DROP
_EMBEDDING_BACKWARD = _NORM_BACKWARD | _SHARE | _DROP | {"of_out": "*bf16", "of_total": "*bf16"}
_LOGITS = {"logits": "*bf16", "targets": "*i64", "statistics": "*fp32", "rows": "i32", "width": "i32:16"} | {
    "stride": "i32:16",
    "begin": "i32",
}
_LOSS: dict[str, Value] = {"IGNORED": -100, "SMOOTHING": 0.0, "SPREAD": 0.0, "Z_LOSS": 0.0, "WIDE": "tl.float32"}
_LOSS |= {"COUNTS_HITS": False, "BLOCK": 4096}


_VECTORS = {f"{name}_{axis}": "i32:16" for name in ("query", "key", "value") for axis in ("sample", "head", "row")}
_ATTENTION = (
    dict.fromkeys(("query", "key", "value"), "*bf16")
    | {"lse": "*fp32"}
    | dict.fromkeys(("words", "samples", "query_places", "key_places"), "*i64")
    | _VECTORS
    | {"heads": "i32", "rows": "i32:16", "columns": "i32:16", "first_head": "i32"}
)
_ATTENTION_OUT = {
    "attention._forward": {"output": "*bf16"},
    "attention_backward._backward_queries": {"means": "*fp32"}
    | dict.fromkeys(("output", "of_output", "of_query"), "*bf16"),
    "attention_backward._backward_keys": {"means": "*fp32"}
    | dict.fromkeys(("of_output", "of_key", "of_value"), "*bf16"),
}
_MASKED = {"mask": "*i1", "mask_sample": "i32:16", "mask_head": "i32:16", "mask_row": "i32:16"}


def _attention(name: str, head: int, rows: int, columns: int, *, masked: bool, warps: int, stages: int) -> Kernel:
    """Causal, or with a mask for each query."""
    constants: dict[str, Value] = {"THRESHOLD": 6554, "CAUSAL": not masked, "BY_KEY": not masked, "IN_OCTETS": True}
    constants |= {"HEAD": head, "WIDTH": head, "SCORE_SCALE": head**-0.5, "ROWS": rows, "COLUMNS": columns}
    constants |= {"DOT": "tl.bfloat16", "REAL": "tl.float32", "mask_column": 1}
    if not masked:
        constants |= {"mask": None, "mask_sample": 0, "mask_head": 0, "mask_row": 0, "mask_column": 0}
    arguments = _ATTENTION | _ATTENTION_OUT[name] | (_MASKED if masked else {})
    return Kernel(name, arguments, constants, warps, stages)


def _rows_of_logits(makes_statistics: bool, makes_gradient: bool, **other: Value) -> Kernel:
    constants = {"MAKES_STATISTICS": makes_statistics, "MAKES_GRADIENT": makes_gradient}
    return Kernel("cross_entropy._rows", _LOGITS, _LOSS | constants | other, warps=8)


def _without(arguments: dict[str, str], *names: str) -> dict[str, str]:
    return {name: kind for name, kind in arguments.items() if name not in names}


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
    "dropout and sum": (
        Kernel(
            "add_norm._drop_add",
            dict.fromkeys(("branch", "residual", "total"), "*bf16") | _DROP,
            _ROW,
        ),
        Limits(40, 2, 1),
    ),
    "sum and norm": (
        Kernel("add_norm._forward", _without(_ADD_NORM, *_NO_DROP), _ROW | _NO_DROP | {"EPS": 1e-5}),
        Limits(40, 4, 2),
    ),
    "dropout, sum and norm": (Kernel("add_norm._forward", _ADD_NORM, _ROW | {"EPS": 1e-5}), Limits(40, 4, 2)),
    "sum and norm backwards": (
        Kernel(
            "add_norm._backward",
            _without(_ADD_NORM_BACKWARD, *_NO_DROP),
            _ROW | _NO_DROP,
        ),
        Limits(72, 4, 5),
    ),
    "dropout, sum and norm backwards": (Kernel("add_norm._backward", _ADD_NORM_BACKWARD, _ROW), Limits(88, 4, 6)),
    "columns of a norm": (
        Kernel(
            "layer_norm._sum_columns",
            _STATISTICS | _SHARE | {"gradients": "*bf16", "total": "*bf16", "of_weight": "*fp32", "of_bias": "*fp32"},
            {"WIDTH": 12288, "BLOCK": 1024, "REAL": "tl.float32"},
        ),
        Limits(56, 2, 4),
    ),
    "embeddings": (
        Kernel("embedding._forward", _EMBEDDING | {"position_stride": "i32"}, _ROW | {"EPS": 1e-12}),
        Limits(40, 5, 2),
    ),
    "embeddings backwards": (Kernel("embedding._backward", _EMBEDDING_BACKWARD, _ROW), Limits(80, 3, 5)),
    "cross entropy": (_rows_of_logits(True, True), Limits(72, 8, 4)),
    "cross entropy with hits": (_rows_of_logits(True, True, COUNTS_HITS=True), Limits(88, 8, 4)),
    "cross entropy of 50257 columns": (
        Kernel(
            "cross_entropy._rows",
            _LOGITS | {"width": "i32"},
            _LOSS | {"MAKES_STATISTICS": True, "MAKES_GRADIENT": True},
            warps=8,
        ),
        Limits(80, 4, 2),
    ),
    "statistics of logits": (_rows_of_logits(True, False), Limits(48, 4, 0)),
    "gradient of logits": (_rows_of_logits(False, True), Limits(72, 4, 4)),
    "attention, heads of 64": (
        _attention("attention._forward", 64, 128, 64, masked=False, warps=8, stages=3),
        Limits(192, 16, 4, tensor_cores=True),
    ),
    "attention, heads of 128, masked": (
        _attention("attention._forward", 128, 64, 64, masked=True, warps=4, stages=2),
        Limits(255, 40, 8, tensor_cores=True),
    ),
    "attention backwards by queries, heads of 64": (
        _attention("attention_backward._backward_queries", 64, 64, 32, masked=False, warps=4, stages=2),
        Limits(184, 20, 4, tensor_cores=True),
    ),
    "attention backwards by queries, heads of 128, masked": (
        _attention("attention_backward._backward_queries", 128, 64, 32, masked=True, warps=4, stages=2),
        Limits(255, 40, 8, tensor_cores=True),
    ),
    "attention backwards by keys, heads of 64": (
        _attention("attention_backward._backward_keys", 64, 32, 64, masked=False, warps=8, stages=2),
        Limits(255, 8, 4, tensor_cores=True),
    ),
    "attention backwards by keys, heads of 128, masked": (
        _attention("attention_backward._backward_keys", 128, 32, 64, masked=True, warps=8, stages=2),
        Limits(255, 16, 8, tensor_cores=True),
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
