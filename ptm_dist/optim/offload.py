"""Optimizer state in host memory: weights and gradients come to it for each update, and weights go back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ptm_dist.optim.optimizer import Optimizer
from ptm_dist.parallel.shards import LocalShard

Boxes = Callable[[], Mapping[str, LocalShard]]


class HostOptimizer:
    """An update rule whose state and work are on the host (Ren et al. 2021, arXiv 2101.06840).

    The device keeps 4 bytes per weight and no moments; a step moves 12 bytes per weight of this rank's shards.

    Args:
        build: gives the update rule for boxes in host memory.
        boxes: gives this rank's part of every parameter on the device. Called at each step: storage may move.
    """

    def __init__(self, build: Callable[[Boxes], Optimizer], boxes: Boxes) -> None:
        self._boxes = boxes
        self._weights = {name: replace(box, local=_host_copy(box.local)) for name, box in boxes().items()}
        self._gradients = {name: _host_copy(box.local) for name, box in self._weights.items()}
        self._rule = build(lambda: self._weights)

    @property
    def steps_done(self) -> int:
        """Updates so far."""
        return self._rule.steps_done

    @steps_done.setter
    def steps_done(self, steps: int) -> None:
        self._rule.steps_done = steps

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float, divisor: Tensor | None = None) -> None:
        """Update every shard in place; see :class:`ptm_dist.optim.optimizer.Optimizer`."""
        boxes = self._boxes()
        for name, box in boxes.items():
            self._weights[name].local.copy_(box.local, non_blocking=True)
            self._gradients[name].copy_(gradients[name], non_blocking=True)
        _wait(boxes)
        self._rule.step(self._gradients, learning_rate, None if divisor is None else divisor.cpu())
        for name, box in boxes.items():
            box.local.copy_(self._weights[name].local, non_blocking=True)
        # The next step overwrites the host's copies: they must have left.
        _wait(boxes)

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """State in host memory."""
        return self._rule.slots()


def _host_copy(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _wait(boxes: Mapping[str, LocalShard]) -> None:
    devices = {box.local.device for box in boxes.values() if box.local.is_cuda}
    for device in devices:
        torch.cuda.synchronize(device)
