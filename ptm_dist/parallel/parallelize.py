"""All parallelism in its one order: stages, tensor and context parallel, recompute, compile, data parallel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.models import model_spec
from ptm_dist.models.initialization import fill_initial
from ptm_dist.models.model import LanguageModel, Part
from ptm_dist.models.spec import ModelSpec
from ptm_dist.parallel.activation_offload import offload_activations
from ptm_dist.parallel.collectives import sum_together
from ptm_dist.parallel.context import context_mixer
from ptm_dist.parallel.data import DataParallel
from ptm_dist.parallel.mesh import RankGroup, RankMesh
from ptm_dist.parallel.recompute import apply_recompute, compile_blocks
from ptm_dist.parallel.replicas import Replicas
from ptm_dist.parallel.schedules import schedule_of
from ptm_dist.parallel.shards import LocalShard, chunk_range
from ptm_dist.parallel.stage import Stage
from ptm_dist.parallel.stages import stage_parts
from ptm_dist.parallel.tensor import (
    TensorSplit,
    apply_tensor_parallel,
    sees_range_of_positions,
    split_dimension,
    tensor_box,
)
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import ModelSection, Recompute


@dataclass(frozen=True)
class Numbers:
    """Dtypes of a run: of stored weights and optimizer state, and of the computation (None: the same)."""

    master: torch.dtype
    compute: torch.dtype | None


@dataclass(frozen=True)
class StagePlan:
    """Where the parts of a model are.

    Attributes:
        parts: of each stage.
        rank_of: pipeline rank of each stage.
    """

    parts: tuple[Part, ...]
    rank_of: tuple[int, ...]

    def of_rank(self, rank: int) -> list[int]:
        """Stages of a pipeline rank, in order."""
        return [stage for stage, owner in enumerate(self.rank_of) if owner == rank]

    def holders(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """Pipeline ranks that hold what several stages may share, by the first letters of the parameters' names."""
        found: dict[str, set[int]] = {}
        for part, rank in zip(self.parts, self.rank_of, strict=True):
            for group in {spec.group_of(layer) for layer in range(part.first, part.end)}:
                found.setdefault(f"layers.{group}.", set()).add(rank)
        if spec.tie_embeddings:
            found["embeddings.token."] = {self.rank_of[0], self.rank_of[-1]}
        return {prefix: tuple(sorted(ranks)) for prefix, ranks in found.items()}


def plan_stages(section: ModelSection, layout: ResolvedLayout) -> StagePlan:
    """The stages of a layout."""
    parts = stage_parts(model_spec(section), layout.num_stages, split=layout.pipeline_split)
    return StagePlan(tuple(parts), schedule_of(layout, 1).rank_of)


