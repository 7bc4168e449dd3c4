"""A worker whose ranks fail as the plan says, around a gloo barrier that the others hang in."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.errors import DataError
from launcher.worker import Job
from ptm_dist.training.link import Phase
from ptm_dist.training.processes import process_group


def misbehave(job: Job) -> None:
    rank, attempt, plan = job.world.rank, job.attempt, job.payload
    with process_group(job.world, torch.device("cpu")):
        print(f"hello from rank {rank} of attempt {attempt}", flush=True)
        dist.barrier()
        job.link.report(Phase.STEP, attempt + 1)
        action = plan["actions"].get(str(rank)) if attempt < plan.get("attempts", 99) else None
        match action:
            case "raise":
                raise ValueError(f"wrong number in rank {rank}")
            case "user":
                raise DataError("shard 7 is truncated; copy it again")
            case "exit":
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(1000)
            case "stop":
                stop_when_told(job.logs, rank)
            case "finish":
                return
        dist.barrier()


def stop_when_told(logs: Path, rank: int) -> None:
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    (logs / f"ready{rank}").touch()
    while not told:
        time.sleep(0.02)
    time.sleep(0.3)
    (logs / f"stopped{rank}").touch()
