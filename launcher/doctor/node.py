"""The examination of one node, in about a second."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.doctor.adapters import adapter_findings
from launcher.doctor.findings import Finding, Gpu, Level, Needs, NodeReport
from launcher.doctor.gpus import GpuExamination
from launcher.doctor.host import cores, host_findings, memory_free, shm_free
from launcher.doctor.probe import Answer, Probe
from launcher.doctor.storage import start_storage, storage_findings
from launcher.doctor.versions import DRIVER, versions

ARITHMETIC = "arithmetic"
ADVICE = "leave this node out and test its devices"
_COMPUTE_SECONDS = 180.0


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """This node's name in a run: Slurm's if it started this process, else the machine's own."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def examine_node(
    run_directory: Path | None,
    device: str = "auto",
    node: str | None = None,
    needs: Needs | None = None,
    computes: bool = False,
    patience: float = 20.0,
) -> NodeReport:
    """Look at this node; whatever is wrong is a finding, never an exception.

    The calling process imports no torch, starts no thread and touches no device, so it may fork afterwards.

    Args:
        run_directory: to be written; if it does not exist, the nearest folder above it. None: no disk is looked at.
        device: as in `launch.device`.
        node: name of this node; None: :func:`node_name`.
        needs: of the run.
        computes: whether devices shall also compute something known, which takes some seconds more.
        patience: seconds for the driver and for the file system to answer.
    """
    node, needs = node or node_name(), needs or Needs()
    gpus = GpuExamination(device, os.environ.get("CUDA_VISIBLE_DEVICES"), patience)
    storage = start_storage(run_directory, node, patience) if run_directory is not None else None
    found_versions, findings = versions(), [*host_findings(), *adapter_findings()]
    disk_free = None
    if run_directory is not None and storage is not None:
        disk_free, finding = storage_findings(run_directory, storage.answer(), needs.disk)
        findings.append(finding)
    driver = gpus.report()
    findings += [*driver.findings, *_too_small(driver.gpus, needs.device_memory)]
    if driver.driver is not None:
        found_versions[DRIVER] = driver.driver
    speeds: dict[str, float] = {}
    if computes:
        speeds, computed = _computed("cuda" if driver.gpus else "cpu")
        findings += computed
    return NodeReport(
        node=node,
        host=socket.gethostname(),
        device="cuda" if driver.gpus else "cpu",
        versions=found_versions,
        cores=cores(),
        memory_free=memory_free(),
        shm_free=shm_free(),
        disk_free=disk_free,
        gpus=driver.gpus,
        speeds=speeds,
        findings=tuple(findings),
    )


def _too_small(gpus: tuple[Gpu, ...], needed: int) -> Iterator[Finding]:
    for gpu in gpus:
        if gpu.memory_free is not None and gpu.memory_free < needed:
            detail = f"{gpu.memory_free / 2**30:.1f} GiB free, the run needs about {needed / 2**30:.1f} GiB"
            advice = "share the model more (layout.zero_stage, layout.tensor_parallel) or end what holds the memory"
            yield Finding(Level.ERROR, f"GPU {gpu.index}", detail, advice)


def _computed(device: str) -> tuple[dict[str, float], list[Finding]]:
    answer = Probe([sys.executable, "-m", "launcher.doctor.arithmetic", device], _COMPUTE_SECONDS).answer()
    if answer.code == 0:
        speeds: dict[str, float] = json.loads(answer.out)
        return speeds, [sound(device, speed) for device, speed in speeds.items()]
    return {}, [Finding(Level.ERROR, ARITHMETIC, _failure(answer), ADVICE)]


def sound(device: str, speed: float) -> Finding:
    """A device that computes what is known."""
    return Finding(Level.OK, f"{ARITHMETIC} of {device}", f"exact, the same each time, {speed / 1e12:.2f} TFLOP/s")


def _failure(answer: Answer) -> str:
    if answer.code is None:
        return f"no result in {_COMPUTE_SECONDS:.0f} s"
    lines = answer.error.strip().splitlines()
    return lines[-1] if lines else f"the test ended with code {answer.code}"
