from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slurm.virtual_cluster import VirtualCluster, why_not

PROGRAM = Path(__file__).resolve().parents[2] / "slurm" / "testcluster"


def call(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_cluster_comes_up_runs_a_step_on_every_node_and_leaves_no_process(tmp_path):
    cluster = VirtualCluster(tmp_path, 2)
    up = call("up", tmp_path, "--nodes", 2)
    try:
        assert up.returncode == 0, up.stderr
        assert f"export SLURM_CONF={tmp_path}/slurm.conf" in up.stdout
        nodes = cluster.command("srun", "--nodes=2", "printenv", "SLURMD_NODENAME").stdout.split()
        assert sorted(nodes) == ["n1", "n2"]
        again = call("up", tmp_path)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert "holds a cluster that runs" in again.stderr
        cluster.command("sbatch", "--output=/dev/null", "--wrap", "sleep 1000")
        assert sorted(cluster.pids()) == ["slurmctld", "slurmd-n1", "slurmd-n2"]
    finally:
        assert call("down", tmp_path).returncode == 0
    assert cluster.pids() == {}
    environments = [environment_of(path) for path in Path("/proc").glob("[0-9]*/environ")]
    assert not any(b"SLURM_CONF=" + bytes(cluster.configuration) in environment for environment in environments)


def environment_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_a_machine_without_slurm_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *words, **options: None)
    reason = why_not()
    assert reason is not None
    assert "apt-get install slurm-wlm" in reason
