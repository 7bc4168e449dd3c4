"""Runs on the machines of a file, which are reached by ssh: here by a real sshd on other loopback addresses."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import UserError
from launcher.hosts import Host, commands, own_address, read_hosts
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.recipe.schema import Recipe
from tests.launcher.processes import programs, wait_until, worker_pids
from tests.ptm_dist.runs import events, losses, run_processes

ROOT = Path(__file__).resolve().parents[2]
SSHD = Path("/usr/sbin/sshd")
# All of 127.0.0.0/8 is this machine, on Linux.
NODES = ["127.0.0.2", "127.0.0.3"]
STEPS = 60


def test_a_file_names_machines_and_their_processes(tmp_path):
    path = tmp_path / "hosts.txt"
    path.write_text("# our machines\n\nalpha\nuser@beta slots=8  # the large one\ngamma:2\n")
    assert read_hosts(path, 4) == [Host("alpha", 4), Host("user@beta", 8), Host("gamma", 2)]


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("alpha\nbeta slot=2\n", "hosts.txt:2: cannot read 'beta slot=2'", "write a name, and `slots=8` behind it"),
        ("alpha beta\n", "hosts.txt:1: cannot read 'alpha beta'", "write a name"),
        ("alpha\n\nalpha slots=2\n", "hosts.txt:3: alpha stands there twice", "give it all its slots in one line"),
        ("alpha slots=0\n", "hosts.txt:1: alpha runs no process", "give it slots"),
        ("alpha:0\n", "hosts.txt:1: alpha runs no process", "give it slots"),
        ("# nobody\n", "hosts.txt names no machine", "write a line for each"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(ptm, workspace, text, place, remedy):
    hosts = workspace / "hosts.txt"
    hosts.write_text(text)
    result = ptm("train", workspace / "recipe.yaml", "--hosts", hosts)
    assert result.code == 2
    assert place in result.err
    assert remedy in result.err
    assert "Traceback" not in result.err
    assert not (workspace / "run").exists()


def test_a_file_that_is_missing_is_named(ptm, workspace):
    result = ptm("train", workspace / "recipe.yaml", "--hosts", workspace / "none.txt")
    assert result.code == 2
    assert f"--hosts {workspace}/none.txt: No such file" in " ".join(result.err.split())


def test_more_machines_than_the_file_names_are_refused(ptm, workspace):
    hosts = workspace / "hosts.txt"
    hosts.write_text("alpha\nbeta\n")
    result = ptm("train", workspace / "recipe.yaml", "--hosts", hosts, "--nodes", 3)
    assert result.code == 2
    assert "--nodes 3" in result.err
    assert "names 2 machines" in " ".join(result.err.split())


def test_a_number_of_machines_without_a_file_is_refused(ptm, workspace):
    result = ptm("train", workspace / "recipe.yaml", "--nodes", 2)
    assert result.code == 2
    assert "--nodes goes with --hosts" in result.err


def test_a_name_that_only_ssh_knows_needs_the_address_of_this_machine():
    with pytest.raises(UserError, match=r"nowhere\.invalid has no address.*--address"):
        own_address([Host("localhost", 1), Host("me@nowhere.invalid", 1)])


def test_this_machine_is_known_under_the_address_from_which_it_reaches_the_others():
    assert own_address([Host("localhost", 1)]) == "127.0.0.1"
    assert own_address([Host(socket.gethostname(), 1)]) == "127.0.0.1"
    assert own_address([Host("me@127.0.0.2", 1)]).startswith("127.")


def test_only_other_machines_are_reached_by_ssh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCCL_DEBUG", "two words")
    here = [Host(name, 1) for name in ("localhost", "127.0.0.1", socket.gethostname())]
    started = commands(Path("run/logs"), [*here, Host("beta", 2)], "ssh -p 22")
    assert all(started[host.name][0] == sys.executable for host in here)
    *before, remote = started["beta"]
    assert before == ["ssh", "-p", "22", "beta"]
    assert remote.startswith(f"cd {tmp_path} && exec env ")
    assert "'NCCL_DEBUG=two words'" in remote
    assert f"{tmp_path}/run/logs --node beta --processes 2" in remote


def test_machines_that_cannot_be_reached_end_the_run_with_their_number(ptm, workspace):
    hosts = hosts_file(workspace)
    ssh = f"ssh -p {free_port()} -o BatchMode=yes"
    result = ptm("train", workspace / "recipe.yaml", "--hosts", hosts, "--ssh", ssh)
    assert result.code == 2
    assert "Connection refused" in result.err  # ssh's own words
    assert "2 nodes are needed and 0 came (none)" in result.err
    assert not any((workspace / "run/checkpoints").iterdir())


@pytest.fixture
def ssh(tmp_path) -> Iterator[str]:
    """A server of this test's own on two addresses, and the command that logs in there."""
    if not SSHD.exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("needs openssh-server")
    if os.geteuid() != 0:
        pytest.skip("sshd lets somebody in without a password of the system only if it runs as root")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    configuration = {
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
    }
    lines = [f"{key} {value}\n" for key, value in configuration.items()]
    (folder / "sshd_config").write_text("".join([*lines, *(f"ListenAddress {address}\n" for address in NODES)]))
    Path("/run/sshd").mkdir(exist_ok=True)  # what Debian's service makes at its start
    with (folder / "sshd.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_until(lambda: server.poll() is not None or all(is_open(node, port) for node in NODES), 10)
        assert server.poll() is None, (folder / "sshd.log").read_text()
        yield (
            f"ssh -p {port} -l {getpass.getuser()} -i {folder}/user -o IdentitiesOnly=yes -o StrictHostKeyChecking=no "
            "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
        )
    finally:
        server.terminate()
        server.wait()


def test_a_run_over_ssh_ends_as_on_one_machine_though_a_host_is_killed_and_ctrl_c_is_hit(workspace, ssh):
    recipe_file = lengthen(workspace / "recipe.yaml")
    recipe, calm = (load_recipe(recipe_file, [f"run_dir={workspace / name}"]) for name in ("run", "calm"))
    arguments = ["--hosts", hosts_file(workspace), "--ssh", ssh, f"run_dir={recipe.directory}"]
    with running(recipe_file, *arguments) as process:
        wait_until(lambda: has_saved(recipe, 10) or process.poll() is not None)
        kill_host(recipe, NODES[1])
        wait_until(lambda: has_saved(recipe, 20) or process.poll() is not None)
        # As a terminal does it: to all processes of the foreground, of which an ssh must not be one.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert [row["nodes"] for row in events(recipe, "round")] == [NODES, NODES]
    assert {row["node"] for row in events(recipe, "node_lost")} == {NODES[1]}
    (stop,) = events(recipe, "stop")
    assert 20 <= stop["step"] < STEPS
    assert len(losses(recipe)) == stop["step"]
    assert not worker_pids(recipe.directory / "logs")
    # The same command goes on.
    with running(recipe_file, *arguments) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert run_processes(calm, 2) == [0, 0]
    assert losses(recipe) == losses(calm)
    assert len(losses(recipe)) == STEPS
    for module in ("launcher.elastic.keeper", "launcher.elastic.agent"):
        assert not programs(module, recipe.directory / "logs")


def lengthen(recipe_file: Path) -> Path:
    values = yaml.safe_load(recipe_file.read_text())
    values["data"]["max_epochs"] = 1000
    values["training"] |= {"steps": STEPS, "precision": "fp64"}
    values["layout"] |= {"zero_stage": 1}
    values["evaluation"] = {"every": 0}
    values["checkpoint"] = {"every": 10, "keep_last": 3}
    recipe_file.write_text(yaml.safe_dump(values))
    return recipe_file


def hosts_file(folder: Path) -> Path:
    path = folder / "hosts.txt"
    path.write_text("".join(f"{node} slots=1\n" for node in NODES))
    return path


def running(recipe_file: Path, *arguments: object) -> subprocess.Popen[str]:
    """`ptm train` as the first process of a group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(recipe_file), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def has_saved(recipe: Recipe, step: int) -> bool:
    return (recipe.directory / f"checkpoints/step-{step:08d}").is_dir()


def kill_host(recipe: Recipe, node: str) -> None:
    """All that runs there: its keeper first, so that nobody brings back the agent."""
    for module in ("launcher.elastic.keeper", "launcher.elastic.agent"):
        for pid in programs(module, recipe.directory / "logs"):
            if node in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                os.kill(pid, signal.SIGKILL)


def is_open(address: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex((address, port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])
