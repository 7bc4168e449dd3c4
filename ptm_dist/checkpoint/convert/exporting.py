"""A checkpoint as a folder that ``from_pretrained`` loads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from data_pipeline.atomic import atomic_folder
from data_pipeline.tokenizers import Family, export_tokenizer, load_tokenizer
from ptm_dist.checkpoint.convert.shards import Piece, write_pieces
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.state import SavedState
from ptm_dist.checkpoint.store import verify
from ptm_dist.errors import CheckpointError
from ptm_dist.models import model_spec
from ptm_dist.models.hf import TensorPair, counterpart, hf_config, tensor_pairs
from ptm_dist.recipe.schema import ModelSection

MAX_SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the folder.
        checkpoint: what it was made of.
        model_class: class of ``transformers`` that loads it.
        parameters: number of weights, tied ones once.
        files: names of the files of weights.
        tokenizer: our folder of the tokenizer that is beside them; None if there was none.
    """

    path: Path
    checkpoint: Path
    model_class: str
    parameters: int
    files: tuple[str, ...]
    tokenizer: Path | None


def export_checkpoint(
    path: Path, out: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES, tokenizer: Path | None = None
) -> Export:
    """Write the model of a checkpoint, saved at whatever layout, as ``transformers`` does, in float32.

    One tensor is in memory at a time. The folder appears when it is complete.

    Args:
        path: a checkpoint directory, or a run directory, of which the newest checkpoint is taken.
        out: folder to write; must not exist.
        max_shard_bytes: most bytes of a file of weights, unless one tensor alone is larger.
        tokenizer: folder of the tokenizer; left out: where the recipe says, if it is there.

    Raises:
        RecipeError: no class of ``transformers`` holds the model.
        CheckpointError: there is no checkpoint, it is damaged, or `out` exists.
        DataError: the tokenizer cannot be read or lacks a special id, or `out` cannot be written.
    """
    refuse_existing(out)
    info = find_checkpoint(path)
    recipe = info.manifest.parsed_recipe()
    chosen, pairs = counterpart(recipe.model), tensor_pairs(recipe.model)
    folder = tokenizer if tokenizer is not None else _existing(recipe.data.tokenizer)
    special_ids = {} if folder is None else load_tokenizer(folder).special_ids
    config = hf_config(recipe.model, special_ids)
    if problems := verify(info.path):
        raise CheckpointError("; ".join(problems))
    saved = SavedState(info.path)
    pieces = [_piece(pair, saved) for pair in pairs]
    with atomic_folder(out) as unfinished:
        files = write_pieces(unfinished, pieces, max_shard_bytes)
        _write_settings(unfinished, config, recipe.model)
        if folder is not None:
            family = cast(Family, chosen.tokenizer_family)
            export_tokenizer(folder, unfinished, family, recipe.model.max_positions)
    parameters = sum(math.prod(saved.shapes[f"model.{pair.ours}"]) for pair in pairs)
    return Export(out, info.path, chosen.model_class, parameters, tuple(files), folder)


def refuse_existing(out: Path) -> None:
    """Raise CheckpointError if something is where a folder is to be written."""
    if out.exists():
        raise CheckpointError(f"{out} exists already; remove it, or choose another folder")


def _piece(pair: TensorPair, saved: SavedState) -> Piece:
    name = f"model.{pair.ours}"
    layout = pair.to_theirs(torch.empty(saved.shapes[name], device="meta"))
    shapes = {their_name: tuple(tensor.shape) for their_name, tensor in layout.items()}
    return Piece(shapes, partial(_read, pair, saved, name))


def _read(pair: TensorPair, saved: SavedState, name: str) -> Mapping[str, Tensor]:
    return pair.to_theirs(saved.read(name))


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _write_settings(folder: Path, config: Mapping[str, Any], section: ModelSection) -> None:
    _write_json(folder / "config.json", config)
    if model_spec(section).block.causal:
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json(folder / "generation_config.json", ids)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
