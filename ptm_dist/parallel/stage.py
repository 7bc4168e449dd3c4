"""One stage of a pipeline on this process: a part of the model, and its backward pass, whole or in two halves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from ptm_dist.models.model import LanguageModel
from ptm_dist.parallel.data import DataParallel
from ptm_dist.parallel.replicas import Replicas


@dataclass
class _Half:
    """A backward pass of which the gradients of weights are still to come."""

    out: Tensor
    gradient: Tensor | None
    groups: list[dict[str, Any]] | None


@dataclass
class Stage:
    """A part of the model with everything applied to it.

    Attributes:
        number: in the pipeline, from 0.
        module: the part.
        data_parallel: None where its parameters are this process's alone.
        splits_backward: whether the two halves of a backward pass can be told apart. Recomputation would run twice, a
            compiled block gives both at once, and torch goes from a weight to where it is used once: a block that
            serves several layers of the stage has no second half. There the first half does all.
    """

    number: int
    module: LanguageModel
    data_parallel: DataParallel | Replicas | None
    splits_backward: bool
    _halves: dict[int, _Half] = field(default_factory=dict)

    def updated_parameters(self) -> dict[str, nn.Parameter]:
        """By the module's names; those that an update changes, which may be others than those that compute."""
        if isinstance(self.data_parallel, Replicas) and self.data_parallel.masters:
            return self.data_parallel.masters
        return dict(self.module.named_parameters())

    def begin_step(self, passes: int) -> None:
        """Before the first forward pass of a step in which the stage has so many backward passes."""
        if isinstance(self.data_parallel, Replicas):
            self.data_parallel.begin_step(passes)

    def backward(self, out: Tensor, gradient: Tensor | None, hidden: Tensor | None, *, last: bool) -> Tensor | None:
        """Gradients of weights, accumulated, and of `hidden`.

        Args:
            out: of the forward pass; a loss in the last stage.
            gradient: of `out`; None for a loss.
            hidden: what the forward pass got from the stage before; None in the first stage.
            last: whether it is the last backward pass of the step in this stage.
        """
        if self.data_parallel is not None:
            self.data_parallel.begin_backward(last=last)
        torch.autograd.backward(out, gradient)
        if self.data_parallel is not None:
            self.data_parallel.end_backward()
        return None if hidden is None else hidden.grad

    def backward_input(self, micro: int, out: Tensor, gradient: Tensor | None, hidden: Tensor | None) -> Tensor | None:
        """The first half, gradients of `hidden`; arguments as in :meth:`backward`.

        The first stage has no input to give a gradient to, and leaves all to the second half.
        """
        if hidden is None:
            self._halves[micro] = _Half(out, gradient, None)
            return None
        if self.data_parallel is not None:
            self.data_parallel.hold_weights()
        gradients = None if gradient is None else [gradient]
        (found, *_), groups = stage_backward_input([out], gradients, [hidden], iter(self.module.parameters()))
        self._halves[micro] = _Half(out, gradient, groups)
        return found

    def backward_weight(self, micro: int, *, last: bool) -> None:
        """The second half, gradients of weights."""
        half = self._halves.pop(micro)
        if half.groups is None:
            self.backward(half.out, half.gradient, None, last=last)
            return
        if self.data_parallel is not None:
            self.data_parallel.hold_weights()
        stage_backward_weight(iter(self.module.parameters()), half.groups)
        if self.data_parallel is not None:
            self.data_parallel.finish_weights(last=last)
