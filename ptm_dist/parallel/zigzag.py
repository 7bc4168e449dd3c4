"""Which positions of a sequence a context-parallel rank holds.

The sequence is cut into two chunks per rank; a rank holds one from the front and its mirror image from the back.
In a causal model the early queries of one and the late queries of the other then see as many keys on every rank
(the balance of Striped Attention, arXiv 2311.09431, and of Llama 3, arXiv 2407.21783, section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptm_dist.models.attention import Window
from ptm_dist.parallel.mesh import RankGroup


def chunk_ranges(length: int, parts: int, rank: int) -> tuple[range, range]:
    """The two ranges of positions that a rank holds; neither is more than one position longer than another.

    Chunks are as even as possible, the longer ones first; some are empty where there are fewer positions than chunks.
    Ranks hold the same number of positions, or one more.

    Args:
        length: positions of the sequence, at least 1.
        parts: ranks between which it is cut.
        rank: one of them.
    """
    size, longer = divmod(length, 2 * parts)

    def chunk(index: int) -> range:
        start = index * size + min(index, longer)
        return range(start, start + size + (index < longer))

    return chunk(rank), chunk(2 * parts - 1 - rank)


def zigzag(length: int, parts: int, rank: int) -> Tensor:
    """Positions that a rank holds, in order: those of :func:`chunk_ranges`, ``[n]``, int64."""
    return places(chunk_ranges(length, parts, rank), torch.device("cpu"))


def places(chunks: Sequence[range], device: torch.device) -> Tensor:
    """The positions of some chunks one after the other, ``[n]``, int64."""
    return torch.cat([torch.arange(chunk.start, chunk.stop, device=device) for chunk in chunks])


def window(length: int, ranks: RankGroup, device: torch.device) -> Window:
    """What this rank of a context-parallel group holds of a sequence of `length` positions."""
    return Window(places(chunk_ranges(length, ranks.size, ranks.rank), device), length)
