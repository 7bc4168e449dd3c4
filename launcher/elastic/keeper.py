"""The keeper of an agent: `python -m launcher.elastic.keeper LOGS ...`. It starts it again when it dies or hangs.

It takes the agent's options and passes them on. What dies with the whole node is not its matter: the coordinator
notices. An agent that died alone takes seconds to come back; the coordinator is told, so that it waits for it rather
than go on without the node.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from launcher.doctor.node import node_name
from launcher.elastic.address import connect

LOST = 3
"""Exit code of an agent that has no coordinator."""

APART = 4
"""Exit code of an agent that does not see the run directory."""

REQUEUE_VARIABLE = "PTM_REQUEUE"
"""Environment variable that is set in Slurm jobs which go back to the queue by themselves."""

_TICK_SECONDS = 0.05
_SCRIPT_SECONDS = 10.0
_SILENCE_SECONDS = 20.0
_SLOW_START_SECONDS = 300.0
_TELL_SECONDS = 2.0
_TOO_SOON_SECONDS = 2.0
_MOST_IN_A_ROW = 5
_SLURM_SECONDS = 60.0
_MOST_REQUESTS = 30


class Keeper:
    """Keeps one agent alive.

    Args:
        options: of the agent; the first one is the folder of logs.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self._options = options
        self._logs = Path(options[0])
        self._node = _option(options, "--node", node_name())
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Start the agent until it ends by itself; returns its exit code."""
        in_a_row = 0
        while True:
            began = time.monotonic()
            code = self._one_life()
            if code == LOST and os.environ.get(REQUEUE_VARIABLE):
                # A script that lives ends this process when the run ends; a coordinator that lives let go of this
                # node alone.
                if self._tell_that_it_returns(_SCRIPT_SECONDS):
                    continue
                requeue_job(os.environ, self._logs.parent, self._node)
            if code >= 0:
                return code
            in_a_row = in_a_row + 1 if time.monotonic() - began < _TOO_SOON_SECONDS else 0
            if in_a_row >= _MOST_IN_A_ROW:
                return 128 - code
            self._tell_that_it_returns(_TELL_SECONDS)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: signals are for the agent."""
        if self._process is not None:
            self._process.send_signal(number)

    def _one_life(self) -> int:
        """Run an agent; its exit code, negative if a signal ended it, ours included if it was silent."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        command = [sys.executable, "-m", "launcher.elastic.agent", *self._options]
        command += ["--keeper", str(os.getpid()), "--alive", str(writing)]
        environment = agent_environment(os.environ, int(_option(self._options, "--processes", "1")))
        self._process = subprocess.Popen(command, pass_fds=[writing], env=environment)
        os.close(writing)
        try:
            return self._watch(self._process, reading)
        finally:
            os.close(reading)

    @staticmethod
    def _watch(process: subprocess.Popen[bytes], reading: int) -> int:
        deadline = time.monotonic() + _SLOW_START_SECONDS
        while process.poll() is None:
            with suppress(BlockingIOError):
                if os.read(reading, 1 << 16):
                    deadline = time.monotonic() + _SILENCE_SECONDS
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(_TICK_SECONDS)
        return process.returncode

    def _tell_that_it_returns(self, seconds: float) -> bool:
        """Look so long for a coordinator and tell it to expect this node; whether there is one."""
        found = connect(self._logs, seconds)
        if found is None:
            return False
        connection, address = found
        from launcher.elastic.wire import Wire

        wire = Wire(connection)
        wire.send("returning", token=address.token, node=self._node)
        wire.close()
        return True


def requeue_job(environ: Mapping[str, str], run_directory: Path, node: str) -> None:
    """Send the Slurm job of this process back to the queue, whose script can no longer do it itself.

    With `--no-kill` Slurm lets a job go on when its first node breaks, though its script is gone with that node: the
    job would hold the others until its time limit. Any of them may requeue it, and the first one does. Slurm may be
    slow to answer, or refuse, while it looks for the node: it is asked again.
    """
    job, life = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_RESTART_COUNT", "0")
    if shutil.which("scontrol") is None:
        return
    for attempt in range(_MOST_REQUESTS):
        shown = _scontrol("--oneliner", "show", "job", job)
        if shown and not {"JobState=RUNNING", f"Restarts={life}"} <= set(shown.split()):
            return
        if attempt == 0:
            _note_requeue(run_directory, job, node)
        _scontrol("requeue", job)
        time.sleep(_SCRIPT_SECONDS)


def _scontrol(*arguments: str) -> str:
    """What it says; nothing if it fails or does not answer."""
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=_SLURM_SECONDS, check=False
        ).stdout
    return ""


def _note_requeue(run_directory: Path, job: str, node: str) -> None:
    """In the run's history; that the job goes back matters more than that it is known."""
    from ptm_dist.errors import RunDirectoryError
    from ptm_dist.training.run_directory import RunDirectory

    with suppress(RunDirectoryError):
        RunDirectory(run_directory).event("requeue", job=int(job), node=node, cause="its first node does not answer")


def agent_environment(environ: Mapping[str, str], processes: int) -> dict[str, str]:
    """The environment of a node's processes: this one's, and sensible values of what the user left open."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONUNBUFFERED": "1",
    }
    return {**defaults, **environ}


def _option(options: Sequence[str], name: str, default: str) -> str:
    return options[options.index(name) + 1] if name in options else default


def main() -> int:
    """Keep an agent with the options of the command line."""
    keeper = Keeper(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, keeper.pass_on)
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main())
