"""The full check of a data set: every byte of every file, and nothing that does not belong there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.shards.errors import Damage
from data_pipeline.shards.manifest import MANIFEST_NAME, Manifest
from data_pipeline.shards.verify_shard import ShardTask, check_shard

PARTS = ("train", "validation")
"""Folders of shards in what a build writes."""

BESIDE_PARTS = ("plan.json",)
"""Files that a build leaves beside them."""


def parts_of(folder: Path) -> list[Path]:
    """The folders of shards in what a build wrote; the folder itself if it has no parts."""
    return [folder / name for name in PARTS if (folder / name).is_dir()] or [folder]


def surplus(folder: Path) -> list[Damage]:
    """Files beside the parts of what a build wrote that do not belong there."""
    if parts_of(folder) == [folder]:
        return []
    return list(_surplus(folder, {*PARTS, *BESIDE_PARTS}, "part of the data"))


def verify(directory: Path, *, workers: int = 1, on_progress: Callable[[int], None] | None = None) -> list[Damage]:
    """Read every byte of a folder of shards and compare it with what was written.

    Bytes of members are compared by the hashes of their blocks, everything between them with what the format puts
    there, the manifest with its own checksum. What is whole is checked for sense: offsets, ids, sources.

    Args:
        directory: a folder with a manifest.
        workers: threads; what they do is mostly reading, which they do side by side.
        on_progress: called after each shard with the bytes of its file.

    Returns: one entry for each thing that is wrong, naming file, member and bytes; empty when all is well.
    """
    path = str(directory / MANIFEST_NAME)
    try:
        manifest = Manifest.load(directory)
    except DataError as error:
        return [Damage.of_file(path, str(error))]
    found = list(
        _surplus(directory, {MANIFEST_NAME, *(shard.name for shard in manifest.shards)}, "listed in the manifest")
    )
    sources = manifest.build.get("sources")
    num_sources = len(sources) if isinstance(sources, list) else None
    tasks = [
        ShardTask(directory / shard.name, shard, manifest.token_dtype, manifest.tokenizer.vocab_size, num_sources)
        for shard in manifest.shards
    ]
    pool = ThreadPoolExecutor(workers)
    try:
        for task, damages in zip(tasks, pool.map(check_shard, tasks), strict=True):
            found += damages
            if on_progress:
                on_progress(task.entry.bytes)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _surplus(directory: Path, names: set[str], what: str) -> Iterator[Damage]:
    for path in sorted(directory.iterdir()):
        if path.name not in names:
            yield Damage.of_file(str(path), f"{path} is not {what}; remove it or build the data again")
