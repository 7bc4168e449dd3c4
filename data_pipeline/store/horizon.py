"""The known future of a data stream: which shards its next steps read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence


class Horizon:
    """The steps from the current one on, as far as they were looked at.

    Args:
        future: pairs of step and the numbers of the shards that it reads; steps ascend, some may be left out.

    Attributes:
        step: the current one.
        size: pairs of step and shard that are known; a step without shards counts as one.
        is_complete: the future ends within them.
    """

    def __init__(self, future: Iterable[tuple[int, Sequence[int]]]) -> None:
        self._future = iter(future)
        self._steps: deque[tuple[int, Sequence[int]]] = deque()
        self._uses: dict[int, deque[int]] = {}
        self.step = 0
        self.size = 0
        self.is_complete = False

    def advance(self, step: int) -> None:
        """Forget the steps before `step`."""
        self.step = max(self.step, step)
        while self._steps and self._steps[0][0] < self.step:
            _, shards = self._steps.popleft()
            self.size -= max(len(shards), 1)
            for shard in shards:
                self._uses[shard].popleft()
                if not self._uses[shard]:
                    del self._uses[shard]

    def look_ahead(self, uses: int) -> None:
        """Look at further steps until about so many (step, shard) pairs are new, or the future ends."""
        goal = self.size + uses
        while self.size < goal:
            step, shards = next(self._future, (None, ()))
            if step is None:
                self.is_complete = True
                return
            if step < self.step:
                continue
            unique = sorted(set(shards))
            self._steps.append((step, unique))
            for shard in unique:
                self._uses.setdefault(shard, deque()).append(step)
            self.size += max(len(unique), 1)

    def next_uses(self) -> Iterator[tuple[int, int]]:
        """Shards that are read, with the step of their next use, soonest first."""
        yield from sorted(((shard, steps[0]) for shard, steps in self._uses.items()), key=lambda use: (use[1], use[0]))
