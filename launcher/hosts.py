"""Start a run on machines that are reached by ssh, named in a file; for clusters without a scheduler."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from launcher.elastic.agents import Started
from launcher.elastic.launch import Place, keeper_command, train
from launcher.local import conclude
from ptm_dist.recipe.schema import Recipe

_LINE = re.compile(r"(?P<name>[^\s:#]+)(?:\s+slots=(?P<slots>\d+)|:(?P<count>\d+))?\s*")
_HERE = {"localhost", "127.0.0.1"}
# What a user sets for the libraries of a run goes along; ssh itself passes nothing on.
_PASSED_ON = ("NCCL_", "GLOO_", "TORCH_", "OMP_", "CUDA_", "PTM_", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Host:
    """A machine and how many processes it runs.

    Attributes:
        name: as ssh takes it, `user@` before it if need be.
        processes: workers on it.
    """

    name: str
    processes: int

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, by its name: nothing has to go through ssh."""
        return self.name in _HERE or self.name == socket.gethostname()


def read_hosts(path: Path, processes: int) -> list[Host]:
    """The machines of a file: a line each, `name`, `name slots=8` or `name:8`; `#` begins a comment.

    Args:
        path: the file.
        processes: of machines that say nothing of them.

    Raises: UserError with file and line if a line is none of that, or names a machine again.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--hosts {path}: {error.strerror}; give a file with a line for each machine") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise UserError(f"{path}:{number}: cannot read {text!r}; write a name, and `slots=8` behind it or nothing")
        if match["name"] in hosts:
            raise UserError(f"{path}:{number}: {match['name']} stands there twice; give it all its slots in one line")
        count = int(match["slots"] or match["count"] or processes)
        if count < 1:
            raise UserError(f"{path}:{number}: {match['name']} runs no process; remove the line, or give it slots")
        hosts[match["name"]] = Host(match["name"], count)
    if not hosts:
        raise UserError(f"{path} names no machine; write a line for each")
    return list(hosts.values())


def launch(recipe: Recipe, hosts: Sequence[Host], least: int, ssh: str, address: str = "") -> int:
    """Run a recipe on some machines; returns when all have ended.

    Args:
        recipe: checked; its run directory must be one that all machines see.
        hosts: the machines.
        least: how many of them are enough to go on.
        ssh: command and options that stand before the name of a machine.
        address: of this machine, as the others reach it; empty: found out.

    Returns: exit code, 0 or 1; why it is 1 was printed to standard error.
    Raises: UserError if a worker raised one.
    """
    place = Place((least, len(hosts)), address or own_address(hosts))
    ending = train(recipe, place, lambda logs: Started(commands(logs, hosts, ssh), os.environ))
    return conclude(ending, recipe.directory / "logs")


def commands(logs: Path, hosts: Sequence[Host], ssh: str) -> dict[str, list[str]]:
    """What starts the agent of each machine, by its name."""
    return {host.name: _command(logs.resolve(), host, ssh) for host in hosts}


def own_address(hosts: Sequence[Host]) -> str:
    """The address from which this machine reaches the others, and they reach it.

    Raises: UserError if the name of the first of the others has no address, or none that can be reached.
    """
    away = next((host.name for host in hosts if not host.is_here), None)
    if away is None:
        return "127.0.0.1"
    try:
        family, kind, _, _, target = socket.getaddrinfo(away.rpartition("@")[2], 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"--hosts: {away} has no address that can be reached ({error.strerror}); mend its name or remove it, or "
            "give --address with this machine's address if only ssh knows that name"
        ) from None


def _command(logs: Path, host: Host, ssh: str) -> list[str]:
    keeper = keeper_command(logs, host.name, host.processes, examines=True)
    if host.is_here:
        return keeper
    variables = [f"{name}={value}" for name, value in _passed_on(os.environ).items()]
    words = shlex.join(["env", *variables, *keeper])
    return [*shlex.split(ssh), host.name, f"cd {shlex.quote(str(Path.cwd()))} && exec {words}"]


def _passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sorted(environ.items()) if name.startswith(_PASSED_ON)}
