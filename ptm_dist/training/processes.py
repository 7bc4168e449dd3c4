"""How a process becomes one of a run: its device, its algorithms, its peers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from ptm_dist.parallel.control import ControlGroup, control_group
from ptm_dist.training.allocation import keep_freed_memory
from ptm_dist.training.world import World


def choose_device(kind: str, local_rank: int) -> torch.device:
    """The device of this process; `kind` as in ``launch.device``."""
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def settle(kind: str) -> None:
    """What a process does that has no other work than a run; `kind` as in ``launch.device``.

    On the CPU it keeps freed memory, which there is what tensors are made of.
    """
    if kind == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()


def make_deterministic(*, warns: bool = False) -> None:
    """Have torch choose algorithms that give the same bits each time.

    Args:
        warns: where there is none, warn and go on, with torch's attention kernels as they are. Else it is an error.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[ControlGroup]:
    """The default process group of a run, unless there is one already or this process is alone.

    After an error the group is left as it is: the others may never come to take it down together.
    """
    joined = dist.is_initialized()
    if world.world_size > 1 and not joined:
        dist.init_process_group(
            # With offloading, tensors of the host are summed as well.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_meeting_place(world),
            rank=world.rank,
            world_size=world.world_size,
            device_id=device if device.type == "cuda" else None,
        )
    yield control_group()
    if dist.is_initialized() and not joined:
        dist.destroy_process_group()


def _meeting_place(world: World) -> TCPStore:
    is_host = world.rank == 0 and not world.has_store
    return TCPStore(world.master_addr, world.master_port, world.world_size, is_host, wait_for_workers=False)
