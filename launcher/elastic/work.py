"""What a coordinator has to get done: which function workers run, and on how many ranks of those there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from launcher.elastic.layouts import fit
from ptm_dist.errors import LayoutError
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
    _known: dict[tuple[int, int | None], Assignment | LayoutError] = field(default_factory=dict, repr=False)

    def assign(self, processes: int, device_memory: int | None) -> Assignment:
        """The recipe's own layout with fewer copies, or the nearest one that works.

        A coordinator that waits for nodes asks at every tick, and a search among many layouts takes a second: what was
        found for some processes is remembered.
        """
        asked = (processes, device_memory)
        if asked not in self._known:
            self._known[asked] = self._search(processes, device_memory)
        found = self._known[asked]
        if isinstance(found, LayoutError):
            raise found.with_traceback(None)  # or it would grow with each time
        return found

    def _search(self, processes: int, device_memory: int | None) -> Assignment | LayoutError:
        try:
            found = fit(self.recipe, processes, device_memory)
        except LayoutError as error:
            return error
        return Assignment(found.world_size, found.layout, found.recipe.model_dump(mode="json"))
