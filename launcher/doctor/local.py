"""Run a command of this program as several processes of this machine, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

_END_SECONDS = 15.0


def run_here(arguments: Sequence[str], processes: int) -> int:
    """Start `ptm` with these arguments so often, and wait.

    Returns: the exit code of the first process; the others are ended soon after it.
    """
    world = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **world}
    command = [sys.executable, "-m", "launcher", *arguments]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(command, env={**environment, **place}, stdin=subprocess.DEVNULL))
        code = started[0].wait()
        for process in started[1:]:
            process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        pass  # what hangs was named by the first one
    finally:
        for process in started:
            process.kill()
            process.wait()
    return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
