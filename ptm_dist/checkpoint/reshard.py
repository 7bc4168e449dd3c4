"""A checkpoint cut anew for a layout, in one process, without the ranks that will load it.

Every checkpoint loads at every layout. One whose files are cut for the layout loads faster there: each rank reads its
own file, and nothing of what the others hold.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from data_pipeline.atomic import atomic_folder
from ptm_dist.checkpoint.contents import Contents, SavedTensor
from ptm_dist.checkpoint.disk import CandidFileSystem
from ptm_dist.checkpoint.files import write_atomically
from ptm_dist.checkpoint.layout_boxes import Box, LayoutBoxes
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.plan import WRITTEN_AS
from ptm_dist.checkpoint.state import METADATA_FILE
from ptm_dist.checkpoint.store import MANIFEST_FILE, CheckpointInfo, FileEntry, Manifest, read_checkpoint
from ptm_dist.checkpoint.verification import hash_of, inspect
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.layout import ResolvedLayout, resolve_layout
from ptm_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Resharding:
    """What was written.

    Attributes:
        checkpoint: the new one.
        layout: that it is cut for, in words.
        files: of tensors.
        tensors: in them.
    """

    checkpoint: Path
    layout: str
    files: int
    tensors: int


def reshard(source: Path, out: Path, recipe: Recipe, ranks: int) -> Resharding:
    """Write a checkpoint anew with a file for each rank of a layout; weights and optimizer state are equal to the bit.

    One tensor is in memory at a time, with one of its boxes. The folder appears when it is complete, and a run starts
    from it by `checkpoint.load_from`.

    Args:
        source: a checkpoint directory, or a run directory, of which the newest checkpoint is taken.
        out: folder to write; must not exist.
        recipe: of the checkpoint, but for the layout.
        ranks: of the layout.

    Raises:
        CheckpointError: if there is no checkpoint, it is damaged, or `out` exists.
        RecipeError: if the layout does not fit the model or the ranks; LayoutError if only the layout is wrong.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already; remove it, or choose another folder")
    check_recipe(recipe, ranks, tokenizer_vocab_size=None)
    layout = resolve_layout(recipe.layout, ranks)
    info = find_checkpoint(source)
    if problems := inspect(info.path).problems:
        raise CheckpointError("; ".join(problems))
    contents = Contents(info.path)
    holders = _holders(recipe, layout)
    with atomic_folder(out) as unfinished:
        folder = unfinished / "checkpoints" / info.path.name
        folder.mkdir(parents=True)
        writer = _Writer(folder, ranks)
        for tensor in contents.tensors.values():
            writer.write(tensor, contents.read(tensor.name), holders.get(_parameter_of(tensor.name), {}))
        writer.finish()
        _describe(info, folder, recipe, layout)
        read_checkpoint(folder)
    files = len(list((out / "checkpoints" / info.path.name).glob("*.distcp")))
    return Resharding(out / "checkpoints" / info.path.name, layout.describe(), files, len(contents.tensors))


def _holders(recipe: Recipe, layout: ResolvedLayout) -> dict[str, dict[Box, list[int]]]:
    """For each parameter the boxes that it is cut into, with the ranks that hold them."""
    boxes = LayoutBoxes(recipe.model, layout)
    found: dict[str, dict[Box, list[int]]] = {}
    for rank in range(layout.world_size):
        for name, box in boxes.of_rank(rank).items():
            if 0 not in box[1]:
                found.setdefault(name, {}).setdefault(box, []).append(rank)
    return found


def _parameter_of(key: str) -> str:
    """The parameter that an entry, `model.<parameter>` or `optimizer.<parameter>.<slot>`, belongs to."""
    kind, _, name = key.partition(".")
    return name if kind == "model" else name.rpartition(".")[0]


class _Writer:
    """Writes boxes into a file per rank, each box once, as torch.distributed.checkpoint reads them.

    Args:
        folder: to write to.
        ranks: how many files at most.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        self._folder = folder
        self._written = [0] * ranks
        self._entries: dict[str, TensorStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def write(self, tensor: SavedTensor, values: Tensor, holders: dict[Box, list[int]]) -> None:
        """Write all boxes of a tensor, each for the one of its ranks that has least so far."""
        whole: Box = ((0,) * values.dim(), tuple(values.shape))
        boxes = holders or {whole: [0]}
        for (offset, shape), ranks in boxes.items():
            box = LocalShard(torch.empty(shape, device="meta"), tensor.shape, offset).cut(values)
            owner = min(ranks, key=lambda rank: self._written[rank])
            self._append(owner, MetadataIndex(tensor.name, torch.Size(offset)), box)
        self._entries[tensor.name] = TensorStorageMetadata(
            TensorProperties.create_from_tensor(values), values.shape, _chunks(list(boxes))
        )

    def finish(self) -> None:
        """Write what lies where."""
        metadata = Metadata(self._entries, storage_data=self._places, version=WRITTEN_AS)  # type: ignore[arg-type]
        with (self._folder / METADATA_FILE).open("wb") as stream:
            pickle.dump(metadata, stream)

    def _append(self, rank: int, index: MetadataIndex, box: Tensor) -> None:
        name = f"__{rank}_0.distcp"
        is_part = box.numel() * box.element_size() < box.untyped_storage().nbytes()
        with CandidFileSystem().create_stream(self._folder / name, "ab") as stream:
            begin = stream.tell()
            # A part would be saved with the whole tensor that it is a view of.
            values = box.clone(memory_format=torch.contiguous_format) if is_part else box
            torch.save(values, cast(IO[bytes], stream))
            self._places[index] = _StorageInfo(name, begin, stream.tell() - begin)
            self._written[rank] = stream.tell()


def _chunks(boxes: Sequence[Box]) -> list[ChunkStorageMetadata]:
    return [ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)) for offset, shape in boxes]


def _describe(info: CheckpointInfo, folder: Path, recipe: Recipe, layout: ResolvedLayout) -> None:
    """Write the manifest: the source's, but for the layout and the files."""
    files = {path.name: FileEntry(size=path.stat().st_size, xxh3=hash_of(path)) for path in sorted(folder.iterdir())}
    manifest = Manifest.model_validate(
        {
            **info.manifest.model_dump(),
            "recipe": {**info.manifest.recipe, "layout": recipe.layout.model_dump(mode="json")},
            "layout": layout.describe(),
            "world_size": layout.world_size,
            "torch_version": torch.__version__,
            "files": {name: entry.model_dump() for name, entry in files.items()},
        }
    )
    write_atomically(folder / MANIFEST_FILE, manifest.sealed().text())
