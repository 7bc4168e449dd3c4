"""Where Megatron-Core keeps this rank's part of weights and Adam's moments, as boxes under our names."""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from ptm_dist.engines.megatron_keys import canonical_name
from ptm_dist.models.initialization import fill_initial
from ptm_dist.models.spec import ModelSpec
from ptm_dist.parallel.boxes import Held, boxes_of_range
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.shards import LocalShard

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Region:
    """Elements of one global tensor that lie side by side in this rank's memory.

    Attributes:
        name: ours.
        global_shape: of the whole tensor.
        local_shape: of this rank's tensor-parallel share, rows that fill up the vocabulary left out.
        offset: first index of the share in each dimension.
        begin: first element of the region in the flattened share.
        end: behind its last one.
        main: the float32 weights that are updated; their first element is `begin`.
    """

    name: str
    global_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    offset: tuple[int, ...]
    begin: int
    end: int
    main: Tensor

    def boxes(self, values: Tensor) -> tuple[LocalShard, ...]:
        """The region as boxes that share memory with `values`, a tensor like `main`; at least one, perhaps empty."""
        own = values.detach().view(-1)[: self.end - self.begin]
        return tuple(
            LocalShard(box.local, self.global_shape, tuple(map(add, self.offset, box.offset)))
            for box in boxes_of_range(own, self.local_shape, self.begin)
        )


class MegatronState:
    """Weights and moments of the optimizer of one process.

    Args:
        chunks: this rank's stages, wrapped or not.
        first_layers: of each of them.
        optimizer: Megatron-Core's, made for these stages.
        spec: of the whole model.
        shapes: of its parameters by our names.
        tensor: the tensor-parallel ranks.
    """

    def __init__(
        self,
        chunks: list[Any],
        first_layers: list[int],
        optimizer: Any,
        spec: ModelSpec,
        shapes: dict[str, tuple[int, ...]],
        tensor: RankGroup,
    ) -> None:
        self.spec = spec
        self.optimizer = optimizer
        self._chunks = chunks
        (self._mixed,) = optimizer.chained_optimizers
        self._adam = optimizer.optimizer
        self._start_moments()
        self._regions = [
            self._region(canonical_name(name, spec, first), parameter, shapes, tensor.rank)
            for chunk, first in zip(chunks, first_layers, strict=True)
            for name, parameter in unwrapped(chunk).named_parameters()
        ]

    def boxes(self) -> dict[str, Held]:
        """Boxes under canonical names; writing to them loads, once :meth:`refresh` is called."""
        state: dict[str, Held] = {}
        for region in self._regions:
            moments = self._adam.state[region.main] if region.main.numel() else dict.fromkeys(MOMENTS, region.main)
            state[f"model.{region.name}"] = _one_or_many(region.boxes(region.main))
            for moment in MOMENTS:
                state[f"optimizer.{region.name}.{moment}"] = _one_or_many(region.boxes(moments[moment]))
        return state

    def initialize(self, seed: int) -> None:
        """Fill all weights with the values that every layout and engine starts from."""
        with torch.no_grad():
            for region in self._regions:
                for box in region.boxes(region.main):
                    fill_initial(region.name, box.local, box.global_shape, box.offset, self.spec, seed)
        self.refresh(0)

    def refresh(self, updates: int) -> None:
        """After weights and moments were written: bring them into the model and set Adam's count of steps."""
        for group in self._adam.param_groups:
            for main in group["params"]:
                if "step" in self._adam.state[main]:
                    # Of its own for each parameter: Adam counts it up in place.
                    self._adam.state[main]["step"] = torch.tensor(float(updates))
            if "step" in group:
                group["step"] = updates
        if hasattr(self._mixed, "_copy_main_params_to_model_params"):
            self._mixed._copy_main_params_to_model_params()
        for chunk in self._chunks:
            if hasattr(chunk, "start_param_sync") and self._mixed.config.use_distributed_optimizer:
                chunk.start_param_sync()

    def _start_moments(self) -> None:
        """Adam's state from the first step on, so that it can be saved and loaded before."""
        for group in self._adam.param_groups:
            for main in group["params"]:
                state = self._adam.state[main]
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(main.detach())
                if isinstance(self._adam, torch.optim.AdamW):
                    state["step"] = torch.tensor(0.0)
            if not isinstance(self._adam, torch.optim.AdamW):
                group["step"] = 0

    def _region(self, name: str, parameter: Tensor, shapes: dict[str, tuple[int, ...]], tensor_rank: int) -> Region:
        shape, offset = list(parameter.shape), [0] * parameter.dim()
        if getattr(parameter, "tensor_model_parallel", False):
            dimension = parameter.partition_dim  # type: ignore[attr-defined]
            offset[dimension] = tensor_rank * shape[dimension]
            shape[dimension] = max(0, min(shape[dimension], shapes[name][dimension] - offset[dimension]))
        begin, main = self._owned(parameter)
        end = min(begin + main.numel(), torch.Size(shape).numel())
        return Region(name, shapes[name], tuple(shape), tuple(offset), begin, max(begin, end), main)

    def _owned(self, parameter: Tensor) -> tuple[int, Tensor]:
        """The elements of a parameter that this rank updates: where they begin, and their float32 values."""
        if not self._mixed.config.use_distributed_optimizer:
            return 0, getattr(parameter, "main_param", parameter)
        if parameter not in self._mixed.model_param_group_index_map:
            return 0, torch.empty(0, device=parameter.device)
        group, index = self._mixed.model_param_group_index_map[parameter]
        begin: int = self._mixed._get_model_param_range_map(parameter)["param"].start
        return begin, self._adam.param_groups[group]["params"][index]


def unwrapped(model: nn.Module) -> Any:
    """The model itself, inside what Megatron-Core wraps around it."""
    while hasattr(model, "module"):
        model = model.module  # type: ignore[assignment]
    return model


def _one_or_many(boxes: tuple[LocalShard, ...]) -> Held:
    return boxes[0] if len(boxes) == 1 else boxes
