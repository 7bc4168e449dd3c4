"""A worker whose ranks fail as the launch file says, around a gloo barrier that the others hang in."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist
import yaml

from data_pipeline.errors import DataError
from launcher import worker


def misbehave(recipe_path: Path, logs: Path) -> None:
    plan = yaml.safe_load(recipe_path.read_text())
    rank = int(os.environ["RANK"])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo")
    print(f"hello from rank {rank} of attempt {attempt}", flush=True)
    dist.barrier()
    action = plan["actions"].get(rank) if attempt < plan.get("attempts", 99) else None
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
            stop_when_told(logs, rank)
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


if __name__ == "__main__":
    worker.run_recipe = misbehave
    worker.main(Path(sys.argv[1]))
