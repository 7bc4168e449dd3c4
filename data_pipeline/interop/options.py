"""What readers and writers of foreign formats are told beside the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Sequences = Literal["document", "sentence"]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Reading:
    """How to read files that do not say everything themselves.

    Attributes:
        end_of_document: the id that ends documents.
        dtype: stored type of ids where the file does not name it.
        column: name of the column that holds ids; None: the usual names.
    """

    end_of_document: int
    dtype: np.dtype[np.integer] | None = None
    column: str | None = None


@dataclass(frozen=True)
class Writing:
    """How to write.

    Attributes:
        dtype: stored type of ids.
        sequences: what is a sequence of its own, in formats that know sequences within documents.
        decode: adds the text of each document, in formats that can hold it.
        file_bytes: after which a file is closed and another one begun.
    """

    dtype: np.dtype[np.integer]
    sequences: Sequences = "document"
    decode: Decode | None = None
    file_bytes: int = 1 << 30
