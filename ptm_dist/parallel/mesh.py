"""Ranks arranged by what they share: replicas, ZeRO shards, tensor-parallel shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ptm_dist.recipe.layout import ResolvedLayout


@dataclass(frozen=True)
class RankGroup:
    """Ranks that work together on one thing; `group` is None where this process is alone."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` in place over the ranks."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor


ALONE = RankGroup(None, 0, 1)


@dataclass(frozen=True)
class RankMesh:
    """The world as replicas x shards x tensor-parallel ranks, neighbours in the last dimension.

    Attributes:
        replicate: ranks with the same shard of the state (HSDP replicas, or all of DDP).
        shard: ranks between which ZeRO splits the state.
        tensor: ranks that share each matrix.
        data: replicate and shard together: ranks that read different samples.
        data_mesh: the two data dimensions as torch wants them; None where there is no process group.
    """

    replicate: RankGroup
    shard: RankGroup
    tensor: RankGroup
    data: RankGroup
    data_mesh: DeviceMesh | None


def _group(mesh: DeviceMesh, name: str) -> RankGroup:
    if mesh[name].size() == 1:
        return ALONE
    return RankGroup(mesh.get_group(name), mesh.get_local_rank(name), mesh[name].size())


def ensure_process_group(device: torch.device) -> None:
    """Give a process that runs alone a process group of one, which FSDP asks for."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def build_mesh(layout: ResolvedLayout, device: torch.device) -> RankMesh:
    """Arrange all ranks of the default process group; collective.

    Raises:
        ValueError: if the layout does not multiply to the world size.
    """
    if not dist.is_initialized():
        if layout.world_size != 1:
            raise ValueError(f"a layout of {layout.world_size} ranks needs a process group")
        return RankMesh(ALONE, ALONE, ALONE, ALONE, None)
    if dist.get_world_size() != layout.world_size:
        raise ValueError(f"layout of {layout.world_size} ranks in a world of {dist.get_world_size()}")
    shape = (layout.replicate, layout.shard, layout.tensor_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
    data = ALONE
    if layout.data_parallel > 1:
        flat = mesh["replicate", "shard"]._flatten("data")
        data = RankGroup(flat.get_group(), flat.get_local_rank(), flat.size())
    return RankMesh(
        replicate=_group(mesh, "replicate"),
        shard=_group(mesh, "shard"),
        tensor=_group(mesh, "tensor"),
        data=data,
        data_mesh=mesh["replicate", "shard"],
    )
