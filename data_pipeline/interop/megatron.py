r"""Megatron's ``.bin`` and ``.idx``: the ids of all sequences, and where sequences and documents start.

The index, little-endian and packed: ``MMIDIDX\0\0``, u64 version 1, u8 code of the token type, u64 sequences *n*,
u64 document bounds *d*, i32 lengths [n] in tokens, i64 places [n] in bytes of the ``.bin``, and i64 document bounds
[d] as numbers of sequences, the first 0 and the last *n*. A multimodal index has one more byte for each sequence.

Source: megatron-core 0.16.1, ``core/datasets/indexed_dataset.py``, read for its layout.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.interop.block import TokenBlock, cut
from data_pipeline.interop.options import Reading, Writing

_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _TYPES.items()}
_CHUNK = 1 << 16


def default_dtype(vocab_size: int) -> str:
    """The type in which Megatron's own tools store ids of such a vocabulary."""
    return "uint16" if vocab_size < 65500 else "int32"


def read(path: Path, reading: Reading) -> Iterator[TokenBlock]:
    """Read the documents of ``PREFIX.idx`` and ``PREFIX.bin``; sequences of a document become its sentences.

    Args:
        path: the ``.idx`` file.
        reading: not used; the index says everything.

    Raises: DataError if a file is missing or damaged, or holds no token ids.
    """
    index = _Index.open(path)
    whole = index.bounds.size - 1 == index.places.size and index.one_sequence_each()
    for begin in range(0, index.bounds.size - 1, _CHUNK):
        bounds = np.asarray(index.bounds[begin : begin + _CHUNK + 1])
        offsets = index.first_tokens(bounds)
        for first, last in cut(offsets):
            low, high = offsets[[first, last]]
            sentences = None
            if not whole:
                sentences = index.first_tokens(np.arange(bounds[first], bounds[last] + 1)) - low
            yield TokenBlock(index.tokens[low:high], offsets[first : last + 1] - low, sentences)


def write(folder: Path, name: str, blocks: Iterable[TokenBlock], writing: Writing) -> None:
    """Write ``NAME.bin`` and ``NAME.idx``, byte for byte as Megatron's builder does.

    Args:
        folder: an existing folder.
        name: of the pair.
        blocks: the documents; memory is bounded by the largest of them.
        writing: `dtype` of the ids; `sequences`: each document, or each of its sentences.
    """
    with ExitStack() as stack:
        lengths, bounds = (stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        tokens = stack.enter_context((folder / f"{name}.bin").open("wb"))
        index = stack.enter_context((folder / f"{name}.idx").open("wb"))
        bounds.write(bytes(8))
        sequences = documents = 0
        for block in blocks:
            starts = block.offsets
            if writing.sequences == "sentence" and block.sentences is not None:
                starts = block.sentences
            tokens.write(block.tokens.astype(writing.dtype).data)
            lengths.write(np.diff(starts).astype("<i4").data)
            ends = np.arange(1, starts.size) if starts is block.offsets else np.searchsorted(starts, block.offsets[1:])
            bounds.write((ends + sequences).astype("<i8").data)
            sequences += starts.size - 1
            documents += block.documents
        index.write(_HEADER.pack(_MAGIC, 1, _CODES[writing.dtype], sequences, documents + 1))
        _copy(lengths, index)
        _write_places(lengths, index, writing.dtype.itemsize)
        _copy(bounds, index)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    source.seek(0)
    shutil.copyfileobj(source, target, 1 << 20)


def _write_places(lengths: IO[bytes], index: IO[bytes], itemsize: int) -> None:
    lengths.seek(0)
    end = 0
    while data := lengths.read(4 * _CHUNK):
        ends = end + np.cumsum(np.frombuffer(data, dtype="<i4"), dtype="<i8") * itemsize
        index.write(np.concatenate([[end], ends[:-1]]).astype("<i8").data)
        end = int(ends[-1])


@dataclass(frozen=True)
class _Index:
    """A pair of files, read where they lie.

    Attributes:
        tokens: ids of all sequences, [tokens].
        places: where each sequence starts, in bytes, [sequences], int64.
        bounds: number of the first sequence of each document, then the number of sequences, [documents + 1], int64.
    """

    tokens: NDArray[np.integer]
    places: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @classmethod
    def open(cls, path: Path) -> _Index:
        """Map an index and its ids, and check that they belong together."""
        data = _mapped(path)
        if data.size < _HEADER.size or bytes(data[:9]) != _MAGIC:
            raise DataError(f"{path} is no index of Megatron token ids; give the .idx beside a .bin")
        _, version, code, sequences, documents = _HEADER.unpack(bytes(data[: _HEADER.size]))
        name = _TYPES.get(code)
        if version != 1 or name is None or "f" in name:
            raise DataError(f"{path}: version {version} with type code {code} holds no token ids that can be read here")
        size = _HEADER.size + 12 * sequences + 8 * documents
        if data.size == size + sequences and sequences:
            raise DataError(f"{path} is multimodal (it has a mode for each sequence); only text can be imported")
        if data.size != size:
            raise DataError(f"{path} is damaged: it has {data.size} bytes, {size} expected; copy it again")
        split = np.cumsum([_HEADER.size, 4 * sequences, 8 * sequences])
        lengths, places, bounds = (
            part.view(dtype) for part, dtype in zip(np.split(data, split)[1:], ("<i4", "<i8", "<i8"), strict=True)
        )
        tokens = _mapped(path.with_suffix(".bin"))
        _check(path, lengths, places, bounds, tokens.size, np.dtype(name).itemsize)
        return cls(tokens.view(name), places, bounds)

    def first_tokens(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of the first token of each of these sequences; the one past the last sequence ends all tokens."""
        inside = sequences < self.places.size
        result = np.full(sequences.size, self.tokens.size, dtype=np.int64)
        result[inside] = self.places[sequences[inside]] // self.tokens.itemsize
        return result

    def one_sequence_each(self) -> bool:
        """Whether every document is one sequence."""
        steps = range(0, self.bounds.size, _CHUNK)
        return all((self.bounds[at : at + _CHUNK] == np.arange(at, self.bounds.size)[:_CHUNK]).all() for at in steps)


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            return np.empty(0, dtype=np.uint8)
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; Megatron's tokens are a .bin and an .idx") from error


def _check(
    path: Path,
    lengths: NDArray[np.int32],
    places: NDArray[np.int64],
    bounds: NDArray[np.int64],
    size: int,
    itemsize: int,
) -> None:
    """Whether sequences fill the `size` bytes of ids one after the other, and documents all sequences."""
    end = 0
    for begin in range(0, lengths.size, _CHUNK):
        chunk = lengths[begin : begin + _CHUNK].astype(np.int64)
        ends = end + np.cumsum(chunk) * itemsize
        if (chunk < 0).any() or (places[begin : begin + _CHUNK] != ends - chunk * itemsize).any():
            raise DataError(f"{path} is damaged: its sequences do not follow each other; copy or merge it again")
        end = int(ends[-1])
    if end != size:
        raise DataError(
            f"{path.with_suffix('.bin')} is damaged: it has {size} bytes, {path.name} expects {end}; copy both again"
        )
    steps = range(0, bounds.size, _CHUNK)
    ascend = all((np.diff(bounds[at : at + _CHUNK + 1]) >= 0).all() for at in steps)
    if bounds.size == 0 or not ascend or bounds[0] != 0 or bounds[-1] != lengths.size:
        raise DataError(f"{path} is damaged: its documents do not cover its {lengths.size} sequences; copy it again")
