"""Writing safetensors files tensor by tensor: the format puts shapes first, so nothing has to be held."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_BYTES = 4
"""Of a float32."""


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together and stand in one file.

    Attributes:
        shapes: by name, in the order in which `read` gives them.
        read: makes them, float32.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[], Mapping[str, Tensor]]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(_size(shape) for shape in self.shapes.values())


def write_pieces(folder: Path, pieces: Iterable[Piece], max_shard_bytes: int) -> list[str]:
    """Write ``model.safetensors``, or numbered files and their index if one would be too large.

    Args:
        folder: exists.
        pieces: read one after the other, each given up before the next.
        max_shard_bytes: most bytes of tensors in a file; a larger piece has a file of its own.

    Returns: names of the files.
    """
    shards = _split(list(pieces), max_shard_bytes)
    if len(shards) == 1:
        _write_shard(folder / SINGLE_FILE, shards[0])
        return [SINGLE_FILE]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(piece.size for shard in shards for piece in shard)},
        "weight_map": {
            tensor: name
            for name, shard in zip(names, shards, strict=True)
            for piece in shard
            for tensor in piece.shapes
        },
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX_FILE]


def _split(pieces: Sequence[Piece], max_shard_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(other.size for other in shards[-1]) + piece.size > max_shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    return shards


def _write_shard(path: Path, pieces: Sequence[Piece]) -> None:
    """The format: 8 bytes with the length of a JSON header, the header, the bytes of all tensors without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for piece in pieces:
        for name, shape in piece.shapes.items():
            begin, end = end, end + _size(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for piece in pieces:
            _write_piece(stream, piece)


def _write_piece(stream: BinaryIO, piece: Piece) -> None:
    tensors = piece.read()
    for name, shape in piece.shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not float32 {shape}")
        stream.write(tensor.contiguous().numpy().data)


def _size(shape: tuple[int, ...]) -> int:
    return _BYTES * math.prod(shape)