class ParallelModel:
    """A model of which this process holds and computes its part; without memory until :meth:`materialize`.

    A parameter that several stages use, tied or shared between layers, is kept by each of them. Their gradients are
    summed over stages and ranks, so that equal copies stay equal; on one process the first copy counts as the
    parameter, and the others follow it.

    Args:
        build: gives the model, or a part of it; called on the meta device.
        plan: the stages.
        layout: how the model is shared.
        mesh: the ranks, from the same layout.
        numbers: dtypes.
        choice: which forms compute operations that have several.
    """

    def __init__(
        self,
        build: Callable[[Part | None], LanguageModel],
        plan: StagePlan,
        layout: ResolvedLayout,
        mesh: RankMesh,
        numbers: Numbers,
        choice: Choice | None = None,
    ) -> None:
        with torch.device("meta"):
            whole = build(None)
            parts = {number: build(plan.parts[number]) for number in plan.of_rank(mesh.pipeline.rank)}
        self.spec = whole.spec
        self.mesh = mesh
        self.split = TensorSplit(mesh.tensor, layout.sequence_parallel)
        self._global_shapes = {name: tuple(p.shape) for name, p in whole.named_parameters()}
        self.stages = {
            number: _build_stage(number, part, layout, mesh, self.split, numbers, choice or Choice())
            for number, part in parts.items()
        }
        self._parameters, self._copies = self._gather_parameters()
        self._shared = _shared_groups(plan, self.spec, mesh)

    def materialize(self, device: torch.device) -> None:
        """Give this process's part memory on a device, whatever stands in it."""
        for stage in self.stages.values():
            stage.module.to_empty(device=device)
            stage.module.tie()
            if isinstance(stage.data_parallel, Replicas):
                stage.data_parallel.materialized()
        self._parameters, self._copies = self._gather_parameters()

    @property
    def is_sharded(self) -> bool:
        """Whether ZeRO splits parameters between ranks."""
        return self.mesh.shard.size > 1

    def shards(self) -> dict[str, LocalShard]:
        """This rank's box of every parameter by canonical name; :meth:`changed` must follow what is written to it."""
        return {name: self._shard(name, parameter) for name, parameter in self._parameters.items()}

    def changed(self) -> None:
        """Bring further copies of parameters in line with the first ones, after these were written to."""
        with torch.no_grad():
            for name, copies in self._copies.items():
                for copy in copies:
                    _local(copy.detach()).copy_(_local(self._parameters[name].detach()))
        for stage in self.stages.values():
            if isinstance(stage.data_parallel, Replicas):
                stage.data_parallel.changed()

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of :meth:`shards`, summed over all ranks that share a box."""
        gradients = {}
        for name, parameter in self._parameters.items():
            gradients[name] = _gradient(name, parameter)
            for copy in self._copies.get(name, ()):
                gradients[name] += _gradient(name, copy)
        partial = [name for name in gradients if sees_range_of_positions(name, self.spec, self.split)]
        sum_together([gradients[name] for name in partial], self.mesh.tensor)
        for prefixes, ranks in self._shared:
            sum_together([gradients[name] for name in sorted(gradients) if name.startswith(prefixes)], ranks)
        return gradients

    def counted(self, name: str) -> bool:
        """Whether this rank, of all pipeline ranks that hold the parameter, is the one that counts it."""
        return all(ranks.rank == 0 for prefixes, ranks in self._shared if name.startswith(prefixes))

    def zero_gradients(self) -> None:
        """Forget all gradients."""
        for name, parameter in self._parameters.items():
            for each in (parameter, *self._copies.get(name, ())):
                each.grad = None

    def release(self) -> None:
        """Give up what a forward pass without a backward pass left whole."""
        for stage in self.stages.values():
            if stage.data_parallel is not None:
                stage.data_parallel.reshard()

    def initialize(self, seed: int) -> None:
        """Fill every shard with its initial values; the same bits at any layout."""
        with torch.no_grad():
            for name, shard in self.shards().items():
                fill_initial(name, shard.local, shard.global_shape, shard.offset, self.spec, seed)
        self.changed()

    def owners(self, name: str) -> tuple[bool, bool]:
        """Whether the parameter is split between tensor-parallel ranks, and between ZeRO shards."""
        return split_dimension(name) is not None and self.mesh.tensor.size > 1, self.is_sharded

    def _gather_parameters(self) -> tuple[dict[str, nn.Parameter], dict[str, list[nn.Parameter]]]:
        """The first copy of each parameter and the others; taken once: FSDP swaps them for whole ones."""
        first: dict[str, nn.Parameter] = {}
        copies: dict[str, list[nn.Parameter]] = {}
        for stage in self.stages.values():
            canonical = stage.module.parameter_names()
            for name, parameter in stage.updated_parameters().items():
                if canonical[name] in first:
                    copies.setdefault(canonical[name], []).append(parameter)
                else:
                    first[canonical[name]] = parameter
        return first, copies

    def _shard(self, name: str, parameter: nn.Parameter) -> LocalShard:
        global_shape, tensor = self._global_shapes[name], self.mesh.tensor
        offset, shape = tensor_box(name, global_shape, self.spec, tensor.size, tensor.rank)
        if self.is_sharded:
            begin, _ = chunk_range(shape[0], self.mesh.shard.size, self.mesh.shard.rank)
            offset = (offset[0] + begin, *offset[1:])
        return LocalShard(_local(parameter.detach()), global_shape, offset)


def _build_stage(
    number: int,
    part: LanguageModel,
    layout: ResolvedLayout,
    mesh: RankMesh,
    split: TensorSplit,
    numbers: Numbers,
    choice: Choice,
) -> Stage:
    module = part.to(numbers.master)
    module.choose(choice)
    if mesh.tensor.size > 1:
        apply_tensor_parallel(module, split)
    if mesh.context.size > 1:
        drops = module.spec.attention_dropout > 0.0
        module.mixer = context_mixer(layout.context_method, mesh.context, choice, drops=drops)
    apply_recompute(module, layout.recompute, layout.recompute_every)
    if layout.compile:
        compile_blocks(module)
    if layout.offload_activations:
        offload_activations(module)
    each_once = len(module.layers) == module.part.end - module.part.first
    splits = each_once and layout.recompute is Recompute.NONE and not layout.compile
    return Stage(number, module, _share_state(module, layout, mesh, numbers), splits)


def _share_state(
    module: LanguageModel, layout: ResolvedLayout, mesh: RankMesh, numbers: Numbers
) -> DataParallel | Replicas | None:
    """What stands between a stage and its state; nothing where this process alone has it, in one type."""
    on_host = layout.offload == "parameters"
    if mesh.shard.size > 1 or on_host:
        return DataParallel(module, mesh, layout.zero_stage, numbers.compute, on_host=on_host)
    if mesh.replicate.size > 1 or numbers.compute is not None:
        return Replicas(module, mesh.replicate, numbers.compute)
    return None


def _shared_groups(plan: StagePlan, spec: ModelSpec, mesh: RankMesh) -> list[tuple[tuple[str, ...], RankGroup]]:
    """Names that several pipeline ranks hold, and this rank's group of them; collective, so in one order."""
    by_ranks: dict[tuple[int, ...], list[str]] = {}
    for prefix, ranks in plan.holders(spec).items():
        if len(ranks) > 1:
            by_ranks.setdefault(ranks, []).append(prefix)
    groups = [(tuple(by_ranks[ranks]), mesh.pipeline_members(ranks)) for ranks in sorted(by_ranks)]
    return [(prefixes, group) for prefixes, group in groups if group.size > 1]


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError(f"no gradient reached {name}")
    return _local(parameter.grad)


def _local(tensor: Tensor) -> Tensor:
    """A plain tensor that shares memory with this rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
