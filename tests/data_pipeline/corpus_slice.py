"""A small piece of the stdlib corpus, for tests that need real text."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

from data_pipeline.sources import Document


def write_slice(folder: Path, *, documents: int = 40) -> Path:
    chosen = [Document(f"topic:{key}", text) for key, text in sorted(topics.items()) if 200 < len(text) < 6000]
    return write_documents(folder / "corpus.jsonl", chosen[:documents])


def write_documents(path: Path, documents: list[Document]) -> Path:
    path.write_text("".join(json.dumps({"id": d.key, "text": d.text}) + "\n" for d in documents))
    return path
