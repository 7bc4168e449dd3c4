"""Hashes by which equal and similar texts are found, the same ones on every machine."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DataError

_PERMUTATIONS = 128
_SHINGLE = 5
_BLOCK = 8192
_WORD = re.compile(r"\w+")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def content_hash(text: str) -> bytes:
    """Hash of a text by which equal texts are found (xxh3-128), 16 bytes."""
    return xxhash.xxh3_128_digest(text.encode())


def band_hashes(text: str, threshold: float) -> npt.NDArray[np.uint64]:
    """Hashes of which two similar texts have at least one in common, most likely (MinHash with bands).

    A text is the set of its shingles: 5 words in a row, or 5 characters where most are Chinese or Japanese; case,
    white space and punctuation do not count. Two texts with a share *s* of common shingles agree in one of *b* bands
    of *r* minima with probability 1 - (1 - s^r)^b; *b* and *r* are those for which the two errors around the
    threshold are smallest.

    Args:
        text: any text.
        threshold: share of common shingles between 0 and 1.

    Returns: one hash per band, [b]. Hashes of different bands never stand for each other.
    Raises: DataError if datasketch is not installed.
    Source: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining
        of Massive Datasets", section 3.4.
    """
    bands, rows = _shape(threshold)
    sketch = _template().copy()
    shingles = _shingle_hashes(text)
    for begin in range(0, len(shingles), _BLOCK):
        sketch.update_batch(shingles[begin : begin + _BLOCK].tolist())
    minima = np.ascontiguousarray(sketch.hashvalues[: bands * rows].reshape(bands, rows), dtype="<u4")
    hashes = [xxhash.xxh3_64_intdigest(minima[band].tobytes(), seed=band) for band in range(bands)]
    return np.array(hashes, dtype=np.uint64)


def _shingle_hashes(text: str) -> npt.NDArray[np.uint32]:
    words = _WORD.findall(text.casefold()) or [text]
    if not text.isascii() and _is_cjk(text):
        units = np.frombuffer("".join(words).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    else:
        units = np.array([xxhash.xxh3_64_intdigest(word.encode()) for word in words], dtype=np.uint64)
    count = max(1, len(units) - _SHINGLE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(min(_SHINGLE, len(units))):
        hashes = hashes * _MULTIPLIER + units[place : place + count]
        hashes ^= hashes >> np.uint64(29)
    return (hashes * _MULTIPLIER >> np.uint64(32)).astype(np.uint32)


def _is_cjk(text: str) -> bool:
    return 2 * sum(map(len, _CJK.findall(text))) > len(text)


@functools.cache
def _shape(threshold: float) -> tuple[int, int]:
    lsh = _datasketch().MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    return lsh.b, lsh.r


@functools.cache
def _template() -> Any:
    return _datasketch().MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise DataError("near duplicates need datasketch; run pip install 'ptm-dist[data]'") from error
    return datasketch
