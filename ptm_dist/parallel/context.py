"""Context parallelism: the positions of each sequence are shared between ranks, which differ in attention only.

zigzag.py says who holds which positions; ring.py and ulysses.py are the two ways to mix them.
"""

from __future__ import annotations

from typing import Literal

from ptm_dist.kernels.choice import Choice
from ptm_dist.models.attention import Mixer
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.ring import RingMixer
from ptm_dist.parallel.ulysses import UlyssesMixer
from ptm_dist.parallel.zigzag import window, zigzag

__all__ = ["RingMixer", "UlyssesMixer", "context_mixer", "window", "zigzag"]


def context_mixer(
    method: Literal["ring", "ulysses"], ranks: RankGroup, choice: Choice | None = None, *, drops: bool = False
) -> Mixer:
    """What a model mixes positions with when `ranks` share them, each holding its own :func:`window`.

    Args:
        method: one of the two.
        ranks: that share positions.
        choice: of the form of attention with dropout.
        drops: whether some passes have dropout.
    """
    return RingMixer(ranks, choice) if method == "ring" else UlyssesMixer(ranks, choice, drops=drops)
