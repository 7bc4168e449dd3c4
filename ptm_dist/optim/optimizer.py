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

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """Update every shard in place.

        Args:
            gradients: one per parameter, of the shard's shape and dtype. Their memory may be used up.
            learning_rate: of this update.
        """

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """State by slot and parameter name, of the shards' shapes and dtypes; writing to it loads."""


def zero_slot(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the parameters' names, shapes and dtypes, all zero."""
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
