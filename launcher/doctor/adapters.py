"""InfiniBand and RoCE adapters, by what the kernel says of their ports; nothing where there are none."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.findings import Finding, Level

_ADAPTERS = Path("/sys/class/infiniband")
_ACTIVE = "ACTIVE"
_WHAT = "network adapters"


def adapter_findings(adapters: Path = _ADAPTERS) -> tuple[Finding, ...]:
    """Whether all ports are up, and whether a process may lock the memory that they read and write.

    Args:
        adapters: folder in which the kernel describes them, as in its documentation of `/sys/class/infiniband`.
    """
    states = dict(_states(adapters))
    if not states:
        return ()
    down = [f"{port} is {state}" for port, state in states.items() if state != _ACTIVE]
    if down:
        advice = "look at cables and switch; NCCL_IB_HCA leaves ports out that are not meant to be used"
        return (Finding(Level.WARNING, _WHAT, ", ".join(down), advice), *_locked_memory())
    return (Finding(Level.OK, _WHAT, f"{len(states)} ports are up"), *_locked_memory())


def _states(adapters: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(adapters.glob("*/ports/*/state")):
        try:
            text = path.read_text(encoding="ascii")
        except OSError:
            continue
        # As in `4: ACTIVE`.
        yield f"{path.parts[-4]} port {path.parts[-2]}", text.partition(":")[2].strip()


def _locked_memory() -> tuple[Finding, ...]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ()
    detail = f"a process may lock {soft >> 10:,} KiB, and adapters need all that they send from"
    return (Finding(Level.WARNING, "locked memory", detail, "ulimit -l unlimited, also for jobs of the scheduler"),)
