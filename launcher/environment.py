"""The world that a process launcher describes in environment variables: torchrun, srun or mpirun."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping

from data_pipeline.errors import UserError
from ptm_dist.training.world import World

Environment = Mapping[str, str]

# Step ids that Slurm gives to shells rather than to parallel programs: interactive, batch, extern.
_SHELL_STEPS = {"4294967290", "4294967291", "4294967292"}


class WorldError(UserError):
    """Environment variables of a process launcher that are incomplete or contradict each other."""


def find_world(environ: Environment, ask_mpi: Callable[[], World | None] | None = None) -> World | None:
    """The world this process was started in, or None if no launcher made one.

    Asked in this order, because the later ones are often the surroundings of the former: torchrun, Open MPI's
    mpirun, Hydra's mpirun (MPICH, Intel MPI), srun. The shell of an sbatch script or of salloc is no world.

    Args:
        environ: usually ``os.environ``.
        ask_mpi: what MPI says, :func:`launcher.mpi.world_of_mpi`; asked by the ranks of an mpirun without MASTER_ADDR
            and MASTER_PORT.

    Raises: WorldError if a launcher's variables are incomplete; the message names them.
    """
    if "RANK" in environ or "LOCAL_RANK" in environ:
        return _torchrun(environ)
    if "OMPI_COMM_WORLD_RANK" in environ:
        return _mpirun(environ, "OMPI_COMM_WORLD_", ask_mpi)
    if "PMI_RANK" in environ and "MPI_LOCALRANKID" in environ:
        return _mpirun(environ, "PMI_", ask_mpi)
    if _is_slurm_step(environ):
        return _srun(environ)
    if "PMI_RANK" in environ:
        return _mpirun(environ, "PMI_", ask_mpi)
    return _torchrun(environ) if "WORLD_SIZE" in environ else None


def first_host(nodelist: str) -> str:
    """The first name of a Slurm node list: `n01` for `n[01-04,7],m3`."""
    first = re.split(r",(?![^\[]*\])", nodelist, maxsplit=1)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks of one node from Slurm's run-length form: node 2 of `2(x3),1` has 2."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise WorldError(f"srun: cannot read tasks per node from {tasks_per_node!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    if node >= len(counts):
        raise WorldError(f"srun: node {node} has no entry in tasks per node {tasks_per_node!r}")
    return counts[node]


def _torchrun(environ: Environment) -> World:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    _require(environ, "torchrun", names)
    return _checked(
        World(
            rank=_number(environ, "RANK"),
            world_size=_number(environ, "WORLD_SIZE"),
            local_rank=_number(environ, "LOCAL_RANK"),
            local_world_size=_number(environ, "LOCAL_WORLD_SIZE", "WORLD_SIZE"),
            master_addr=environ["MASTER_ADDR"],
            master_port=_number(environ, "MASTER_PORT"),
            origin="torchrun",
        )
    )


def _mpirun(environ: Environment, prefix: str, ask_mpi: Callable[[], World | None] | None) -> World:
    _require(environ, "mpirun", (prefix + "RANK", prefix + "SIZE"))
    says_where = environ.get("MASTER_ADDR") and environ.get("MASTER_PORT")
    told = ask_mpi() if ask_mpi is not None and not says_where else None
    if told is not None and told.world_size == _number(environ, prefix + "SIZE"):
        return told
    remedy = "install mpi4py (pip install 'ptm-dist[mpi]')"
    if told is not None:
        remedy = f"install mpi4py for this MPI (the one that is there is of another, and finds {told.world_size} ranks)"
    return _mpirun_by_variables(environ, prefix, remedy)


def _mpirun_by_variables(environ: Environment, prefix: str, remedy: str) -> World:
    """The same without MPI's own word; `remedy` is how that could be had."""
    open_mpi = prefix.startswith("OMPI")
    local = (prefix + "LOCAL_RANK", prefix + "LOCAL_SIZE") if open_mpi else ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    _require(environ, "mpirun", local)
    world_size, local_world_size = _number(environ, prefix + "SIZE"), _number(environ, local[1])
    if local_world_size < world_size:
        hint = f"mpirun over several machines: {remedy}, or export both (host of rank 0, a free port) to all ranks"
        _require(environ, "mpirun", ("MASTER_ADDR", "MASTER_PORT"), hint)
    job = environ.get("PMIX_NAMESPACE", environ.get("PMI_JOBID", ""))
    return _checked(
        World(
            rank=_number(environ, prefix + "RANK"),
            world_size=world_size,
            local_rank=_number(environ, local[0]),
            local_world_size=local_world_size,
            master_addr=environ.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_port(environ, f"mpirun {job}"),
            origin="mpirun",
        )
    )


def _is_slurm_step(environ: Environment) -> bool:
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    return (step is not None or "SLURM_STEP_NUM_TASKS" in environ) and step not in _SHELL_STEPS


def _srun(environ: Environment) -> World:
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    nodes = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environ else "SLURM_JOB_NODELIST"
    tasks = "SLURM_STEP_TASKS_PER_NODE" if "SLURM_STEP_TASKS_PER_NODE" in environ else "SLURM_TASKS_PER_NODE"
    _require(environ, "srun", ("SLURM_JOB_ID", "SLURM_PROCID", size, "SLURM_LOCALID", "SLURM_NODEID", nodes, tasks))
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    return _checked(
        World(
            rank=_number(environ, "SLURM_PROCID"),
            world_size=_number(environ, size),
            local_rank=_number(environ, "SLURM_LOCALID"),
            local_world_size=tasks_on_node(environ[tasks], _number(environ, "SLURM_NODEID")),
            master_addr=environ.get("MASTER_ADDR", first_host(environ[nodes])),
            master_port=_port(environ, f"srun {environ['SLURM_JOB_ID']}.{step}"),
            origin="srun",
        )
    )


def _port(environ: Environment, job: str) -> int:
    """MASTER_PORT, or a port that all ranks derive from the job, below the range the kernel hands out."""
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT")
    return 20000 + zlib.crc32(job.encode()) % 10000


def _require(environ: Environment, origin: str, names: tuple[str, ...], hint: str = "") -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        found = [name for name in names if environ.get(name)]
        raise WorldError(
            f"the environment looks like {origin} ({', '.join(found) or 'nothing of it set'}) but lacks "
            f"{', '.join(missing)}; {hint or f'set them too, or unset what is left of {origin}'}"
        )


def _number(environ: Environment, *names: str) -> int:
    name = next(name for name in names if name in environ)
    text = environ[name]
    if not text.isdecimal():
        raise WorldError(f"the environment variable {name}={text!r} is not a whole number")
    return int(text)


def _checked(world: World) -> World:
    inside = world.rank < world.world_size and world.local_rank < world.local_world_size <= world.world_size
    if not inside:
        raise WorldError(
            f"{world.origin} describes an impossible world: rank {world.rank} of {world.world_size}, "
            f"local rank {world.local_rank} of {world.local_world_size}; unset variables left from another launcher"
        )
    return world
