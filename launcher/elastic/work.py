"""What a coordinator has to get done: which function workers run, and on how many ranks of those there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from launcher.elastic.layouts import fit
from ptm_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Assignment:
    """For one round.

    Attributes:
        world_size: ranks, at most as many as there are processes.
        layout: in words.
        payload: for every rank.
    """

    world_size: int
    layout: str
    payload: dict[str, Any]


class Work(Protocol):
    """Something that ranks do together, again and again until it is done."""

    @property
    def entry(self) -> str:
        """`module:function` of the workers: see :data:`launcher.worker.Entry`."""
        ...

    def assign(self, processes: int, device_memory: int | None) -> Assignment:
        """What to do with so many processes.

        Raises: UserError if they are too few.
        """
        ...


@dataclass(frozen=True)
class Training:
    """A recipe, at whatever layout the processes allow."""

    recipe: Recipe
    entry: str = "launcher.worker:train"

    def assign(self, processes: int, device_memory: int | None) -> Assignment:
        """The recipe's own layout with fewer copies, or the nearest one that works."""
        found = fit(self.recipe, processes, device_memory)
        return Assignment(found.world_size, found.layout, found.recipe.model_dump(mode="json"))
