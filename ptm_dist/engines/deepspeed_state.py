"""What DeepSpeed's optimizers hold, as boxes of canonical tensors.

DeepSpeed flattens parameters, puts them one behind the other and gives each rank a range: of one parameter a rank
holds some elements in the order of memory, in float32 and beside them its optimizer state. Every wrapper keeps these
at another place; a :class:`Piece` says where, whatever the wrapper. What lies in files between its uses is read and
written in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptm_dist.engines.deepspeed_swap import MappedFiles, in_memory
from ptm_dist.parallel.boxes import Held, boxes_of_range
from ptm_dist.recipe.schema import OptimizerSection

_SLOTS = {"adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}, "sgd": {"momentum": "momentum_buffer"}}
"""By optimizer our names of the slots and torch's."""


@dataclass(frozen=True)
class Piece:
    """The elements of one parameter that this rank updates.

    Attributes:
        name: canonical.
        shape: of the whole parameter.
        begin: place of the first element in the flattened parameter.
        flat: what the torch optimizer updates, of any shape: this and other pieces, or the parameter itself.
        start: place of the first element in `flat`.
        size: number of elements.
    """

    name: str
    shape: tuple[int, ...]
    begin: int
    flat: Tensor
    start: int
    size: int

    def held(self, values: Tensor) -> Held:
        """This piece of a tensor that is laid out as `flat`."""
        return boxes_of_range(values.detach().view(-1).narrow(0, self.start, self.size), self.shape, self.begin)


class DeepSpeedState:
    """Weights and optimizer state of a DeepSpeed engine.

    Args:
        engine: as `deepspeed.initialize` gives it.
        model: the module it was made of.
        section: the optimizer.
    """

    def __init__(self, engine: Any, model: nn.Module, section: OptimizerSection) -> None:
        self._engine = engine
        self._model = model
        self._section = section
        self._optimizer: torch.optim.Optimizer = engine.basic_optimizer
        flats = {id(piece.flat): piece.flat for piece in self._pieces()}
        for flat in [*flats.values(), *self._flats_without_pieces(flats)]:
            with in_memory(engine.optimizer, flat, write=True):
                # Where torch's fused optimizers want it, and as they want it.
                steps = {"step": torch.zeros((), dtype=torch.float32, device=flat.device)}
                zeros = {theirs: torch.zeros_like(flat) for theirs in _SLOTS[section.kind].values()}
                self._optimizer.state[flat] = steps | zeros
        self._files = MappedFiles(engine.optimizer)

    def boxes(self) -> dict[str, Held]:
        """Weights (`model.<name>`) and slots (`optimizer.<name>.<slot>`); writing to them loads."""
        state: dict[str, Held] = {}
        self._files = MappedFiles(self._engine.optimizer)
        for piece in self._pieces():
            state[f"model.{piece.name}"] = piece.held(self._files.values_of(piece.flat))
            for ours, theirs in _SLOTS[self._section.kind].items():
                slot = self._files.values_of(self._optimizer.state[piece.flat][theirs])
                state[f"optimizer.{piece.name}.{ours}"] = piece.held(slot)
        return state

    @torch.no_grad()
    def written(self, updates: int) -> None:
        """Take over what was written to :meth:`boxes`: all copies of the weights, and the count of updates."""
        count = float(updates)
        if self._section.kind == "adamw" and not self._section.bias_correction:
            # After infinitely many steps the corrections 1 - b^t are 1, exactly.
            count = math.inf
        for state in self._optimizer.state.values():
            state["step"].fill_(count)
        self._files.flush()
        refresh_copies(self._engine)

    def _flats_without_pieces(self, known: Mapping[int, Tensor]) -> list[Tensor]:
        """What is padding alone on this rank: updated as well."""
        flats = getattr(self._engine.optimizer, "single_partition_of_fp32_groups", ())
        flats = getattr(self._engine.optimizer, "fp32_groups_flat_partition", flats)
        return [flat for flat in flats if id(flat) not in known]

    def _pieces(self) -> Iterator[Piece]:
        for name, parameter in self._model.named_parameters():
            yield piece_of(name, parameter, self._engine.optimizer)


def piece_of(name: str, parameter: Any, wrapper: Any) -> Piece:
    """Where a DeepSpeed optimizer keeps this rank's part of a parameter.

    Args:
        name: of the parameter.
        parameter: of the model, as DeepSpeed left it.
        wrapper: DeepSpeed's optimizer, or torch's own at ZeRO-0 in full precision.
    """
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        return _partitioned(name, parameter, wrapper)
    shape = tuple(parameter.shape)
    if hasattr(parameter, "_hp_mapping"):  # ZeRO-1 and 2
        return _linked(name, parameter, wrapper)
    for ours, masters in zip(getattr(wrapper, "fp16_groups", ()), getattr(wrapper, "fp32_groups", ()), strict=True):
        for parameter_, master in zip(ours, masters, strict=True):
            if parameter_ is parameter:
                return Piece(name, shape, 0, master, 0, master.numel())
    return Piece(name, shape, 0, parameter, 0, parameter.numel())


def _partitioned(name: str, parameter: Any, wrapper: Any) -> Piece:
    group, start, _ = wrapper.grad_position[wrapper.get_param_id(parameter)]
    share = parameter.partition_numel()
    begin = min(share * parameter.ds_process_group.rank(), parameter.ds_numel)
    size = min(share, parameter.ds_numel - begin)
    return Piece(name, tuple(parameter.ds_shape), begin, wrapper.fp32_partitioned_groups_flat[group], start, size)


def _linked(name: str, parameter: Any, wrapper: Any) -> Piece:
    mapping = parameter._hp_mapping
    shape = tuple(parameter.shape)
    masters = getattr(wrapper, "single_partition_of_fp32_groups", None) or wrapper.fp32_groups_flat_partition
    if mapping is None:
        return Piece(name, shape, 0, masters[0], 0, 0)
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, shape, here.start, masters[mapping.param_group_index], there.start, there.numel)


def refresh_copies(engine: Any) -> None:
    """Make the weights that the model computes with from those that the optimizer updates; collective."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "update_lp_params"):  # ZeRO-1 and 2
        wrapper.update_lp_params()
    elif hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO-3
        wrapper._partition_all_parameters()
        for group, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
            with in_memory(wrapper, flat):
                wrapper._reassign_or_swap_out_partitioned_parameters(group)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
    else:
        for ours, masters in zip(getattr(wrapper, "fp16_groups", ()), getattr(wrapper, "fp32_groups", ()), strict=True):
            for parameter, master in zip(ours, masters, strict=True):
                parameter.data.copy_(master.data)
