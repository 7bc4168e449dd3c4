"""Context parallelism: the positions of each sequence are shared between ranks, which differ in attention only.

zigzag.py says who holds which positions; ring.py and ulysses.py are the two ways to mix them.
"""

from __future__ import annotations

from typing import Literal

from ptm_dist.models.attention import Mixer
from ptm_dist.parallel.mesh import RankGroup
from ptm_dist.parallel.ring import RingMixer
from ptm_dist.parallel.ulysses import UlyssesMixer
from ptm_dist.parallel.zigzag import window, zigzag

__all__ = ["RingMixer", "UlyssesMixer", "context_mixer", "window", "zigzag"]


def context_mixer(method: Literal["ring", "ulysses"], ranks: RankGroup) -> Mixer:
    """What a model mixes positions with when `ranks` share them, each holding its own :func:`window`."""
    return RingMixer(ranks) if method == "ring" else UlyssesMixer(ranks)
