"""Two workers of which one waits for the other: `start` forks them as an agent does, and is killed with them."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.elastic.workers import fork_workers
from launcher.worker import Job
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.training.link import Phase
from ptm_dist.training.world import World

WAITS = {
    "barrier": dist.barrier,
    "all_reduce": lambda: dist.all_reduce(torch.ones(1)),
    "receive": lambda: dist.recv(torch.ones(1), src=1),
    "gather": lambda: ControlGroup(dist.group.WORLD, dist.get_rank(), 2).gather("something"),
}


def start(wait: str, logs: Path) -> None:
    """Fork both ranks and look after them until killed; their process ids are in `logs`, where both have met."""
    worlds = [World(rank, 2, rank, 2, "", 0, "ptm") for rank in range(2)]
    workers = fork_workers("tests.launcher.waiting_pair:work", {"wait": wait}, worlds, logs, 0)
    while True:
        for worker in workers:
            worker.listen()
            if worker.phase is Phase.STEP:
                (logs / f"pid-{worker.world.rank}").write_text(str(worker.pid))
        time.sleep(0.02)


def work(job: Job) -> None:
    """Rank 0 waits for rank 1, which is late."""
    torch.set_num_threads(1)
    rank = job.world.rank
    dist.init_process_group("gloo", init_method=f"file://{job.logs}/meet", rank=rank, world_size=2)
    dist.barrier()
    job.link.report(Phase.STEP, 7)
    WAITS[job.payload["wait"]]() if rank == 0 else be_late()


def be_late() -> None:
    """What a rank may do that computes, or reads a slow disk."""
    while True:
        sum(range(1000))
