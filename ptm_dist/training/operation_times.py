"""A table for people of the operations that a profile holds, by the time each takes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import profile

_LONGEST_NAME = 60


@dataclass(frozen=True)
class Spent:
    """Time of one operation on tensors of certain shapes.

    Attributes:
        name: of the operation, or of the kernel.
        shapes: of its tensors, such as `8x128x768, 768`; empty for a kernel.
        calls: of a step.
        milliseconds: of a step, without what other operations take that it calls.
    """

    name: str
    shapes: str
    calls: float
    milliseconds: float


def operations(profiled: profile, steps: int, *, on_device: bool) -> list[Spent]:
    """Operations of the host side, the dearest first.

    Args:
        profiled: holds `steps` steps, with shapes.
        steps: how many.
        on_device: count the time of the kernels that an operation itself starts, and not its time on the CPU.
    """
    found = []
    for event in profiled.key_averages(group_by_input_shape=True):
        micros = event.self_device_time_total if on_device else event.self_cpu_time_total
        if event.device_type == DeviceType.CPU and micros > 0 and not (on_device and event.is_user_annotation):
            found.append(Spent(_name(event), _shapes(event.input_shapes), event.count / steps, micros / 1000 / steps))
    return _dearest_first(found)


def kernels(profiled: profile, steps: int) -> list[Spent]:
    """What ran on the device, copies included, the dearest first; arguments as in :func:`operations`."""
    found = [
        Spent(event.key, "", event.count / steps, event.self_device_time_total / 1000 / steps)
        for event in profiled.key_averages()
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    ]
    return _dearest_first(found)


def total(spent: Sequence[Spent]) -> float:
    """Milliseconds of a step."""
    return sum(each.milliseconds for each in spent)


def table(title: str, spent: Sequence[Spent], rows: int) -> str:
    """The first `rows` of them, each with its share of all, under a heading."""
    whole = total(spent) or 1.0
    lines = [title, "", f"{'share':>6} {'ms/step':>10} {'calls/step':>10}  operation"]
    lines += [_row(whole, [each], f"{_short(each.name)} {each.shapes}") for each in spent[:rows]]
    if rest := spent[rows:]:
        lines.append(_row(whole, rest, "the rest"))
    return "\n".join([*lines, ""])


def _row(whole: float, spent: Sequence[Spent], name: str) -> str:
    milliseconds, calls = total(spent), sum(each.calls for each in spent)
    return f"{milliseconds / whole:6.1%} {milliseconds:10.3f} {calls:10.6g}  {name}".rstrip()


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _name(event: Any) -> str:
    """The profiler brackets each step: what is left of that is Python between operations, and waiting."""
    return "(between operations)" if event.key.startswith("ProfilerStep") else event.key


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes if shape)


def _dearest_first(spent: list[Spent]) -> list[Spent]:
    return sorted(spent, key=lambda each: -each.milliseconds)
