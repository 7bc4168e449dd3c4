"""OLMo's and dolma's ``.npy``: nothing but token ids, u16 or u32, without the header that the name suggests.

Documents are parted by their end-of-document ids alone.

Source: OLMo-core, ``olmo_core/data/utils.py``, and dolma, ``dolma/tokenizer/memmap_writer.py``, read for the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.interop.block import BLOCK_TOKENS, TokenBlock
from data_pipeline.interop.files import Files
from data_pipeline.interop.options import Reading, Writing
from data_pipeline.shards import token_dtype

_NPY_MAGIC = b"\x93NUMPY"


def default_dtype(vocab_size: int) -> str:
    """The smallest type that OLMo stores ids of such a vocabulary in."""
    return token_dtype(vocab_size).name


def read(path: Path, reading: Reading) -> Iterator[TokenBlock]:
    """Read the documents of one file: what an end-of-document id ends, and what follows the last one.

    Args:
        path: the file.
        reading: `dtype` of the ids and `end_of_document`.

    Raises: DataError if the file cannot be read, is a real NumPy file, or is cut within an id.
    """
    dtype = np.dtype(reading.dtype).newbyteorder("<")
    try:
        size = path.stat().st_size
        if size == 0:
            return
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if bytes(data[:6]) == _NPY_MAGIC:
        raise DataError(f"{path} is a NumPy file with a header; OLMo's are raw ids: write it with ndarray.tofile()")
    if size % dtype.itemsize:
        raise DataError(f"{path} has {size} bytes, no whole number of {dtype.name} ids; give --dtype or copy it again")
    tokens = data.view(dtype)
    begin, length = 0, BLOCK_TOKENS
    while begin < tokens.size:
        chunk = tokens[begin : begin + length]
        ends = np.flatnonzero(chunk == reading.end_of_document) + 1
        if begin + chunk.size == tokens.size and (ends.size == 0 or ends[-1] < chunk.size):
            ends = np.append(ends, chunk.size)
        if ends.size == 0:
            length *= 2
            continue
        yield TokenBlock(chunk[: ends[-1]], np.concatenate([[0], ends]))
        begin, length = begin + int(ends[-1]), BLOCK_TOKENS


def write(folder: Path, name: str, blocks: Iterable[TokenBlock], writing: Writing) -> None:
    """Write ``NAME-00000.npy`` and so on.

    Args:
        folder: an existing folder.
        name: how the files are called.
        blocks: the documents.
        writing: `dtype` of the ids, and `file_bytes`: a file is closed after the block that reaches this.
    """
    with Files(folder, name, ".npy", writing.file_bytes) as files:
        for block in blocks:
            files.next().write(block.tokens.astype(writing.dtype).data)
