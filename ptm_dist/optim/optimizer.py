"""What an update rule looks like to an engine, a checkpoint and the memory estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

Shards = Callable[[], Mapping[str, Tensor]]
"""Gives this rank's part of every parameter by canonical name. Called at each step: storage may move."""


class Optimizer(Protocol):
    """An update rule with its state, on the shards a rank holds.

    Attributes:
        steps_done: updates so far; set by whoever loads the slots.
    """

    steps_done: int

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float, divisor: Tensor | None = None) -> None:
        """Update every shard in place.

        Args:
            gradients: one per parameter, of the shard's shape and dtype. Their memory may be used up.
            learning_rate: of this update.
            divisor: what gradients are divided by first, a scalar on their device that the host does not wait for;
                nothing divides by 1. Where it is no finite number, weights and state keep their bits, but for
                apex, which spreads it; the update counts all the same.
        """

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """State by slot and parameter name, of the shards' shapes and dtypes; writing to it loads."""


def is_infinite(divisor: Tensor | None) -> Tensor | None:
    """1 where the divisor is no finite number, else 0, as torch's fused updates ask for it: float32, a scalar."""
    return None if divisor is None else (~divisor.isfinite()).float()


def divided_before(gradients: list[Tensor], divisor: Tensor | None) -> Tensor | None:
    """Divide in place what a fused update cannot, as it takes a divisor in float32: float64.

    Returns: the divisor that is left for the update, float32.
    """
    if divisor is None:
        return None
    if gradients[0].dtype == torch.float64:
        torch._foreach_div_(gradients, divisor)
        return None
    return divisor.float()


def zero_slot(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the parameters' names, shapes and dtypes, all zero."""
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
