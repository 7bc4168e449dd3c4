"""What the candidates work on: a sample of the text, two tokenizers, and the same tokens in everybody's format."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.pipeline.rounds import Candidate, CandidateError, run
from data_pipeline.shards.format import FORMAT_VERSION
from data_pipeline.tokenizers import train_tokenizer

PARTS = 8
"""Files of the sample, so that projects that divide work by files can do so."""
SEQUENCE = 1024
LARGE, SMALL = 64 << 20, 2 << 20
"""Bytes of a file of tokens: on disk, and to be streamed."""

TOKENIZERS = {"bpe": "bytelevel-bpe", "sentencepiece": "sentencepiece-bpe"}
_TEXT_PER_TOKEN_BYTE = 2
"""About so many bytes of text make one byte of tokens."""


@dataclass(frozen=True)
class Workload:
    """Folders below one that is kept between runs; what is there is not made again."""

    folder: Path
    text: Path

    @property
    def sample(self) -> list[str]:
        """Files of the text that is tokenised."""
        return [str(self.folder / "sample" / f"part-{number}.jsonl") for number in range(PARTS)]

    def tokenizer(self, name: str) -> str:
        """Folder of one of :data:`TOKENIZERS`."""
        return str(self.folder / f"tokenizer-{name}")

    def data(self, project: str, files: str = "large") -> str:
        """A project's own format of the tokens; of ours, the folder of the training part."""
        folder = self._folder(project, files)
        return str(folder / "train" if project == "ours" else folder)

    @property
    def plain(self) -> str:
        """The tokens as numpy files."""
        return str(self.folder / "plain")

    @property
    def sample_bytes(self) -> int:
        """Bytes of text (UTF-8) in the sample."""
        return int(json.loads((self.folder / "sample" / "size.json").read_text()))

    def make_sample(self, megabytes: float) -> None:
        """Every n-th document of the text, so many megabytes in all."""
        folder = self.folder / "sample"
        if folder.exists():
            return
        folder.mkdir(parents=True)
        step = max(1, int(self.text.stat().st_size / (megabytes * 1e6)))
        size = 0
        parts: list[list[str]] = [[] for _ in range(PARTS)]
        with self.text.open() as lines:
            for number, line in enumerate(islice(lines, 0, None, step)):
                size += len(json.loads(line)["text"].encode())
                parts[number % PARTS].append(line)
        for name, part in zip(self.sample, parts, strict=True):
            Path(name).write_text("".join(part))
        (folder / "size.json").write_text(str(size))

    def make_tokenizers(self) -> None:
        """32,000 ids each, trained on the sample."""
        for name, kind in TOKENIZERS.items():
            out = Path(self.tokenizer(name))
            if not out.exists():
                train_tokenizer(self.sample, kind=kind, vocab_size=32_000, out=out)

    def make_ours(self, files: str) -> None:
        """Our shards of the whole text, large or small ones."""
        size = LARGE if files == "large" else SMALL
        options = {
            "files": [str(self.text)],
            "tokenizer": self.tokenizer("bpe"),
            "workers": len(os.sched_getaffinity(0)),
            "shard_bytes": size * _TEXT_PER_TOKEN_BYTE,
        }
        self._make("ours", files, "build", options)

    def make_plain(self) -> None:
        """The tokens of our shards, for the others."""
        self.make_ours("large")
        if not Path(self.plain).exists():
            run(Candidate("plain tokens", "ours", "prepare", {"shards": self.data("ours"), "out": self.plain}))

    def make_peer(self, project: str, files: str = "large") -> None:
        """A peer's format of those tokens; a peer that is not there fails again, with its reason, in the table."""
        self.make_plain()
        options = {"plain": self.plain}
        if project != "megatron":
            options["shard_bytes"] = LARGE if files == "large" else SMALL
        try:
            self._make(project, files, "prepare", options)
        except CandidateError as error:
            print(f"  {project} cannot write its format: {error}", flush=True)

    def _folder(self, project: str, files: str) -> Path:
        version = f"-{FORMAT_VERSION}" if project == "ours" else ""
        return self.folder / f"{project}{version}-{files}"

    def _make(self, project: str, files: str, task: str, options: dict[str, object]) -> None:
        out = self._folder(project, files)
        if out.exists():
            return
        print(f"  making {out}", flush=True)
        try:
            run(Candidate(project, project, task, {**options, "out": str(out)}))
        except CandidateError:
            shutil.rmtree(out, ignore_errors=True)
            raise


def forget(folder: str) -> None:
    """Ask the system to drop the files below a folder from its cache, so that they are read from disk again."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
