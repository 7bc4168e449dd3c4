"""Is a checkpoint what was saved, to the last byte, and if not, what is wrong with which file and tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import ValidationError

from ptm_dist.checkpoint.contents import Contents
from ptm_dist.checkpoint.state import METADATA_FILE
from ptm_dist.checkpoint.store import MANIFEST_FILE, FileEntry, Manifest, checkpoint_paths, read_checkpoint
from ptm_dist.errors import CheckpointError

_FEW = 4


@dataclass(frozen=True)
class Verdict:
    """What was found of one checkpoint.

    Attributes:
        path: of the checkpoint.
        files: that were read.
        size: of them, in bytes.
        problems: a line each, which names the file; none if it is sound.
    """

    path: Path
    files: int
    size: int
    problems: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every byte is as it was saved."""
        return not self.problems


def checkpoints_to_verify(path: Path) -> list[Path]:
    """The checkpoint that a path is, or all of a run directory, oldest first, sound or not.

    Raises: CheckpointError if there is none.
    """
    found = [*checkpoint_paths(path / "checkpoints"), *checkpoint_paths(path)]
    if found:
        return found
    if path.is_dir() and (path.name.startswith("step-") or (path / MANIFEST_FILE).exists()):
        return [path]
    raise CheckpointError(f"no checkpoint in {path}; give a checkpoint directory or the directory of a run")


def inspect(path: Path) -> Verdict:
    """Read every byte of a checkpoint; all that is flipped, missing, too much or too little is a problem."""
    manifest_problem = None
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        manifest_problem = str(error)
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
    except (OSError, ValidationError):
        return Verdict(path, 0, 0, (manifest_problem or f"{path / MANIFEST_FILE} cannot be read",))
    sound, problems = [], list(_unknown_files(path, manifest))
    for name, entry in manifest.files.items():
        problem = _file_problem(path / name, entry)
        sound.append(problem is None)
        if problem is not None:
            problems.append(problem + _tensors_in(path, name, manifest))
    if manifest_problem is not None and (all(sound) or MANIFEST_FILE in manifest_problem):
        problems.append(manifest_problem)
    size = sum(entry.size for entry in manifest.files.values())
    return Verdict(path, len(manifest.files), size, tuple(problems))


def _unknown_files(path: Path, manifest: Manifest) -> Iterator[str]:
    known = {MANIFEST_FILE, *manifest.files}
    for found in sorted(path.rglob("*")):
        if str(found.relative_to(path)) not in known:
            yield f"{found} is no part of the checkpoint"


def _file_problem(path: Path, entry: FileEntry) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if (size := path.stat().st_size) != entry.size:
        return f"{path} has {size} bytes instead of {entry.size}"
    if hash_of(path) != entry.xxh3:
        return f"{path} is damaged: its bytes are not those that were saved"
    return None


def hash_of(path: Path) -> str:
    """Xxh3-128 of a file's bytes in hex, as a manifest has it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def _tensors_in(path: Path, name: str, manifest: Manifest) -> str:
    """Which tensors the damage of a file is in; nothing where that cannot be known."""
    index = manifest.files.get(METADATA_FILE)
    if name == METADATA_FILE or index is None or _file_problem(path / METADATA_FILE, index) is not None:
        return ""
    contents = Contents(path)
    if (path / name).is_file():
        found = contents.damaged_tensors(name)
    else:
        found = [tensor.name for tensor in contents.tensors.values() if any(box.file == name for box in tensor.boxes)]
    if not found:
        return ""
    more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
    return f" (tensors: {', '.join(found[:_FEW])}{more})"
