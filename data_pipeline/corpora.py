"""Text that every Python machine has: the documentation inside the standard library.

Small (about 2.4 MB, 11 MB more with the source text) but real technical prose, there without any download, and the
same on every machine with the same Python version.
"""

from __future__ import annotations

import ast
import inspect
import json
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.atomic import atomic_file
from data_pipeline.errors import DataError

_SHORTEST_DOCUMENT = 80
"""Characters; below that a document is a title, not prose."""

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib-dynload"}
_MACHINE_SPECIFIC = ("_sysconfigdata", "sitecustomize", "usercustomize", "config-")


@dataclass(frozen=True)
class CorpusSummary:
    """What was written: how many documents, how many bytes of text in UTF-8, and where."""

    documents: int
    bytes: int
    path: Path


def write_stdlib_corpus(
    out: Path, *, source_text: bool = False, unit: Literal["module", "docstring"] = "module"
) -> CorpusSummary:
    """Write the documentation of the running Python's standard library as one jsonl file.

    One document per module (its name, then the docstrings of the module, its classes and functions in order of
    appearance) and one per help topic of ``pydoc``. Modules are parsed, never imported.

    Args:
        out: the file to write, ending in ``.jsonl``; replaced when it exists.
        source_text: add the source text of each module as a document of its own.
        unit: "docstring" makes each docstring a document of its own. Their sentences belong together and have an
            order, which those of one module's many docstrings have not; sentence-order prediction needs that.

    Raises: DataError if ``out`` has another ending or cannot be written, or if this Python has no library sources.
    """
    if out.suffix != ".jsonl" or out.is_dir():
        raise DataError(f"{out}: the corpus is one file whose name ends in .jsonl; name it like corpus.jsonl")
    documents = text_bytes = 0
    with atomic_file(out) as stream:
        for key, text in _documents(source_text, unit):
            stream.write(json.dumps({"id": key, "text": text}, ensure_ascii=False).encode() + b"\n")
            documents += 1
            text_bytes += len(text.encode())
        if not documents:
            raise DataError("this Python has no standard library sources; use another Python or another corpus")
    return CorpusSummary(documents, text_bytes, out)


def _documents(source_text: bool, unit: Literal["module", "docstring"]) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _module_files(root):
        name = _module_name(path.relative_to(root))
        with tokenize.open(path) as stream:
            source = stream.read()
        docstrings = list(_docstrings(ast.parse(source)))
        if unit == "docstring":
            for number, docstring in enumerate(docstrings):
                yield from _long_enough(f"docstring:{name}:{number}", docstring)
        elif docstrings:
            yield from _long_enough(f"module:{name}", "\n\n".join([name, *docstrings]))
        if source_text:
            yield from _long_enough(f"source:{name}", source)
    yield from _topics(root)


def _module_files(root: Path) -> list[Path]:
    def is_library(path: Path) -> bool:
        parts = path.relative_to(root).parts
        if parts[0] == "pydoc_data":  # the topics: documents of their own
            return False
        return not any(part in _LEFT_OUT or part.startswith(_MACHINE_SPECIFIC) for part in parts)

    return sorted(path for path in root.rglob("*.py") if is_library(path) and path.is_file())


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=True)
        if docstring and docstring.strip():
            yield docstring.strip()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _docstrings(child)


def _topics(root: Path) -> Iterator[tuple[str, str]]:
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        return
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in sorted(ast.literal_eval(statement.value).items()):
                yield from _long_enough(f"topic:{topic}", inspect.cleandoc(text))


def _long_enough(key: str, text: str) -> Iterator[tuple[str, str]]:
    if len(text) >= _SHORTEST_DOCUMENT:
        yield key, text
