"""What a loss spike is: a rule that looks at nothing but the losses before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_TO_STANDARD_DEVIATIONS = 1.4826
"""Standard deviation of normal numbers in units of their median absolute deviation (Hampel 1974)."""
_LEAST_SPREAD = 1e-3
"""Of the median: losses that hardly differ at all make no spike of a small difference."""


@dataclass(frozen=True)
class Spike:
    """A loss far above those before it.

    Attributes:
        loss: of the step.
        median: of the losses before it.
        deviations: by how many standard deviations it lies above.
    """

    loss: float
    median: float
    deviations: float

    def in_words(self) -> str:
        """For a sentence that begins with the step."""
        return f"the loss is {self.loss:.4f}, {self.deviations:.1f} deviations above the median {self.median:.4f}"


class LossWindow:
    """The newest losses of steps that updated the weights.

    With median M and median absolute deviation D of the last n losses, a loss is a spike if it is above
    ``M + k max(1.4826 D, 0.001 |M|)``. Medians do not follow single outliers, and a falling loss lies below them.
    Before there are n losses nothing is a spike.

    Args:
        length: n.
        deviations: k.
        losses: what is known already, oldest first.
    """

    def __init__(self, length: int, deviations: float, losses: Sequence[float] = ()) -> None:
        self._length = length
        self._deviations = deviations
        self._losses = deque(losses, maxlen=length)

    @property
    def losses(self) -> tuple[float, ...]:
        """Oldest first."""
        return tuple(self._losses)

    def add(self, loss: float) -> None:
        """Take in the loss of a step that updated the weights."""
        self._losses.append(loss)

    def judge(self, loss: float) -> Spike | None:
        """The spike that a loss is, if it is one."""
        if len(self._losses) < self._length:
            return None
        middle = median(self._losses)
        spread = median(abs(each - middle) for each in self._losses)
        spread = max(_TO_STANDARD_DEVIATIONS * spread, _LEAST_SPREAD * abs(middle))
        if spread == 0.0 or loss <= middle + self._deviations * spread:
            return None
        return Spike(loss, middle, (loss - middle) / spread)
