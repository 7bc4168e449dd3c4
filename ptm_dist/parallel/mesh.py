"""Ranks arranged by what they share: layers, replicas, ZeRO shards, sequences, matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

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

_PIPELINE, _REPLICATE, _SHARD, _CONTEXT, _TENSOR = range(5)


class GroupFactory:
    """Makes process groups of the default group's ranks, those of the same ranks once; every rank takes part in all.

    Args:
        shape: the world as an array of ranks, neighbours in the last dimension.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.ranks = torch.arange(dist.get_world_size()).view(shape)
        self.position = tuple((self.ranks == dist.get_rank()).nonzero()[0].tolist())
        self._made: dict[tuple[tuple[int, ...], ...], RankGroup] = {}
        self._own: list[dist.ProcessGroup] = []

    def along(self, *dimensions: int, even_alone: bool = False, again: int = 0) -> RankGroup:
        """This rank's group of all that differ from it in some dimensions only.

        Args:
            dimensions: of the shape.
            even_alone: give a group of one process too, where a library asks for it.
            again: tells apart several groups of the same ranks.
        """
        others = [d for d in range(self.ranks.dim()) if d not in dimensions]
        rows = self.ranks.permute(*others, *dimensions).reshape(-1, self._size(dimensions))
        return self._group([tuple(row.tolist()) for row in rows], even_alone=even_alone, again=again)

    def among(self, dimension: int, members: tuple[int, ...]) -> RankGroup:
        """This rank's group of the members of a dimension that it has everything else in common with.

        Ranks that are not members take part in making the groups; they are alone in what is returned.
        """
        chosen = self.ranks.index_select(dimension, torch.tensor(members))
        rows = chosen.movedim(dimension, -1).reshape(-1, len(members))
        return self._group([tuple(row.tolist()) for row in rows])

    def close(self) -> None:
        """Take down all groups."""
        for group in self._own:
            dist.destroy_process_group(group)
        self._own.clear()
        self._made.clear()

    def _size(self, dimensions: tuple[int, ...]) -> int:
        size = 1
        for dimension in dimensions:
            size *= self.ranks.shape[dimension]
        return size

    def _group(self, rows: list[tuple[int, ...]], *, even_alone: bool = False, again: int = 0) -> RankGroup:
        if len(rows[0]) == 1 and not even_alone:
            return ALONE
        key = (*rows, (again,))
        if key not in self._made:
            mine = next((row for row in rows if dist.get_rank() in row), None)
            group = self._make(rows, mine)
            self._made[key] = ALONE if mine is None else RankGroup(group, mine.index(dist.get_rank()), len(mine))
        return self._made[key]

    def _make(self, rows: list[tuple[int, ...]], mine: tuple[int, ...] | None) -> dist.ProcessGroup | None:
        """All rows' groups, of which this rank is in one or none."""
        if len(rows[0]) == 1:
            group = dist.new_group(list(mine or ()), use_local_synchronization=True)
        else:
            made = {row: dist.new_group(list(row)) for row in rows}
            group = None if mine is None else made[mine]
        if group is not None and mine is not None:
            self._own.append(group)
        return group


@dataclass(frozen=True)
class RankMesh:
    """The world as pipeline x replicas x shards x context x tensor-parallel ranks, neighbours in the last dimension.

    Attributes:
        pipeline: ranks that hold the other layers of this rank's copy of the model.
        replicate: ranks with the same shard of the state (HSDP replicas, or all of DDP).
        shard: ranks between which ZeRO splits the state: data and context ranks alike.
        context: ranks that share each sequence.
        tensor: ranks that share each matrix.
        data: ranks that read different samples.
        losses: ranks whose losses add up: of all samples, positions and stages.
        state_mesh: replicate and shard as torch wants them; None where there is no process group.
        factory: for further groups; None where there is no process group.
    """

    pipeline: RankGroup = ALONE
    replicate: RankGroup = ALONE
    shard: RankGroup = ALONE
    context: RankGroup = ALONE
    tensor: RankGroup = ALONE
    data: RankGroup = ALONE
    losses: RankGroup = ALONE
    state_mesh: DeviceMesh | None = None
    factory: GroupFactory | None = field(default=None, repr=False)

    def pipeline_members(self, members: tuple[int, ...]) -> RankGroup:
        """The group of some pipeline ranks; collective over the world."""
        if len(members) < 2:  # also a pipeline of one
            return ALONE
        if len(members) == self.pipeline.size:
            return self.pipeline
        assert self.factory is not None
        return self.factory.among(_PIPELINE, members)

    def pipeline_again(self, again: int) -> RankGroup:
        """Another group of the same pipeline ranks, with communicators of its own; collective over the world."""
        return ALONE if self.factory is None else self.factory.along(_PIPELINE, again=again)

    def close(self) -> None:
        """Take down the groups."""
        if self.factory is not None:
            self.factory.close()


def ensure_process_group(device: torch.device) -> None:
    """Give a process that runs alone a process group of one, which FSDP asks for."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def build_mesh(layout: ResolvedLayout, device: torch.device) -> RankMesh:
    """Arrange all ranks of the default process group; collective.

    Raises:
        ValueError: if the layout does not multiply to the world size.
    """
    if not dist.is_initialized():
        if layout.world_size != 1:
            raise ValueError(f"a layout of {layout.world_size} ranks needs a process group")
        return RankMesh()
    if dist.get_world_size() != layout.world_size:
        raise ValueError(f"layout of {layout.world_size} ranks in a world of {dist.get_world_size()}")
    data_and_tensor = (layout.replicate, layout.shard, layout.context_parallel, layout.tensor_parallel)
    factory = GroupFactory((layout.pipeline_parallel, *data_and_tensor))
    # Context ranks hold the same weights and see different positions: to the state they are data-parallel ranks.
    copies, shards = ((_REPLICATE,), (_SHARD, _CONTEXT)) if layout.zero_stage else ((_REPLICATE, _CONTEXT), (_SHARD,))
    replicate, shard = factory.along(*copies, even_alone=True), factory.along(*shards, even_alone=True)
    return RankMesh(
        pipeline=factory.along(_PIPELINE),
        replicate=replicate,
        shard=shard,
        context=factory.along(_CONTEXT),
        tensor=factory.along(_TENSOR),
        data=factory.along(_REPLICATE, _SHARD),
        losses=factory.along(_PIPELINE, _REPLICATE, _SHARD, _CONTEXT),
        state_mesh=_state_mesh(factory, copies, shards, (replicate, shard), device),
        factory=factory,
    )


def _state_mesh(
    factory: GroupFactory,
    copies: tuple[int, ...],
    shards: tuple[int, ...],
    groups: tuple[RankGroup, RankGroup],
    device: torch.device,
) -> DeviceMesh:
    """This rank's replicas and shards, ``[replicas, shards]`` of ranks."""
    own = tuple(
        slice(None) if dimension in (*copies, *shards) else factory.position[dimension] for dimension in range(5)
    )
    kept = [dimension for dimension in range(5) if dimension in (*copies, *shards)]
    order = [kept.index(dimension) for dimension in (*copies, *shards)]
    ranks = factory.ranks[own].permute(order).reshape(groups[0].size, groups[1].size)
    return DeviceMesh.from_group(
        [group.group for group in groups],  # type: ignore[misc]
        device.type,
        ranks,
        mesh_dim_names=("replicate", "shard"),
    )
