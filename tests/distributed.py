"""Run a function on several gloo processes of one machine, as OLMo-core's tests do, but started in a blink.

Workers are forked from a server process that has imported torch and never ran anything: 0.3 s for two.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "ptm_dist.engines", "tests.distributed"])


class WorkerError(AssertionError):
    """A worker failed: its traceback, and those of the workers that fell with it."""


def run_distributed(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 300.0, backend: str = "gloo"
) -> list[Any]:
    """Call `fn(*args)` on every rank of a world of `backend` (gloo or nccl) and return the results by rank.

    `fn` and `args` must be picklable: a function at the top of its module. Inside, ``dist.get_rank()`` tells
    ranks apart. Results travel by file, since a tensor in a queue dies with its process.

    Raises:
        WorkerError: when a rank raises, dies or is late; the first failure stands first.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            _context.Process(target=_work, args=(rank, world_size, backend, folder, fn, args), daemon=True)
            for rank in range(world_size)
        ]
        for worker in workers:
            worker.start()
        _wait(workers, Path(folder), timeout)
        return [torch.load(Path(folder) / f"result-{rank}", weights_only=False) for rank in range(world_size)]


def _work(rank: int, world_size: int, backend: str, folder: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    try:
        store = dist.FileStore(f"{folder}/store", world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        torch.save(fn(*args), f"{folder}/result-{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(f"{folder}/error-{rank}").write_text(f"{time.time()}\nrank {rank}:\n{traceback.format_exc()}")
        os._exit(1)


def _wait(workers: list[Any], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(worker.exitcode is None for worker in workers) and time.monotonic() < deadline:
        if any(worker.exitcode not in (None, 0) for worker in workers):
            time.sleep(0.5)
            break
        time.sleep(0.005)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
        worker.join()
    if any(code != 0 for code in codes):
        errors = sorted(path.read_text() for path in folder.glob("error-*"))
        raise WorkerError("\n".join([f"exit codes by rank (None: still running): {codes}", *errors]))
