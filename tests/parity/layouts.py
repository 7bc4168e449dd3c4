"""The layouts of the parity table: every way to share a model alone, and their products to eight processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEDULE_FILE = Path(__file__).with_name("schedule.csv")
"""Two ranks with a stage each and four micro-batches, in an order that no published schedule has."""


@dataclass(frozen=True)
class Setting:
    """Where a problem is computed.

    Attributes:
        name: for people.
        world_size: processes.
        layout: the recipe's section.
        accumulation: micro-batches of a step, about.
        precision: of the step.
    """

    name: str
    world_size: int
    layout: dict[str, Any]
    accumulation: int = 1
    precision: str = "fp64"


def _zero(stage: int, **layout: Any) -> dict[str, Any]:
    return {"zero_stage": stage, **layout}


def _tensor(size: int, *, sequence: bool = False, **layout: Any) -> dict[str, Any]:
    return {"tensor_parallel": size, "sequence_parallel": sequence, **layout}


def _context(size: int, method: str = "ring", **layout: Any) -> dict[str, Any]:
    return {"context_parallel": size, "context_method": method, **layout}


def _pipeline(size: int, schedule: str = "1f1b", **layout: Any) -> dict[str, Any]:
    return {"pipeline_parallel": size, "pipeline_schedule": schedule, **layout}


_SPLITTING = ("interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev")
_SEVERAL_STAGES = ("looped_bfs", "interleaved_1f1b", *_SPLITTING)

ALONE = [
    Setting("one process", 1, {}),
    Setting("one process, 3 micro-batches", 1, {}, 3),
    Setting("one process, recompute full", 1, {"recompute": "full"}, 3),
    Setting("one process, recompute every 2nd", 1, {"recompute": "full", "recompute_every": 2}, 3),
    Setting("one process, recompute selective", 1, {"recompute": "selective"}, 3),
    Setting("one process, parameters on the host", 1, {"offload": "parameters"}, 3),
    Setting("one process, activations on the host", 1, {"offload_activations": True}, 3),
]
DATA = [
    Setting("DP 2", 2, {}, 3),
    Setting("ZeRO-1 x2", 2, _zero(1), 3),
    Setting("ZeRO-2 x2", 2, _zero(2), 3),
    Setting("ZeRO-3 x2", 2, _zero(3), 3),
    Setting("ZeRO-3 x2, recompute full", 2, _zero(3, recompute="full"), 3),
    Setting("ZeRO-3 x2, recompute selective", 2, _zero(3, recompute="selective"), 3),
    Setting("DP 2, optimizer on the host", 2, {"offload": "optimizer"}, 3),
    Setting("ZeRO-3 x2, parameters on the host", 2, _zero(3, offload="parameters"), 3),
    Setting("ZeRO-3 x2, activations on the host", 2, _zero(3, offload_activations=True), 3),
    Setting("DP 3", 3, {}, 3),
    Setting("ZeRO-1 x3", 3, _zero(1), 1),
    Setting("ZeRO-3 x3", 3, _zero(3), 3),
    Setting("DP 4", 4, {}, 1),
    Setting("HSDP 2x2 (ZeRO-1)", 4, _zero(1, data_parallel_replicate=2), 3),
    Setting("HSDP 2x2 (ZeRO-2)", 4, _zero(2, data_parallel_replicate=2), 3),
    Setting("HSDP 2x2 (ZeRO-3)", 4, _zero(3, data_parallel_replicate=2), 3),
]
TENSOR = [
    Setting("TP 2", 2, _tensor(2), 3),
    Setting("TP 2, recompute full", 2, _tensor(2, recompute="full")),
    Setting("TP 2 + SP", 2, _tensor(2, sequence=True), 3),
    Setting("TP 2 + SP, recompute selective", 2, _tensor(2, sequence=True, recompute="selective")),
    Setting("TP 3 (heads 2, 1, 1)", 3, _tensor(3), 3),
    Setting("TP 3 + SP (positions 3, 3, 2)", 3, _tensor(3, sequence=True)),
    Setting("TP 4", 4, _tensor(4), 3),
    Setting("TP 4 + SP", 4, _tensor(4, sequence=True), 3),
    Setting("DP 2, TP 2 + SP", 4, _tensor(2, sequence=True), 3),
    Setting("ZeRO-1 x2, TP 2 + SP", 4, _tensor(2, sequence=True, zero_stage=1), 3),
    Setting("ZeRO-2 x2, TP 2 + SP", 4, _tensor(2, sequence=True, zero_stage=2), 3),
    Setting("ZeRO-3 x2, TP 2", 4, _tensor(2, zero_stage=3), 3),
    Setting("ZeRO-3 x2, TP 2 + SP", 4, _tensor(2, sequence=True, zero_stage=3, recompute="full"), 3),
]
CONTEXT = [
    Setting("CP 2 ring", 2, _context(2), 3),
    Setting("CP 2 ring, recompute full", 2, _context(2, recompute="full"), 3),
    Setting("CP 2 ring, recompute selective", 2, _context(2, recompute="selective")),
    Setting("CP 2 Ulysses", 2, _context(2, "ulysses"), 3),
    Setting("CP 2 Ulysses, ZeRO-3", 2, _context(2, "ulysses", zero_stage=3), 3),
    Setting("CP 3 ring (positions 4, 2, 2)", 3, _context(3), 1),
    Setting("CP 3 Ulysses (heads 2, 1, 1)", 3, _context(3, "ulysses"), 1),
    Setting("CP 4 ring", 4, _context(4), 1),
    Setting("CP 4 Ulysses", 4, _context(4, "ulysses"), 1),
    Setting("CP 2 ring, DP 2", 4, _context(2), 3),
    Setting("CP 2 ring, ZeRO-3 x2", 4, _context(2, zero_stage=3), 3),
    Setting("CP 2 ring, TP 2 + SP", 4, _context(2, tensor_parallel=2, sequence_parallel=True), 3),
    Setting("CP 2 Ulysses, TP 2", 4, _context(2, "ulysses", tensor_parallel=2), 3),
]
PIPELINE = [
    Setting("PP 2 gpipe", 2, _pipeline(2, "gpipe"), 4),
    Setting("PP 2 1f1b", 2, _pipeline(2), 4),
    Setting("PP 2 1f1b, one micro-batch", 2, _pipeline(2), 1),
    Setting("PP 2 1f1b, recompute full", 2, _pipeline(2, recompute="full"), 4),
    *(Setting(f"PP 2 {schedule}", 2, _pipeline(2, schedule), 4) for schedule in _SEVERAL_STAGES),
    Setting("PP 2 dualpipev, recompute full", 2, _pipeline(2, "dualpipev", recompute="full"), 4),
    Setting("PP 2, schedule of a file", 2, _pipeline(2, "file", pipeline_schedule_file=SCHEDULE_FILE), 4),
    Setting("PP 3 1f1b, cut by hand", 3, _pipeline(3, pipeline_split=(1, 4)), 6),
    Setting("PP 4 1f1b", 4, _pipeline(4), 6),
    Setting("PP 2 1f1b, DP 2", 4, _pipeline(2), 3),
    *(Setting(f"PP 2 1f1b, ZeRO-{stage} x2", 4, _pipeline(2, zero_stage=stage), 3) for stage in (1, 2, 3)),
    *(Setting(f"PP 2 {schedule}, ZeRO-3 x2", 4, _pipeline(2, schedule, zero_stage=3), 3) for schedule in _SPLITTING),
    Setting(
        "PP 2 zbv_zero_bubble, activations on the host", 2, _pipeline(2, "zbv_zero_bubble", offload_activations=True), 4
    ),
    Setting("PP 2 zbv_zero_bubble, ZeRO-2 x2", 4, _pipeline(2, "zbv_zero_bubble", zero_stage=2), 3),
    Setting("PP 2 1f1b, TP 2 + SP", 4, _pipeline(2, tensor_parallel=2, sequence_parallel=True), 4),
    Setting("PP 2 1f1b, ZeRO-2 x2, parameters on the host", 4, _pipeline(2, zero_stage=2, offload="parameters"), 3),
    Setting("PP 2 1f1b, TP 2, optimizer on the host", 4, _pipeline(2, tensor_parallel=2, offload="optimizer"), 3),
    Setting("PP 2 dualpipev, TP 2", 4, _pipeline(2, "dualpipev", tensor_parallel=2), 4),
    Setting("PP 2 interleaved_1f1b, CP 2 ring", 4, _pipeline(2, "interleaved_1f1b", context_parallel=2), 4),
    Setting("PP 2 zbv_zero_bubble, CP 2 ring", 4, _pipeline(2, "zbv_zero_bubble", context_parallel=2), 4),
]
_ALL_THREE = {"tensor_parallel": 2, "sequence_parallel": True}
_CONTEXT_AND_TENSOR = {"context_parallel": 2, "tensor_parallel": 2}
EIGHT = [
    Setting("ZeRO-1 x2, TP 2 + SP, PP 2", 8, _pipeline(2, zero_stage=1, **_ALL_THREE), 3),
    Setting("ZeRO-3 x2, TP 2 + SP, PP 2", 8, _pipeline(2, zero_stage=3, **_ALL_THREE), 3),
    Setting("ZeRO-3 x2, TP 2 + SP, PP 2 zbv", 8, _pipeline(2, "zbv_zero_bubble", zero_stage=3, **_ALL_THREE), 3),
    Setting("HSDP 2x2 (ZeRO-3), PP 2", 8, _pipeline(2, zero_stage=3, data_parallel_replicate=2), 3),
    Setting("CP 2 ring, ZeRO-3 x2, PP 2", 8, _pipeline(2, zero_stage=3, context_parallel=2), 3),
    Setting("CP 2 Ulysses, TP 2 + SP, ZeRO-2 x2", 8, _context(2, "ulysses", zero_stage=2, **_ALL_THREE), 3),
    Setting(
        "CP 2 ring, TP 2, PP 2, recompute full",
        8,
        _pipeline(2, context_parallel=2, tensor_parallel=2, recompute="full"),
        3,
    ),
    Setting("PP 4 1f1b, TP 2 + SP", 8, _pipeline(4, **_ALL_THREE), 4),
]
NUMBERS = [
    *(
        Setting(f"{setting.name}, {precision}", setting.world_size, setting.layout, setting.accumulation, precision)
        for setting in (ALONE[1], DATA[3], TENSOR[2], CONTEXT[0], PIPELINE[1], PIPELINE[7])
        for precision in ("fp32", "bf16")
    )
]
DOUBLE = [*ALONE, *DATA, *TENSOR, *CONTEXT, *PIPELINE, *EIGHT]
EVERY = [*DOUBLE, *NUMBERS]
