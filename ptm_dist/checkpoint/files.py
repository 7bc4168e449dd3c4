"""Writing small files so that a reader sees the old one or the new one, never half."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from data_pipeline.atomic import sync_path


def write_atomically(path: Path, text: str) -> None:
    """Replace or create a text file: written beside it, flushed to disk, renamed."""
    unfinished = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.rename(path)
    sync_path(path.parent)
