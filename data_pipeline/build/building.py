"""The whole of a build, stage by stage; with ranks, all of them run through it together."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.build.chunk import SIDES, BuildChunk, ChunkRecord
from data_pipeline.build.duplicates import Duplicates, FindDuplicates, HashChunk, HashRecord, kinds, partitions
from data_pipeline.build.plan import BuildOptions, Plan, Request
from data_pipeline.build.progress import BuildProgress, StageProgress
from data_pipeline.build.reading import ChunkReader, StepNotes
from data_pipeline.build.stages import Stage
from data_pipeline.build.summary import BuildSummary
from data_pipeline.build.team import LocalTeam, Team
from data_pipeline.build.workplace import Workplace
from data_pipeline.errors import DataError
from data_pipeline.processes import Note
from data_pipeline.shards import Manifest, write_manifest
from data_pipeline.tokenizers import Tokenizer


def build_shards(
    patterns: Sequence[str],
    *,
    tokenizer: Tokenizer,
    out: Path,
    options: BuildOptions | None = None,
    team: Team | None = None,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildSummary:
    """Tokenise documents into ``out/train`` and ``out/validation``; the folder appears when it is complete.

    The bytes of the shards and manifests depend on the text, the tokenizer and the options, not on the team or the
    machine. A build that was killed goes on where it was when the same call is made again. Each worker holds one
    open shard of each side in memory.

    Args:
        patterns: source files, see ``sources.find_sources``.
        tokenizer: its end-of-document id ends every document; picklable if others than this process work.
        out: folder to make; when it was built of the same input and options, it is kept and nothing is done.
        options: everything else that decides the bytes.
        team: who works, by default this process; more processes of this machine are started by ``spawn``, so that a
            program that calls this needs the usual ``if __name__ == "__main__"``.
        overwrite: replace a folder, or an interrupted build, of something else.
        on_progress: called now and then, on the first of the team.

    Raises: DataError if the input cannot be read or split, ``out`` holds something else or cannot be written, another
        build of it is at work, or a worker is killed; on all of the team.
    """
    team = team or LocalTeam()
    if "end_of_document" not in tokenizer.special_ids:
        raise DataError(
            'the tokenizer has no end-of-document id; name one ("eos_token") in the tokenizer_config.json that '
            "it was imported from, and import it again"
        )
    with team, ExitStack() as lock:
        build = _Build(patterns, tokenizer, options or BuildOptions(), Workplace(out), team, overwrite, on_progress)
        return build.run(lock)


@dataclass
class _Build:
    patterns: Sequence[str]
    tokenizer: Tokenizer
    options: BuildOptions
    place: Workplace
    team: Team
    overwrite: bool
    on_progress: Callable[[BuildProgress], None] | None
    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)

    def run(self, lock: ExitStack) -> BuildSummary:
        """Build, or find that it is built already."""
        out = self.place.out
        request = self.team.share(lambda: Request.of(self.patterns, self.tokenizer.identity, self.options))
        self.team.share(lambda: lock.enter_context(self.place.locked()))
        reusable = self.team.share(lambda: self._reusable(request))
        if reusable is not None and reusable.request.changed_file(request) is not None:
            self._compare_contents(reusable, request)
        if reusable is None:
            self._make(request)
        seconds = time.monotonic() - self.started
        return self.team.share(
            lambda: BuildSummary.of(out, reused=reusable is not None, seconds=seconds, stages=self.stages)
        )

    def _make(self, request: Request) -> None:
        plan = self.team.share(lambda: self.place.prepare(request, overwrite=self.overwrite))
        duplicates = self._duplicates(plan)
        work = BuildChunk(plan, self.tokenizer, duplicates, self.place.data)
        shards = Stage(self.place, "shards", ChunkRecord, len(plan.chunks), self._has_files)
        self._run("tokenising", shards, work, plan.weights)
        self.team.share(lambda: self._finish(plan, shards))

    def _reusable(self, request: Request) -> Plan | None:
        if self.overwrite:
            self.place.check_replaceable()
        return None if self.overwrite or self.place.is_free else _reusable(self.place.out, request)

    def _duplicates(self, plan: Plan) -> Duplicates:
        folder = self.place.records("duplicates")
        if not kinds(plan.request.options.filters):
            return Duplicates(folder, [], [])
        hashing = Stage(self.place, "hashes", HashRecord, len(plan.chunks))
        self._run("hashing", hashing, HashChunk(plan, folder), plan.weights)
        hashed = self.team.share(hashing.results)
        parts = partitions(hashed)
        finding = Stage(self.place, "partitions", int, len(parts))
        self._run("finding duplicates", finding, FindDuplicates(folder, hashed, parts), [part.bytes for part in parts])
        return Duplicates(folder, hashed, parts)

    def _run(self, name: str, stage: Stage[Any], work: Callable[[int, Note], Any], weights: Sequence[int]) -> None:
        begin = time.monotonic()
        todo = self.team.share(stage.todo)
        progress = StageProgress(name, weights, todo, self.on_progress or (lambda progress: None))
        stage.run(self.team, todo, work, progress.add)
        self.stages[name] = time.monotonic() - begin

    def _has_files(self, record: ChunkRecord) -> bool:
        paths = ((self.place.data / side / entry.name, entry.bytes) for side in SIDES for entry in record.shards[side])
        return all(path.exists() and path.stat().st_size == size for path, size in paths)

    def _finish(self, plan: Plan, shards: Stage[ChunkRecord]) -> None:
        self._check_unchanged(plan.request)
        records = shards.results()
        build = _description(plan, records)
        for side in SIDES:
            entries = [entry for record in records for entry in record.shards[side]]
            if not entries:
                raise DataError(
                    f"no document is left for {side}; give more text, another --validation-fraction or weaker filters"
                )
            _keep_only({entry.name for entry in entries}, self.place.data / side)
            write_manifest(self.place.data / side, entries, self.tokenizer.identity, build)
        self.place.publish(overwrite=self.overwrite)

    def _check_unchanged(self, request: Request) -> None:
        now = Request.of(self.patterns, request.tokenizer, request.options)
        changed = request.changed_file(now)
        if changed is not None:
            raise DataError(f"{changed} changed while it was read; build again with --overwrite")

    def _compare_contents(self, reusable: Plan, request: Request) -> None:
        """Whether files of the same names and sizes, but written at another time or place, hold the same text."""
        plan = Plan(request, reusable.threshold, reusable.chunks)
        stage = Stage(self.place, "contents", str, len(plan.chunks))
        # What an earlier comparison found may be outdated.
        self.team.share(lambda: shutil.rmtree(self.place.records(stage.name), ignore_errors=True))
        self._run("comparing the text", stage, HashContents(plan), plan.weights)

        def settle() -> None:
            found = _content(stage.results())
            expected = Manifest.load(self.place.out / "train").build["content"]
            if found != expected:
                raise _of_something_else(self.place.out, "another text")
            plan.save(self.place.out)

        self.team.share(settle)


@dataclass(frozen=True)
class HashContents:
    """Hashes the text of chunks."""

    plan: Plan

    def __call__(self, chunk: int, note: Note) -> str:
        """Hash of all documents of a chunk, before any filter."""
        reader, notes = ChunkReader(self.plan, chunk), StepNotes(chunk, note)
        for _, document in reader:
            notes.add(documents=1, text_bytes=len(document.text.encode()))
        notes.finish()
        return reader.content


def _reusable(out: Path, request: Request) -> Plan:
    plan = Plan.load(out)
    problem = request.difference(plan.request)
    if problem is not None:
        raise _of_something_else(out, problem)
    for side in SIDES:
        Manifest.load(out / side)
    return plan


def _of_something_else(out: Path, problem: str) -> DataError:
    return DataError(f"{out} was built of {problem}; remove it, choose another output folder or give --overwrite")


def _description(plan: Plan, records: Sequence[ChunkRecord]) -> dict[str, Any]:
    """What the manifests keep of a build: nothing that differs between machines, folders or times."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    request = plan.request
    return {
        "rules": request.rules,
        "sources": [{"name": source.name, "bytes": source.bytes} for source in request.sources],
        "content": _content([record.content for record in records]),
        "options": asdict(request.options),
        "documents_read": sum(record.documents for record in records),
        "counts": dict(sorted(counts.items())),
    }


def _content(hashes: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(hashes).encode())


def _keep_only(names: set[str], folder: Path) -> None:
    """Remove what killed writers left."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
