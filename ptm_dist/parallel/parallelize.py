"""All parallelism in its one order: tensor parallel, recompute, compile, data parallel; then initial weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ptm_dist.models.initialization import fill_initial
from ptm_dist.models.model import LanguageModel
from ptm_dist.parallel.data import DataParallel
from ptm_dist.parallel.mesh import RankMesh
from ptm_dist.parallel.recompute import compile_blocks, recompute_blocks
from ptm_dist.parallel.shards import LocalShard, chunk_range
from ptm_dist.parallel.tensor import (
    TensorSplit,
    apply_tensor_parallel,
    sees_range_of_positions,
    split_dimension,
    sum_over_ranks,
)
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Recompute


@dataclass(frozen=True)
class Numbers:
    """Dtypes of a run: of stored weights and optimizer state, and of the computation (None: the same)."""

    master: torch.dtype
    compute: torch.dtype | None


class ParallelModel:
    """A model of which this process holds and computes its part.

    Args:
        model: the whole model on the meta device.
        layout: how it is shared.
        mesh: the ranks, from the same layout.
        numbers: dtypes.
        device: where this process's part lives.
    """

    def __init__(
        self,
        model: LanguageModel,
        layout: ResolvedLayout,
        mesh: RankMesh,
        numbers: Numbers,
        device: torch.device,
    ) -> None:
        self.module = model.to(numbers.master)
        self.spec = model.spec
        self.mesh = mesh
        self.split = TensorSplit(mesh.tensor, layout.sequence_parallel)
        self._global_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._data_parallel = self._apply(layout, numbers)
        self._materialise(device)
        # FSDP puts its whole parameters in the module's place while they are needed: keep the shards.
        self._parameters = dict(self.module.named_parameters())

    def _apply(self, layout: ResolvedLayout, numbers: Numbers) -> DataParallel | None:
        if self.mesh.tensor.size > 1:
            apply_tensor_parallel(self.module, self.split)
        if layout.recompute is Recompute.FULL:
            recompute_blocks(self.module)
        if layout.compile:
            compile_blocks(self.module)
        if self.mesh.data.size == 1 and numbers.compute is None:
            return None
        return DataParallel(self.module, self.mesh, layout.zero_stage, numbers.compute)

    def _materialise(self, device: torch.device) -> None:
        self.module.to_empty(device=device)
        self.module.tie()

    @property
    def is_sharded(self) -> bool:
        """Whether ZeRO splits parameters between ranks."""
        return self._data_parallel is not None and self.mesh.shard.size > 1

    def shards(self) -> dict[str, LocalShard]:
        """This rank's box of every parameter by canonical name; writing to it writes the parameter."""
        return {name: self._shard(name, parameter) for name, parameter in self._parameters.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of :meth:`shards`, summed over all ranks that share a box."""
        gradients = {}
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                raise RuntimeError(f"no gradient reached {name}")
            gradients[name] = _local(parameter.grad)
        partial = [name for name in gradients if sees_range_of_positions(name, self.spec, self.split)]
        sum_over_ranks([gradients[name] for name in partial], self.split)
        return gradients

    def zero_gradients(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def begin_micro_batch(self, *, last: bool) -> None:
        """Say before a forward pass whether it is the last one of the step."""
        if self._data_parallel is not None:
            self._data_parallel.begin_micro_batch(last=last)

    def release(self) -> None:
        """Give up what a forward pass without a backward pass left whole."""
        if self._data_parallel is not None:
            self._data_parallel.reshard()

    def initialize(self, seed: int) -> None:
        """Fill every shard with its initial values; the same bits at any layout."""
        with torch.no_grad():
            for name, shard in self.shards().items():
                fill_initial(name, shard.local, shard.global_shape, shard.offset, self.spec, seed)

    def owners(self, name: str) -> tuple[bool, bool]:
        """Whether the parameter is split between tensor-parallel ranks, and between ZeRO shards."""
        return split_dimension(name) is not None and self.mesh.tensor.size > 1, self.is_sharded

    def _shard(self, name: str, parameter: nn.Parameter) -> LocalShard:
        global_shape = self._global_shapes[name]
        offset = [0] * len(global_shape)
        shape = list(global_shape)
        dimension = split_dimension(name)
        if dimension is not None:
            begin, end = self.split.range(global_shape[dimension])
            offset[dimension], shape[dimension] = begin, end - begin
        if self.is_sharded:
            begin, _ = chunk_range(shape[0], self.mesh.shard.size, self.mesh.shard.rank)
            offset[0] += begin
        return LocalShard(_local(parameter.detach()), global_shape, tuple(offset))


def _local(tensor: Tensor) -> Tensor:
    """A plain tensor that shares memory with this rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
