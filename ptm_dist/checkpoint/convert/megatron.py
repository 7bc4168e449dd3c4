"""GPT-2's weights to and from Megatron-Core's distributed checkpoints (its format `torch_dist`).

Such a folder is one of torch.distributed.checkpoint with two small files beside it. The layers of a model lie stacked
in one tensor for each kind of weight, ``[layers, ...]``, the LayerNorm before a matrix goes by the matrix's name,
and the vocabulary may be filled up with rows that mean nothing. Megatron-Core itself is not needed.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.atomic import atomic_folder
from ptm_dist.checkpoint.convert.exporting import refuse_existing
from ptm_dist.checkpoint.convert.importing import Import, _description
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.plan import LazyShard
from ptm_dist.checkpoint.state import METADATA_FILE, SavedState, load_state, save_state, saved_shapes
from ptm_dist.checkpoint.store import CheckpointStore, verify
from ptm_dist.engines.megatron_keys import megatron_name
from ptm_dist.errors import CheckpointError
from ptm_dist.models import model_spec, parameter_shapes
from ptm_dist.parallel.boxes import Held
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.schema import Family, ModelSection

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


class Place(NamedTuple):
    """Where a parameter stands in such a checkpoint: a tensor, and for a layer's its number in the stack."""

    key: str
    layer: int | None


def place_of(name: str, section: ModelSection) -> Place:
    """The place of our parameter `name` of a GPT-2."""
    theirs = megatron_name(name, model_spec(section))
    layer = _LAYER.fullmatch(theirs)
    if layer is None:
        return Place(theirs, None)
    kind = layer[2]
    for norm, fused in _NORMS.items():
        kind = fused + kind.removeprefix(norm) if kind.startswith(norm) else kind
    return Place(f"decoder.layers.{kind}", int(layer[1]))


def import_megatron(folder: Path, out: Path, section: ModelSection) -> Import:
    """Make a checkpoint of a Megatron-Core folder: weights alone, at step 0; one tensor is in memory at a time.

    Args:
        folder: holds ``metadata.json`` and the weights, such as ``iter_0001000``; optimizer state is left alone.
        out: folder to write; must not exist.
        section: the model, which the folder does not tell.

    Raises:
        CheckpointError: the folder is no such checkpoint or of another model, or `out` exists.
        DataError: `out` cannot be written.
    """
    refuse_existing(out)
    _check_family(section)
    if not (folder / METADATA_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no distributed checkpoint of Megatron-Core (torch_dist); it lacks .metadata"
        )
    saved, shapes = saved_shapes(folder), parameter_shapes(section)
    places = {name: place_of(name, section) for name in shapes}
    _check_shapes(folder, saved, places, shapes)
    state = {
        f"model.{name}": LazyShard(
            torch.empty(shape, device="meta"),
            shape,
            (0,) * len(shape),
            partial(_read, folder, saved, places[name], shape),
        )
        for name, shape in shapes.items()
    }
    with atomic_folder(out) as unfinished:
        CheckpointStore(unfinished / "checkpoints", ALONE).save(state, _description(section, out, folder))
    known = {place.key for place in places.values()}
    unused = tuple(key for key in saved if key not in known and not key.startswith("optimizer."))
    return Import(out, section, (), unused, None)


def export_megatron(path: Path, out: Path) -> Path:
    """Write a checkpoint's weights as Megatron-Core loads them, in float32; one tensor is in memory at a time.

    Args:
        path: a checkpoint directory, or a run directory, of which the newest checkpoint is taken.
        out: folder to write; must not exist.

    Returns: `out`.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged or of another family than GPT-2, or `out` exists.
        DataError: `out` cannot be written.
    """
    refuse_existing(out)
    info = find_checkpoint(path)
    section = info.manifest.parsed_recipe().model
    _check_family(section)
    if problems := verify(info.path):
        raise CheckpointError("; ".join(problems))
    saved = SavedState(info.path)
    state: dict[str, Held] = {}
    for name, shape in parameter_shapes(section).items():
        key, layer = place_of(name, section)
        read = partial(saved.read, f"model.{name}")
        if layer is None:
            state[key] = _whole(shape, read)
            continue
        box = LazyShard(
            torch.empty((1, *shape), device="meta"),
            (section.num_layers, *shape),
            (layer, *(0,) * len(shape)),
            partial(_stacked, read),
        )
        state[key] = (*state.get(key, ()), box)  # type: ignore[misc]
    with atomic_folder(out) as unfinished:
        save_state(state, unfinished, ALONE)
        torch.save({}, unfinished / "common.pt")
        (unfinished / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")
    return out


def _check_family(section: ModelSection) -> None:
    if section.family is not Family.GPT2 or section.attention_band:
        raise CheckpointError(
            f"model.family={section.family} has no checkpoint that Megatron-Core's models load; only a gpt2 without "
            "attention_band has one"
        )


def _check_shapes(
    folder: Path,
    saved: dict[str, tuple[int, ...]],
    places: dict[str, Place],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    problems = []
    for name, place in places.items():
        num_layers = 1 + max(each.layer for each in places.values() if each.layer is not None)
        expected = shapes[name] if place.layer is None else (num_layers, *shapes[name])
        found = saved.get(place.key)
        if found is not None and place.key in _VOCABULARY and found[0] >= expected[0]:
            found = (expected[0], *found[1:])
        if found != expected:
            problems.append(f"{place.key} is {found or 'missing'}, and the model section means {expected}")
    if problems:
        raise CheckpointError(f"{folder} cannot be imported: {'; '.join(sorted(set(problems)))}")


def _read(folder: Path, saved: dict[str, tuple[int, ...]], place: Place, shape: tuple[int, ...]) -> Tensor:
    """One parameter: a layer of a stack, or the rows that mean something."""
    stacked = place.layer is not None
    local = torch.empty((1, *shape) if stacked else shape)
    offset = (place.layer or 0, *(0,) * (local.dim() - 1))
    load_state({place.key: LocalShard(local, saved[place.key], offset)}, folder, ALONE)
    return local[0] if stacked else local


def _whole(shape: tuple[int, ...], read: partial[Tensor]) -> LazyShard:
    return LazyShard(torch.empty(shape, device="meta"), shape, (0,) * len(shape), read)


def _stacked(read: partial[Tensor]) -> Tensor:
    return read()[None]
