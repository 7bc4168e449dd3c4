from __future__ import annotations

import pytest

from launcher.environment import WorldError, find_world, first_host, tasks_on_node
from ptm_dist.training.world import World

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29501",
}
SRUN = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_JOB_NODELIST": "n[01-03,7]",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
}
BATCH_SHELL = {
    "SLURM_JOB_ID": "812",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "7",
    "SLURM_JOB_NODELIST": "n[01-03,7]",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "331874305",
}
HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "3", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "3"}


def test_no_launcher_means_no_world():
    assert find_world({"HOME": "/root", "MASTER_ADDR": "x"}) is None


def test_torchrun_is_found():
    assert find_world(TORCHRUN) == World(3, 4, 1, 2, "node7", 29501, "torchrun")


def test_torchrun_inside_a_slurm_step_wins():
    world = find_world({**SRUN, **TORCHRUN})
    assert world is not None
    assert world.origin == "torchrun"


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_torchrun_with_one_variable_missing_names_it(name):
    with pytest.raises(WorldError, match=rf"lacks {name};"):
        find_world({key: value for key, value in TORCHRUN.items() if key != name})


def test_srun_gives_host_of_the_first_node_and_a_port_that_all_ranks_share():
    world = find_world(SRUN)
    assert world is not None
    assert (world.rank, world.world_size, world.local_rank, world.local_world_size) == (5, 7, 1, 2)
    assert (world.master_addr, world.origin) == ("n01", "srun")
    other = find_world({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert other is not None
    assert other.master_port == world.master_port
    assert 20000 <= world.master_port < 30000


def test_two_slurm_steps_use_different_ports():
    first, second = find_world(SRUN), find_world({**SRUN, "SLURM_STEP_ID": "1"})
    assert first is not None
    assert second is not None
    assert first.master_port != second.master_port


def test_a_step_that_is_smaller_than_its_job_counts_the_steps_tasks():
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "n03",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": "1",
        "SLURM_NODEID": "0",
    }
    world = find_world({**SRUN, **step})
    assert world is not None
    assert (world.rank, world.world_size, world.local_world_size, world.master_addr) == (1, 2, 2, "n03")


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967291"}, {"SLURM_STEP_ID": "4294967290"}])
def test_the_shell_of_a_batch_script_or_of_salloc_is_no_world(step):
    assert find_world({**BATCH_SHELL, **step}) is None


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_JOB_NODELIST", "SLURM_LOCALID", "SLURM_NTASKS"])
def test_srun_with_one_variable_missing_names_it(name):
    with pytest.raises(WorldError, match=rf"lacks {name};"):
        find_world({key: value for key, value in SRUN.items() if key != name})


def test_open_mpi_on_one_machine_meets_at_localhost():
    world = find_world(OPEN_MPI)
    assert world is not None
    assert (world.rank, world.world_size, world.local_rank, world.local_world_size) == (1, 2, 1, 2)
    assert (world.master_addr, world.origin) == ("127.0.0.1", "mpirun")


def test_mpirun_inside_a_slurm_step_wins_over_the_step_that_carries_its_daemon():
    daemon = {**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    for mpi in (OPEN_MPI, HYDRA):
        world = find_world({**daemon, **mpi})
        assert world is not None
        assert world.origin == "mpirun"


def test_srun_with_pmi2_is_still_srun():
    world = find_world({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "7"})
    assert world is not None
    assert world.origin == "srun"


def test_hydra_is_found():
    world = find_world(HYDRA)
    assert world is not None
    assert (world.rank, world.world_size, world.local_world_size) == (0, 3, 3)


def test_mpirun_over_several_machines_never_falls_back_to_localhost():
    several = {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4"}
    with pytest.raises(WorldError, match="MASTER_ADDR, MASTER_PORT; mpirun over several machines: install mpi4py"):
        find_world(several)
    with pytest.raises(WorldError, match="is of another, and finds 1 ranks"):
        find_world(several, World.single)
    with pytest.raises(WorldError, match="install mpi4py"):
        find_world(several, lambda: None)
    world = find_world({**several, "MASTER_ADDR": "n1", "MASTER_PORT": "29500"})
    assert world is not None
    assert (world.master_addr, world.master_port) == ("n1", 29500)


def test_mpi_itself_tells_the_world_unless_the_meeting_place_is_given():
    told = World(1, 2, 0, 1, "n1", 4711, "mpirun")
    assert find_world(OPEN_MPI, lambda: told) == told
    given = find_world({**OPEN_MPI, "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}, lambda: told)
    assert given is not None
    assert (given.local_rank, given.master_port) == (1, 29500)


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(WorldError, match="impossible world: rank 4 of 4"):
        find_world({**TORCHRUN, "RANK": "4"})


def test_a_value_that_is_no_number_is_named():
    with pytest.raises(WorldError, match=r"MASTER_PORT='http' is not a whole number"):
        find_world({**TORCHRUN, "MASTER_PORT": "http"})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n[01-04,7]", "n01"),
        ("n7,n[1-2]", "n7"),
        ("gpu-a[3,5-6]-ib,gpu-b1", "gpu-a3-ib"),
        ("rack[1-2]n[5-6]", "rack1n5"),
        ("single.host.name", "single.host.name"),
    ],
)
def test_first_host_of_a_node_list(nodelist, host):
    assert first_host(nodelist) == host


def test_tasks_per_node_are_expanded():
    assert [tasks_on_node("2(x3),1", node) for node in range(4)] == [2, 2, 2, 1]
    with pytest.raises(WorldError, match="no entry"):
        tasks_on_node("2(x3),1", 4)
