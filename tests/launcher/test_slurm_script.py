"""Profiles and job scripts: what is written, and what is refused before anything is submitted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.failures import Failure, Kind, write_failure
from launcher.first_error import first_error
from launcher.slurm.profile import ProfileError, load_profile
from launcher.slurm.script import JobScript
from ptm_dist.training.run_directory import RunDirectory
from tests.slurm.cluster import slurm  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]
PROFILES = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
NO_CHANGES: dict[str, str | None] = {}


def script(profile: Path, nodes: tuple[int, int] = (2, 2)) -> str:
    return JobScript(
        name="gpt2",
        run=Path("/shared/my runs/gpt2"),
        work=Path("/home/me"),
        recipe=Path("/shared/my runs/gpt2/slurm/recipe.yaml"),
        nodes=nodes,
        profile=load_profile(profile, NO_CHANGES),
        python="python",
    ).text()


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def agents(text: str) -> str:
    """The command that starts an agent on every node, in one line."""
    return " ".join(text.split("\nagents() {\n")[1].split("\n}\n", maxsplit=1)[0].replace("\\\n", " ").split())


def coordinator(text: str) -> str:
    """The command that starts the coordinator, in one line."""
    lines = text.split("after a failure.\n")[1].split(" &\n", maxsplit=1)[0]
    return " ".join(lines.replace("\\\n", " ").split())


def profile_of(folder: Path, values: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(values)
    return path


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_example_of_a_cluster_gives_a_script_that_bash_reads(profile):
    text = script(profile)
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "$$" not in text


def test_a_gpu_node_with_pyxis_gets_a_process_per_gpu_in_the_image():
    text = script(ROOT / "configs" / "cluster" / "h100-pyxis.yaml", (2, 8))
    assert options(text) == [
        "--job-name=gpt2",
        "--comment='ptm:/shared/my runs/gpt2'",
        "--chdir=/home/me",
        "--output='/shared/my runs/gpt2/logs/slurm-%j.log'",
        "--open-mode=append",
        "--partition=gpu",
        "--time=24:00:00",
        "--nodes=2-8",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=12",
        "--mem=0",
        "--exclusive",
        "--signal=B:USR1@300",
        "--requeue",
        "--no-kill",
    ]
    assert "export NCCL_IB_HCA=mlx5\n" in text
    assert "export OMP_NUM_THREADS=12\n" in text
    container = (
        "--container-image=/shared/images/ptm-dist.sqsh --container-mounts=/shared:/shared "
        "--container-workdir=/home/me --no-container-mount-home "
    )
    assert agents(text) == (
        'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none '
        f"--kill-on-bad-exit=0 --no-kill --cpus-per-task=96 {container}"
        "python -m launcher.elastic.keeper '/shared/my runs/gpt2/logs' --processes 8 --examine"
    )
    assert coordinator(text) == (
        "srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --relative=0 --cpu-bind=none "
        f"{container}python -m launcher.slurm.coordinate '/shared/my runs/gpt2/slurm/recipe.yaml' "
        '--nodes 2:8 --expect "$SLURM_JOB_NUM_NODES"'
    )


def test_apptainer_stands_before_python_and_modules_before_the_run():
    text = script(ROOT / "configs" / "cluster" / "a100-apptainer.yaml")
    assert "--gres=gpu:4" in options(text)
    assert text.index("module load apptainer") < text.index("\nagents() {")
    image = "apptainer exec --nv --bind /shared --pwd /home/me /shared/images/ptm-dist.sif "
    keeper = "python -m launcher.elastic.keeper '/shared/my runs/gpt2/logs' --processes 4 --examine"
    assert agents(text).endswith(f"{image}{keeper}")
    assert coordinator(text).startswith(f"{image}python -m launcher.slurm.coordinate ")


def test_a_cluster_may_neither_requeue_nor_kill(tmp_path):
    values = {"requeue": False, "no_kill": True, "options": ["--switches=1"]}
    text = script(profile_of(tmp_path, yaml.safe_dump(values)))
    assert options(text)[-3:] == ["--no-requeue", "--no-kill", "--switches=1"]
    assert "--no-kill" in agents(text)
    assert "scontrol requeue" not in text


def test_a_job_of_a_fixed_number_of_nodes_ends_with_any_of_them(tmp_path):
    text = script(profile_of(tmp_path, "tasks_per_node: 1"))
    assert "--no-kill" not in text
    assert "SUCCESSOR" not in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("partitoin: gpu", "cluster.yaml:1: unknown key partitoin; did you mean partition?"),
        ("time: tomorrow", "cluster.yaml:1: time is 'tomorrow'"),
        ("a: 1\ngpus_per_node: 0", "cluster.yaml:2: gpus_per_node is 0"),
        ("gpus_per_node: 8\ntasks_per_node: 8", "gpus_per_node says how many processes there are"),
        ("options: ['switches=1']", "options of sbatch begin with -"),
        ("variables: {'A B': x}", "'A B' is no name of an environment variable"),
        ("container: {kind: pyxis}", "cluster.yaml:1: missing key container.image"),
        ("container: {kind: docker, image: x}", "container.kind is 'docker'"),
        ("- gpu", "a mapping"),
    ],
)
def test_a_mistake_in_a_profile_is_told_with_its_line(tmp_path, values, message):
    with pytest.raises(ProfileError) as refusal:
        load_profile(profile_of(tmp_path, values), NO_CHANGES)
    assert message in str(refusal.value)


def test_a_command_line_option_wins_over_the_profile_and_is_named_when_wrong(tmp_path):
    profile = profile_of(tmp_path, "partition: slow\ntime: '1'")
    assert load_profile(profile, {"partition": "fast", "time": None}).partition == "fast"
    with pytest.raises(ProfileError, match="option --time: time is 'soon'"):
        load_profile(profile, {"time": "soon"})


def test_mistakes_are_refused_before_anything_is_written_or_submitted(ptm, workspace, monkeypatch):
    recipe, cluster = workspace / "recipe.yaml", profile_of(workspace, "tasks_per_node: 1")
    none = ptm("submit", recipe, "--cluster", workspace / "none.yaml")
    assert (none.code, none.err.count("\n")) == (2, 1)
    assert "copy one of configs/cluster/" in none.err
    for nodes in ("0", "4:2", "many", "2-4"):
        refused = ptm("submit", recipe, "--cluster", cluster, "--nodes", nodes)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert f"--nodes {nodes}: give a number" in refused.err
    layout = ptm("submit", recipe, "--cluster", cluster, "--nodes", "3", "layout.tensor_parallel=2")
    assert layout.code == 2
    assert "layout.tensor_parallel=2" in layout.err
    assert "3 processes" in layout.err
    data = ptm("submit", recipe, "--cluster", cluster, f"data.path={workspace}/nowhere")
    assert data.code == 2
    assert "nowhere" in data.err
    monkeypatch.setenv("PATH", str(workspace))
    dry = ptm("submit", recipe, "--cluster", cluster, "--dry-run")
    assert dry.code == 0
    assert "nobody asked Slurm" in dry.err
    assert not (workspace / "run").exists()
    missing = ptm("submit", recipe, "--cluster", cluster)
    assert missing.code == 2
    assert "sinfo not found" in missing.err
    assert "Traceback" not in missing.err


def test_a_dry_run_asks_slurm_and_leaves_nothing(ptm, workspace, slurm):  # noqa: F811
    recipe, cluster = workspace / "recipe.yaml", profile_of(workspace, "tasks_per_node: 1\n")
    dry = ptm("submit", recipe, "--cluster", cluster, "--nodes", 2, "--dry-run")
    assert dry.code == 0, dry.err
    assert dry.out.startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n")
    assert "to start at" in dry.err
    assert not (workspace / "run").exists()
    wrong = ptm("submit", recipe, "--cluster", cluster, "--nodes", 1, "--partition", "gold", "--dry-run")
    assert wrong.code == 2
    assert "invalid partition" in wrong.err.lower()
    assert "choose one by --partition: low*, high" in wrong.err
    cluster.write_text("gpus_per_node: 64\n")
    greedy = ptm("submit", recipe, "--cluster", cluster, "--nodes", 1, "training.global_batch_size=64")
    assert (greedy.code, greedy.err.count("\n")) == (2, 1)
    assert "the cluster has no 1 node with 64 GPUs; ask for fewer" in greedy.err
    assert "low* has 4 nodes with 4 cores, 4000 MB, GPUs: gpu:4" in greedy.err
    cluster.write_text("tasks_per_node: 1\n")
    many = ptm("submit", recipe, "--cluster", cluster, "--nodes", 40, "--dry-run", "training.global_batch_size=64")
    assert (many.code, many.err.count("\n")) == (2, 1)
    assert "ask for fewer nodes" in many.err
    assert slurm.cluster.command("squeue", "-h").stdout == ""


def test_the_first_error_is_a_ranks_own_and_not_that_of_those_who_lost_it(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.logs.mkdir()
    assert first_error(directory) is None
    write_failure(directory.logs, Failure(0, 5.0, Kind.COLLATERAL, "connection closed by peer"))
    write_failure(directory.logs, Failure(2, 9.0, Kind.ERROR, "ValueError: wrong", "traceback"))
    own = first_error(directory)
    assert own is not None
    assert (own.rank, own.message) == (2, "ValueError: wrong")
    noted = {"rank": 2, "node": "n7", "failure": "error", "place": "in phase data after step 3"}
    directory.event("failure", step=3, cause="killed", **noted)
    directory.event("failure", step=3, cause="ValueError: wrong", **noted)
    newest = first_error(directory)
    assert newest is not None
    assert newest.headline() == "rank 2 on n7 (in phase data after step 3): ValueError: wrong"
    assert newest.traceback == "traceback"


@pytest.mark.parametrize("command", ["submit", "status", "logs", "stop"])
def test_every_command_for_jobs_has_help_with_an_example(ptm, command):
    result = ptm(command, "--help")
    assert result.code == 0
    assert f"ptm {command}" in result.out.partition("Example")[2]


def test_a_folder_that_is_no_run_is_told(ptm, tmp_path):
    for command in ("status", "logs", "stop"):
        result = ptm(command, tmp_path)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "is no run directory" in result.err
