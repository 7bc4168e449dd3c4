"""Text to measure with, fetched by package name: English (dictionary, essays, documentation) and Chinese (poems).

    python -m benchmarks.pipeline.corpora --out runs/corpora

writes english.jsonl (about 95 MB) and chinese.jsonl (about 94 MB), one document a line with ``id`` and ``text``. The
packages have licences of their own and are not ours to ship: Debian's dict-gcide (GPL-2 or later), anarchism (GPL-2),
python3.11-doc (PSF) and linux-doc-6.1 (GPL-2), fetched by ``apt-get download`` without installing anything, and npm's
chinese-poetry (MIT). What cannot be had is named and left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Document = tuple[str, str]
"""Name and text."""

_SHORTEST = 20
"""Characters that a document has at least."""


def _entries(folder: Path) -> Iterator[Document]:
    """GCIDE: a headword at the beginning of a line after an empty one starts an entry."""
    text = gzip.decompress((folder / "usr/share/dictd/gcide.dict.dz").read_bytes()).decode(errors="replace")
    for number, entry in enumerate(re.split(r"\n\n(?=\S)", text)):
        yield f"gcide/{number}", entry


def _files(folder: Path, below: str, pattern: str) -> Iterator[Document]:
    root = folder / below
    for path in sorted(root.rglob(pattern)):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        yield str(path.relative_to(root)), data.decode(errors="replace")


def _essays(folder: Path) -> Iterator[Document]:
    yield from _files(folder, "usr/share/doc/anarchism/markdown", "*.md*")


def _python(folder: Path) -> Iterator[Document]:
    yield from _files(folder, "usr/share/doc/python3.11/html/_sources", "*.txt")


def _linux(folder: Path) -> Iterator[Document]:
    yield from _files(folder, "usr/share/doc/linux-doc-6.1/html/_sources", "*.rst.txt")


def _poems(archive: Path) -> Iterator[Document]:
    """Tang and Song poems, a poem a document: title, author, lines."""
    with tarfile.open(archive) as package:
        for member in package:
            if re.fullmatch(r"package/dist/quantangshi/poet\.(tang|song)\.\d+\.json", member.name):
                content = package.extractfile(member)
                for poem in json.load(content) if content else []:
                    lines = [poem.get("title", ""), poem.get("author", ""), *poem["paragraphs"]]
                    yield poem["id"], "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Package:
    """One package: who delivers it, its name, and how its documents are read from what was fetched."""

    manager: str
    name: str
    documents: Callable[[Path], Iterator[Document]]


CORPORA = {
    "english": [
        Package("apt-get", "dict-gcide", _entries),
        Package("apt-get", "anarchism", _essays),
        Package("apt-get", "python3.11-doc", _python),
        Package("apt-get", "linux-doc-6.1", _linux),
    ],
    "chinese": [Package("npm", "chinese-poetry", _poems)],
}


class UnavailableError(Exception):
    """A package that cannot be had here, and why."""


def _command(arguments: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnavailableError(f"there is no {arguments[0]} on this machine") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"`{' '.join(arguments)}` failed: {lines[-1]}")


def _fetch(package: Package, folder: Path) -> Path:
    """The unpacked Debian package, or npm's archive, in a folder of its own."""
    if package.manager == "npm":
        _command(["npm", "pack", package.name], folder)
        return next(folder.glob("*.tgz"))
    _command(["apt-get", "download", package.name], folder)
    _command(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), "unpacked"], folder)
    return folder / "unpacked"


def write_corpus(packages: list[Package], path: Path) -> list[str]:
    """Write the documents of all packages that can be had; why the others cannot. No file if none can."""
    missing = []
    unfinished = path.with_name(f".{path.name}.part")
    with unfinished.open("w") as lines:
        for package in packages:
            with tempfile.TemporaryDirectory() as name:
                try:
                    documents = package.documents(_fetch(package, Path(name)))
                except UnavailableError as reason:
                    missing.append(f"{package.name} ({package.manager}): {reason}")
                    continue
                for key, text in documents:
                    if len(text) >= _SHORTEST:
                        lines.write(
                            json.dumps({"id": f"{package.name}/{key}", "text": text}, ensure_ascii=False) + "\n"
                        )
    if len(missing) == len(packages):
        unfinished.unlink()
    else:
        unfinished.rename(path)
    return missing


def main() -> None:
    """Write both corpora; exit code 1 if there is nothing to write to one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", choices=list(CORPORA), help="one of the corpora")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    missing = []
    corpora = [arguments.only] if arguments.only else list(CORPORA)
    for corpus in corpora:
        path = arguments.out / f"{corpus}.jsonl"
        missing += write_corpus(CORPORA[corpus], path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB" if path.exists() else f"{path}: not written")
    for problem in missing:
        print(f"missing: {problem}", file=sys.stderr)
    sys.exit(0 if all((arguments.out / f"{corpus}.jsonl").exists() for corpus in corpora) else 1)


if __name__ == "__main__":
    main()
