"""The masks of ptm_dist/kernels/dropout.py, drawn inside a kernel."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.philox import threshold


@triton.jit
def keep_factors(
    key: tl.tensor,
    samples: tl.tensor,
    places: tl.tensor,
    row: tl.tensor,
    seq: tl.tensor,
    place_stride: tl.tensor,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tensor:
    """What the features of a row are multiplied by, ``[BLOCK]``: 0 where they drop, else what makes up for that.

    Args:
        key: two words, int64.
        samples: of each batch row, ``[batch]``, int64.
        places: positions in the sequence, ``[seq]``, or ``[batch, seq]``, int64.
        row: number of the row, of ``batch * seq``.
        seq: rows of a sample.
        place_stride: `seq` where each sample has positions of its own, else 0.
        THRESHOLD: of 65536 equally likely numbers, those below it drop.
        BLOCK: features, a power of 2 from 8 on.
        REAL: type of the factors.
    """
    seed = tl.load(key).to(tl.uint64) | (tl.load(key + 1).to(tl.uint64) << 32)
    sample = tl.load(samples + row // seq).to(tl.uint32)
    place = tl.load(places + row // seq * place_stride + row % seq).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, tl.arange(0, BLOCK // 8), place, sample, 0)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    numbers = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [BLOCK])
    scale = tl.full([BLOCK], 65536 / (65536 - THRESHOLD), REAL)
    return tl.where(numbers >= THRESHOLD, scale, 0.0)


def drop_arguments(drop: Drop | None, seq: int) -> dict[str, Any]:
    """The arguments that kernels name as :func:`keep_factors` does; `key` is None without dropout."""
    if drop is None:
        return {"key": None, "samples": None, "places": None, "seq": seq, "place_stride": 0, "THRESHOLD": 0}
    if drop.samples.dim() == 2:
        # To a kernel each position is a row of its own.
        places = drop.positions.expand_as(drop.samples).flatten()
        samples, seq, place_stride = drop.samples.flatten(), 1, 1
    else:
        samples, places, place_stride = drop.samples, drop.positions, seq if drop.positions.dim() == 2 else 0
    return {
        "key": drop.key.contiguous(),
        "samples": samples.contiguous(),
        "places": places.contiguous(),
        "seq": seq,
        "place_stride": place_stride,
        "THRESHOLD": threshold(drop.probability),
    }
