"""The formats by name: how each finds its files, reads them, and writes others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.interop import jsonl, mds, mds_reading, mds_writing, megatron, olmo, parquet
from data_pipeline.interop.block import TokenBlock
from data_pipeline.interop.files import input_files
from data_pipeline.interop.options import Reading, Writing


@dataclass(frozen=True)
class Format:
    """What one format can do.

    Attributes:
        suffixes: endings of its files, the one to read first.
        read: the documents of one file, in order.
        write: files of a name in a folder.
        default_dtype: stored type of ids of a vocabulary.
        dtypes: types that can be asked for; empty: the format decides.
        names_dtype: whether a file says in which type its ids are stored.
        has_columns: whether ids are a column that has a name.
        holds_text: whether text can stand beside the ids.
        has_ends: whether only end-of-document ids part the documents.
        file_bytes: after which a file is closed, unless asked otherwise; 0: one file.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, Reading], Iterator[TokenBlock]]
    write: Callable[[Path, str, Iterable[TokenBlock], Writing], None]
    default_dtype: Callable[[int], str]
    dtypes: tuple[str, ...] = ()
    names_dtype: bool = True
    has_columns: bool = False
    holds_text: bool = False
    has_ends: bool = False
    file_bytes: int = 1 << 30


FORMATS = {
    "megatron": Format(
        (".idx", ".bin"),
        megatron.read,
        megatron.write,
        megatron.default_dtype,
        dtypes=("uint16", "int32", "int64"),
        file_bytes=0,
    ),
    "mds": Format(
        (mds.INDEX,),
        mds_reading.read,
        mds_writing.write,
        mds_writing.default_dtype,
        dtypes=("uint16", "uint32", "int32", "int64"),
        names_dtype=False,
        has_columns=True,
        file_bytes=1 << 26,
    ),
    "olmo": Format(
        (".npy",),
        olmo.read,
        olmo.write,
        olmo.default_dtype,
        dtypes=("uint16", "uint32"),
        names_dtype=False,
        has_ends=True,
    ),
    "parquet": Format(
        (".parquet",), parquet.read, parquet.write, parquet.default_dtype, has_columns=True, holds_text=True
    ),
    "jsonl": Format(
        (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst"),
        jsonl.read,
        jsonl.write,
        jsonl.default_dtype,
        has_columns=True,
        holds_text=True,
    ),
}


def format_of(name: str) -> Format:
    """The format of a name.

    Raises: DataError if there is none, naming those there are.
    """
    if name not in FORMATS:
        raise DataError(f"format {name!r} is not known; use {', '.join(FORMATS)}")
    return FORMATS[name]


def dtype_of(name: str, given: str | None, vocab_size: int) -> np.dtype[np.integer]:
    """The stored type of ids: the one given, or the usual one of the format.

    Raises: DataError if the format has no such type, or it cannot hold every id.
    """
    known = format_of(name)
    if given is not None and given not in known.dtypes:
        which = f"use {', '.join(known.dtypes)}" if known.dtypes else "leave --dtype out"
        raise DataError(f"--dtype {given} is no type of format {name}; {which}")
    dtype = np.dtype(given or known.default_dtype(vocab_size)).newbyteorder("<")
    if vocab_size - 1 > np.iinfo(dtype).max:
        raise DataError(f"--dtype {given} cannot hold the ids of a vocabulary of {vocab_size}; leave it out")
    return dtype


def files_of(name: str, paths: Sequence[Path]) -> list[Path]:
    """The files to read, each once, in the order given; for the pairs of Megatron, their indexes.

    Raises: DataError if there is no such file.
    """
    known = format_of(name)
    if name == "megatron":
        paths = [path.with_suffix(".idx") if path.suffix == ".bin" else path for path in paths]
    found = list(dict.fromkeys(input_files(paths, known.suffixes)))
    return [path for path in found if name != "megatron" or path.suffix == ".idx"]
