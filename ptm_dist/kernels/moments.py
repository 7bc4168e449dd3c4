"""The numbers of an update by two moments of the gradient (Kingma & Ba 2015, arXiv 1412.6980)."""

from __future__ import annotations

import math
from typing import NamedTuple


class MomentNumbers(NamedTuple):
    """What the host computes in double precision for kernels that take float32.

    With moments m and v of gradient g, ``m = beta1 m + rest1 g`` and ``v = beta2 v + rest2 g^2``; the update is
    ``m first_factor / (sqrt(v) root_factor + eps)``.

    Attributes:
        beta1: decay rate of m.
        rest1: 1 - beta1.
        beta2: decay rate of v.
        rest2: 1 - beta2.
        first_factor: 1 / (1 - beta1^t), or 1 without bias correction.
        root_factor: 1 / sqrt(1 - beta2^t), or 1.
        eps: added to the root.
    """

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    first_factor: float
    root_factor: float
    eps: float


def moment_numbers(betas: tuple[float, float], eps: float, step: int | None) -> MomentNumbers:
    """Of update t = `step`, from 1; None corrects no bias."""
    beta1, beta2 = betas
    first, root = (1.0, 1.0) if step is None else (1.0 / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step))
    return MomentNumbers(beta1, 1.0 - beta1, beta2, 1.0 - beta2, first, root, eps)
