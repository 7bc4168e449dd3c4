"""Start and stop a real Slurm whose nodes are all this machine: one slurmctld, one slurmd per node.

Needs Debian's or Ubuntu's package slurm-wlm and the rights of root; no munge, no systemd, no database.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template

_TEMPLATES = Path(__file__).parent / "templates"
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_FIRST_PORT = 17000
_PORT_BLOCK = 50


class ClusterError(Exception):
    """Why a cluster cannot be started or stopped, in words for the user."""


@dataclass(frozen=True)
class VirtualCluster:
    """A cluster of virtual nodes n1, n2, ... below one folder.

    Attributes:
        root: absolute folder of configuration, state and logs.
        nodes: how many.
    """

    root: Path
    nodes: int = 4

    @property
    def configuration(self) -> Path:
        """What the environment variable SLURM_CONF must name for Slurm's commands to find this cluster."""
        return self.root / "slurm.conf"

    def up(self) -> None:
        """Write the configuration, start the daemons, and return when every node is idle.

        Raises: ClusterError if Slurm is missing, if the folder holds a living cluster, or if it does not come up.
        """
        reason = why_not()
        if reason:
            raise ClusterError(reason)
        if self.pids():
            raise ClusterError(f"{self.root} holds a cluster that runs; stop it by: slurm/testcluster down {self.root}")
        self._write()
        try:
            self._start("slurmctld", "-f", str(self.configuration))
            for number in range(1, self.nodes + 1):
                self.start_node(f"n{number}")
            self._wait_until_idle()
        except ClusterError:
            self.down()
            raise

    def start_node(self, name: str) -> None:
        """Start, or start again, the daemon of one node."""
        self._start("slurmd", "-f", str(self.configuration), "-N", name)

    def down(self) -> None:
        """Cancel all jobs and end every daemon; nothing of the cluster is left running."""
        pids = self.pids()
        if "slurmctld" in pids:
            self._cancel_jobs()
        for pid in pids.values():
            _send(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in self.pids().values():
            _send(pid, signal.SIGKILL)
        for pid in self._members():
            _send(pid, signal.SIGKILL)

    def pids(self) -> dict[str, int]:
        """Process ids of the living daemons by name: slurmctld, slurmd-n1, ..."""
        found = {}
        for file in sorted((self.root / "run").glob("*.pid")):
            pid = _read_pid(file)
            if pid is not None and file.stem.split("-")[0] in _command_line(pid):
                found[file.stem] = pid
        return found

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        environ = {**os.environ, "SLURM_CONF": str(self.configuration)}
        return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)

    def _write(self) -> None:
        for folder in ("state", "log", "run", *(f"spool/n{number}" for number in range(1, self.nodes + 1))):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            (self.root / f"fakegpu{number}").touch()
        port = _free_ports(self.nodes + 2)
        values = {
            "root": str(self.root),
            "user": "root",
            "count": str(self.nodes),
            "controller_port": str(port),
            "node_port": str(port + 1),
            "nodes": "\n".join(self._node_line(number, port + 1 + number) for number in range(1, self.nodes + 1)),
        }
        for template in _TEMPLATES.iterdir():
            text = Template(template.read_text(encoding="utf-8")).substitute(values)
            (self.root / template.name).write_text(text, encoding="utf-8")

    @staticmethod
    def _node_line(number: int, port: int) -> str:
        return (
            f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.{10 + number} Port={port} CPUs=4 Sockets=1 "
            "CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:4 State=UNKNOWN"
        )

    def _start(self, *words: str) -> None:
        # Daemons keep no pipe open, or who waits for their output would wait for ever.
        output = self.root / "log" / "start.log"
        with output.open("ab") as stream:
            code = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=_START_SECONDS, check=False
            ).returncode
        if code != 0:
            raise ClusterError(f"{words[0]} ended with code {code}; see {output}")

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            states = self.command("sinfo", "-h", "-p", "low", "-N", "-o", "%T").stdout.split()
            if states.count("idle") == self.nodes:
                return
            time.sleep(0.1)
        raise ClusterError(
            f"nodes are {', '.join(states) or 'unknown'} after {_START_SECONDS:.0f} s; see {self.root}/log"
        )

    def _cancel_jobs(self) -> None:
        self.command("scancel", "--user=root")
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and self.command("squeue", "-h").stdout.strip():
            time.sleep(0.1)

    def _members(self) -> list[int]:
        """Processes of jobs on this cluster: it is named in their environment."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in variables and any(item.startswith(b"SLURMD_NODENAME=") for item in variables):
                found.append(int(folder.name))
        return found


def why_not() -> str | None:
    """What keeps this machine from running a cluster, or None."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} not found; install Slurm: apt-get install slurm-wlm"
    if os.geteuid() != 0:
        return "the daemons of a test cluster must be started by root"
    return None


def main(arguments: list[str] | None = None) -> int:
    """The program slurm/testcluster; returns an exit code."""
    parser = argparse.ArgumentParser(prog="slurm/testcluster", description="A real Slurm on this machine.")
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="start it and wait until its nodes are idle")
    down = actions.add_parser("down", help="cancel its jobs and end its daemons")
    for action in (up, down):
        action.add_argument("folder", type=Path, metavar="DIR", help="configuration, state and logs")
    up.add_argument("--nodes", type=int, default=4, choices=range(1, 17), metavar="1..16", help="virtual nodes (4)")
    chosen = parser.parse_args(arguments)
    root = chosen.folder.resolve()
    try:
        if chosen.action == "down":
            VirtualCluster(root).down()
            return 0
        cluster = VirtualCluster(root, chosen.nodes)
        cluster.up()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{cluster.nodes} nodes are idle; to use them:\nexport SLURM_CONF={cluster.configuration}")
    return 0


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on."""
    for first in range(_FIRST_PORT, _FIRST_PORT + 40 * _PORT_BLOCK, _PORT_BLOCK):
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise ClusterError(f"no {count} free ports from {_FIRST_PORT} on")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def _read_pid(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
