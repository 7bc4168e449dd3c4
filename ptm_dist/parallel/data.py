"""Data parallelism: state sharded between ranks that read different samples (ZeRO, arXiv 1910.02054).

Every stage is FSDP2 with another answer to two questions: when are whole parameters given up, and when are
gradients reduced. Where nothing is sharded, replicas.py takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from ptm_dist.models.model import LanguageModel
from ptm_dist.parallel.mesh import RankMesh


class DataParallel:
    """Shards `model` in place and says, micro-batch by micro-batch, what is kept whole.

    Gradients are summed over ranks, never averaged: the loss is already divided by the global number of targets.

    Args:
        model: a model or a part of one, on the meta device or materialised; one group per block plus one for the
            rest. What is used more than once, tied weights and blocks that layers share, lies in the rest: whole
            from the first use to the last, and reduced once.
        mesh: from :func:`ptm_dist.parallel.mesh.build_mesh`; needs its state mesh.
        zero_stage: 0 to 3.
        compute_dtype: dtype of parameters and activations in the step; None keeps the parameters' own.
        on_host: parameters and gradients lie in host memory but for the group at work.
    """

    def __init__(
        self,
        model: LanguageModel,
        mesh: RankMesh,
        zero_stage: int,
        compute_dtype: torch.dtype | None,
        *,
        on_host: bool = False,
    ) -> None:
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        if compute_dtype is None:
            policy = MixedPrecisionPolicy()
        offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if on_host else OffloadPolicy()
        self.zero_stage = zero_stage
        reshard = zero_stage == 3
        shared = len(model.layers) < model.part.end - model.part.first
        for part in (model,) if shared else (*model.blocks(), model):
            fully_shard(
                part, mesh=mesh.state_mesh, reshard_after_forward=reshard, mp_policy=policy, offload_policy=offload
            )
        self.root = cast(FSDPModule, model)
        for module in self._modules():
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def _modules(self) -> Iterator[FSDPModule]:
        return (module for module in cast(nn.Module, self.root).modules() if isinstance(module, FSDPModule))

    def begin_backward(self, *, last: bool) -> None:
        """Say before a backward pass whether it is the last one of the step.

        Stages 0 and 1 reduce gradients once per step; stages 2 and 3 reduce-scatter them each time and leave
        the sum over replicas to the end. Stages below 3 keep parameters whole until the last backward pass.
        """
        self.root.set_requires_gradient_sync(last or self.zero_stage >= 2)
        self.root.set_requires_all_reduce(last)
        self.root.set_reshard_after_backward(last or self.zero_stage == 3)

    def end_backward(self) -> None:
        """FSDP's own hooks do this."""

    def hold_weights(self) -> None:
        """Before either half of a backward pass: make parameters whole and keep them so, reduce nothing."""
        for module in self._modules():
            module.unshard()
        self.root.set_requires_gradient_sync(False)
        self.root.set_reshard_after_backward(False)

    def finish_weights(self, *, last: bool) -> None:
        """After its second half, of weights: what the hooks of FSDP do at the end of a whole backward pass."""
        self.begin_backward(last=last)
        for state in self._states():
            for group in _parameter_groups(state):
                group.post_backward()
        self._root_state()._root_post_backward_final_callback()

    def reshard(self) -> None:
        """Give up whole parameters that a forward pass without a backward pass left behind."""
        for module in self._modules():
            module.reshard()

    def _root_state(self) -> Any:
        return cast(Any, fully_shard).state(self.root)

    def _states(self) -> list[Any]:
        return list(self._root_state()._state_ctx.all_states)


def _parameter_groups(state: Any) -> list[Any]:
    """Torch 2.13 may have several per module; before, there is one or none."""
    several = getattr(state, "_fsdp_param_groups", None)
    if several is not None:
        return list(several)
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []
