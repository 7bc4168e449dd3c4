"""Checkpoints on disk: all or nothing, whatever moment a process dies at.

``checkpoints/step-00000100/`` holds the files of :mod:`ptm_dist.checkpoint.state` and ``manifest.json``,
which names every file with size and hash. It is written under a fresh hidden name, flushed, and then renamed:
a directory of that name is complete, or damaged by somebody else.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.distributed.checkpoint.metadata import MetadataIndex

from data_pipeline.atomic import sync_path
from ptm_dist.checkpoint.files import write_atomically
from ptm_dist.checkpoint.plan import Boxes, RankPlan, boxes_with_values, described, plan_save
from ptm_dist.checkpoint.state import Files, load_state, write_boxes
from ptm_dist.errors import CheckpointError, DiskFullError, is_disk_full
from ptm_dist.parallel.boxes import Held
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.schema import Recipe

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TRASH_PREFIX = ".trash-"

_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.tmp-.+|\.trash-.+")
_HASH_BLOCK = 8 << 20


class _Json(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Json):
    """A file of a checkpoint: bytes, and xxh3-128 of them in hex."""

    size: int
    xxh3: str


class Description(_Json):
    """What a checkpoint is of, as the run that saves it says.

    Attributes:
        step: optimizer steps done.
        samples: training samples consumed, from which the data goes on.
        recipe: the resolved recipe in JSON form; see :meth:`parsed_recipe`.
        recipe_fingerprint: of all that changes what is learnt.
        model_fingerprint: of the architecture.
        layout: in words; any other layout may load it.
        data_fingerprint: of the training shards.
        metrics: figures of this step; `validation_loss` where it was validated.
        torch_version: that wrote the files.
        world_size: ranks that wrote them.
        saved_at: UTC, ISO 8601.
        quarantine: shards that the run reads no more, by source and file name.
        skipped: first and last step of each range of steps whose update the run leaves out, in the order in which
            that was decided; a range may lie ahead of `step`.
        updates: of the weights so far; None if every step made one.
        recent_losses: of the newest steps that count for what a loss spike is, oldest first.
    """

    step: int
    samples: int
    recipe: dict[str, Any]
    recipe_fingerprint: str
    model_fingerprint: str
    layout: str
    data_fingerprint: str
    metrics: dict[str, float]
    torch_version: str
    world_size: int
    saved_at: str
    quarantine: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()
    updates: int | None = None
    recent_losses: tuple[float, ...] = ()

    @property
    def updates_done(self) -> int:
        """Updates of the weights so far, which the corrections of an optimizer count."""
        return self.step if self.updates is None else self.updates

    def parsed_recipe(self) -> Recipe:
        """The recipe of the run that saved this.

        Raises: CheckpointError if this version knows other recipe keys.
        """
        try:
            return Recipe.model_validate(self.recipe)
        except ValidationError as error:
            raise CheckpointError(f"the recipe in the checkpoint is of another version: {error}") from None


class Manifest(Description):
    """A description and the files it vouches for.

    Attributes:
        format_version: of checkpoints.
        files: by name.
        checksum: xxh3-128 in hex of :meth:`text` with an empty one; empty where an earlier version wrote it.
    """

    format_version: int
    files: dict[str, FileEntry]
    checksum: str = ""

    def text(self) -> str:
        """The content of the manifest's file."""
        return json.dumps(self.model_dump(mode="json"), indent=1)

    def sealed(self) -> Manifest:
        """The same with its check sum."""
        blank = self.model_copy(update={"checksum": ""})
        return blank.model_copy(update={"checksum": xxhash.xxh3_128_hexdigest(blank.text().encode())})


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: where it is and what it says of itself."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    @property
    def is_weights_only(self) -> bool:
        """Whether no step was done: weights from elsewhere, without optimizer state or a place in any data."""
        return self.step == 0

    @property
    def validation_loss(self) -> float | None:
        """Validation loss at this step, if there was one."""
        return self.manifest.metrics.get("validation_loss")


def read_checkpoint(path: Path) -> CheckpointInfo:
    """One checkpoint, if its manifest can be read and all files are there in their sizes.

    Raises: CheckpointError that says what is wrong with it.
    """
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: {MANIFEST_FILE}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise CheckpointError(f"{path / MANIFEST_FILE} is damaged: {place}: {first['msg']}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {manifest.format_version}; this version reads format {FORMAT_VERSION}"
        )
    if manifest.checksum and not _has_checksum((path / MANIFEST_FILE).read_bytes(), manifest.checksum):
        raise CheckpointError(f"{path / MANIFEST_FILE} is damaged: its bytes are not those that were saved")
    problems = [text for name, entry in manifest.files.items() if (text := _size_problem(path / name, entry))]
    if problems:
        raise CheckpointError(f"{path} is damaged: {'; '.join(problems)}")
    return CheckpointInfo(path, manifest)


def checkpoint_paths(directory: Path) -> list[Path]:
    """Everything named as a checkpoint, sound or not, oldest first."""
    found = [path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The complete checkpoints of a directory, oldest first; see :func:`read_checkpoint`."""
    complete = []
    for path in checkpoint_paths(directory):
        try:
            complete.append(read_checkpoint(path))
        except CheckpointError:
            continue  # checkpoint_paths() and read_checkpoint() tell who wants to know
    return complete


def latest(directory: Path) -> CheckpointInfo | None:
    """The complete checkpoint of the highest step."""
    return max(list_checkpoints(directory), key=lambda info: info.step, default=None)


def best(directory: Path) -> CheckpointInfo | None:
    """The complete checkpoint of the lowest validation loss; the newest of equals."""
    validated = [info for info in list_checkpoints(directory) if info.validation_loss is not None]
    return min(validated, key=lambda info: (info.validation_loss, -info.step), default=None)


def verify(path: Path) -> list[str]:
    """Read every byte of a checkpoint; what is wrong with it, nothing if it is sound."""
    try:
        info = read_checkpoint(path)
    except CheckpointError as error:
        return [str(error)]
    return _hash_problems(info, list(info.manifest.files))


def sweep(directory: Path) -> list[Path]:
    """Remove what unfinished saves and deletions left; only for the one run that owns the directory."""
    leftovers = [path for path in directory.glob(".*") if _LEFTOVER.fullmatch(path.name)]
    for path in leftovers:
        shutil.rmtree(path)
    return leftovers


def remove(path: Path) -> None:
    """Delete a checkpoint; half deleted, it no longer has the name of one."""
    trash = path.with_name(f"{TRASH_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(trash)
    sync_path(path.parent)
    shutil.rmtree(trash)


class CheckpointStore:
    """The checkpoints of a run that has started: every method is collective over its ranks.

    Args:
        directory: ``checkpoints/`` of the run, on storage that all ranks see.
        control: all ranks.
    """

    def __init__(self, directory: Path, control: ControlGroup) -> None:
        self.directory = directory
        self._control = control
        self._plan: tuple[Boxes, RankPlan] | None = None

    def save(self, state: Mapping[str, Held], description: Description) -> CheckpointInfo:
        """Write and commit one checkpoint.

        Raises:
            CheckpointError: if the disk is full (DiskFullError) or cannot be written, or has this step already, on
                all ranks; what was there before is as it was.
        """
        boxes = boxes_with_values(state)
        plan = self.plan(boxes)
        unfinished = self.begin(description.step)

        def write() -> Files:
            with self.disk_errors():
                return write_boxes(plan, boxes, unfinished)

        return self.commit(unfinished, write, description)

    def plan(self, boxes: Mapping[MetadataIndex, LocalShard]) -> RankPlan:
        """What this rank writes of its boxes; worked out again only when those of a rank have changed."""
        wanted = described(boxes)
        known = self._plan
        (is_new,) = self._control.maxima(float(known is None or known[0] != wanted))
        if known is None or is_new:
            known = self._plan = wanted, plan_save(boxes, self._control)
        return known[1]

    def begin(self, step: int) -> Path:
        """A hidden directory for the files of a step.

        Raises: CheckpointError if the step is there already, or the disk cannot be written, on all ranks.
        """
        return self._control.from_first(lambda: self._begin(step))

    def commit(self, unfinished: Path, write: Callable[[], Files], description: Description) -> CheckpointInfo:
        """Make a checkpoint of a directory that :meth:`begin` gave; if a rank fails, remove it.

        Args:
            unfinished: the directory.
            write: gives bytes and xxh3-128 of what this rank has written to it, by name.
            description: of the state.
        """
        try:
            files = self._control.gather(self._control.together(write))
            entries = {name: FileEntry(size=size, xxh3=xxh3) for part in files for name, (size, xxh3) in part.items()}
            manifest = Manifest(format_version=FORMAT_VERSION, files=entries, **dict(description)).sealed()
            return self._control.from_first(lambda: self._commit(unfinished, manifest))
        except Exception:
            if self._control.is_first:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def newest_sound(self, on_damage: Callable[[Path, str], None]) -> CheckpointInfo | None:
        """The newest checkpoint of which every byte is as it was saved; None if there is none at all.

        Newer ones are then renamed ``damaged-step-*``: under their own name they would count as kept.

        Args:
            on_damage: told each newer one that is not sound, and why, on every rank.

        Raises: CheckpointError if there are checkpoints and none is sound.
        """
        paths = self._control.from_first(lambda: checkpoint_paths(self.directory))
        damaged: list[tuple[Path, str]] = []
        for path in reversed(paths):
            problem = self.problem(path)
            if problem is None:
                self._control.from_first(lambda: _set_aside([path for path, _ in damaged]))
                return read_checkpoint(path)
            on_damage(path, problem)
            damaged.append((path, problem))
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be used; copy a sound one back, or remove them "
                f"all to start again: {'; '.join(problem for _, problem in damaged)}"
            )
        return None

    def problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, every byte read once, shared between the ranks."""
        found = self._control.gather(self._own_problem(path))
        return next((text for text in found if text is not None), None)

    def load(self, info: CheckpointInfo, state: Mapping[str, Held]) -> None:
        """Fill this rank's boxes from a checkpoint, saved at whatever layout."""
        load_state(state, info.path, self._control)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Make of an error of the system one that says what became of the checkpoints."""
        try:
            yield
        except ConnectionError:
            raise  # another rank's matter, though also an OSError
        except OSError as error:
            raise _save_error(self.directory, error) from error

    def _final(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _begin(self, step: int) -> Path:
        if (final := self._final(step)).exists():
            raise CheckpointError(f"{final} exists already; a run never saves a step twice: move it away")
        unfinished = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex[:8]}")
        with self.disk_errors():
            unfinished.mkdir(parents=True)
        return unfinished

    def _commit(self, unfinished: Path, manifest: Manifest) -> CheckpointInfo:
        final = self._final(manifest.step)
        with self.disk_errors():
            write_atomically(unfinished / MANIFEST_FILE, manifest.text())
            unfinished.rename(final)
            sync_path(final.parent)
        return CheckpointInfo(final, manifest)

    def _own_problem(self, path: Path) -> str | None:
        try:
            info = read_checkpoint(path)
            share = sorted(info.manifest.files)[self._control.rank :: self._control.size]
            return "; ".join(_hash_problems(info, share)) or None
        except CheckpointError as error:
            return str(error)


def _has_checksum(content: bytes, checksum: str) -> bool:
    """Whether a manifest's bytes are those that were sealed, perhaps by a version that knew fewer fields."""
    values = json.loads(content)
    blank = json.dumps({**values, "checksum": ""}, indent=1).encode()
    return xxhash.xxh3_128_hexdigest(blank) == checksum and json.dumps(values, indent=1).encode() == content


def _set_aside(paths: list[Path]) -> None:
    for path in paths:
        path.rename(path.with_name(f"damaged-{path.name}-{uuid.uuid4().hex[:8]}"))


def _save_error(directory: Path, error: OSError) -> CheckpointError:
    if is_disk_full(error):
        return DiskFullError(
            f"the disk of {directory} is full; earlier checkpoints are untouched: make room, and the same "
            "command goes on from the last one"
        )
    return CheckpointError(f"cannot write a checkpoint to {directory}: {error}; earlier ones are untouched")


def _size_problem(path: Path, entry: FileEntry) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    return f"{path.name} has {size} bytes instead of {entry.size}" if size != entry.size else None


def _hash_problems(info: CheckpointInfo, names: list[str]) -> list[str]:
    files = info.manifest.files
    return [
        f"{info.path / name} is damaged: its bytes are not those that were saved"
        for name in names
        if _hash(info.path / name) != files[name].xxh3
    ]


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
