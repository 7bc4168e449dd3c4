"""A folder of ``transformers`` as a checkpoint that a run can start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.atomic import atomic_folder
from data_pipeline.tokenizers import import_tokenizer
from ptm_dist.checkpoint.convert.exporting import refuse_existing
from ptm_dist.checkpoint.convert.weight_files import Weights, open_weights, read_json
from ptm_dist.checkpoint.plan import LazyShard
from ptm_dist.checkpoint.store import CheckpointStore, Description
from ptm_dist.errors import CheckpointError
from ptm_dist.models import model_spec, parameter_shapes
from ptm_dist.models.hf import KeyMatch, TensorPair, counterpart, model_section, tensor_pairs
from ptm_dist.models.initialization import fill_initial
from ptm_dist.models.spec import ModelSpec
from ptm_dist.parallel.control import ALONE
from ptm_dist.recipe.family_checks import OBJECTIVES
from ptm_dist.recipe.fingerprint import fingerprint, model_fingerprint
from ptm_dist.recipe.schema import (
    DataSection,
    ModelSection,
    ObjectiveSection,
    OptimizerSection,
    Recipe,
    TrainingSection,
)

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
_HEADS = ("head.", "pair_head.")


@dataclass(frozen=True)
class Import:
    """What was made.

    Attributes:
        path: the folder, which holds ``checkpoints/`` and, if there was one, ``tokenizer/``.
        section: the model.
        initial: our names of the tensors that the folder lacked: they have initial weights.
        unused: their names of the weights for which the family has no place.
        tokenizer: our tokenizer folder; None if theirs had no tokenizer.
    """

    path: Path
    section: ModelSection
    initial: tuple[str, ...]
    unused: tuple[str, ...]
    tokenizer: Path | None


def import_checkpoint(folder: Path, out: Path, *, seed: int = 1234) -> Import:
    """Make a checkpoint of a Hugging Face folder: weights alone, at step 0.

    One tensor is in memory at a time. Heads that the folder lacks start from initial weights. The recipe in the
    checkpoint is right about the model and the objective of its family; what it says of data and training stands
    for nothing. `out` appears when it is complete.

    Args:
        folder: holds ``config.json`` and weights.
        out: folder to write; must not exist.
        seed: of initial weights.

    Raises:
        CheckpointError: of another class, without weights, damaged, with weights of other names or shapes, or `out`
            exists.
        DataError: a tokenizer that is there cannot be read, or `out` cannot be written.
    """
    refuse_existing(out)
    config = read_json(folder / "config.json")
    try:
        section = model_section(config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    weights = open_weights(folder)
    pairs = tensor_pairs(section)
    match = counterpart(section).keys.match(pairs, weights.shapes, tied=section.tie_embeddings)
    shapes = parameter_shapes(section)
    initial = _check(folder, pairs, match, weights, shapes)
    spec = model_spec(section)
    state = {
        f"model.{pair.ours}": _lazy(
            shapes[pair.ours],
            partial(_initial, pair.ours, shapes[pair.ours], spec, seed)
            if pair.ours in initial
            else partial(_read, pair, match.found, weights),
        )
        for pair in pairs
    }
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    with atomic_folder(out) as unfinished:
        description = _description(section, out, folder)
        CheckpointStore(unfinished / "checkpoints", ALONE).save(state, description)
        if has_tokenizer:
            import_tokenizer(folder, unfinished / "tokenizer")
    return Import(out, section, initial, match.unused, out / "tokenizer" if has_tokenizer else None)


def _check(
    folder: Path,
    pairs: list[TensorPair],
    match: KeyMatch,
    weights: Weights,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str, ...]:
    """Our names of the tensors that are not there, if everything that is there is right."""
    lost = [pair for pair in pairs if any(name not in match.found for name in pair.theirs)]
    needed = [name for pair in lost if not _may_lack(pair, match) for name in pair.theirs if name not in match.found]
    problems = []
    if match.unexpected:
        problems.append(f"weights that the class in config.json does not have: {_listed(match.unexpected)}")
    if needed:
        problems.append(f"it lacks {_listed(needed)}")
    problems += _wrong_shapes([pair for pair in pairs if pair not in lost], match, weights, shapes)
    problems += [
        f"{name} and {twin} differ, and config.json says they are one (tie_word_embeddings)"
        for name, twin in match.twins
        if weights.shapes[name] != weights.shapes[twin] or not torch.equal(weights.read(name), weights.read(twin))
    ]
    if problems:
        raise CheckpointError(f"{folder} cannot be imported: {'; '.join(problems)}")
    return tuple(pair.ours for pair in lost)


def _may_lack(pair: TensorPair, match: KeyMatch) -> bool:
    """Only heads, and these only whole."""
    return pair.ours.startswith(_HEADS) and not any(name in match.found for name in pair.theirs)


def _wrong_shapes(
    pairs: list[TensorPair], match: KeyMatch, weights: Weights, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    wrong = []
    for pair in pairs:
        for name, expected in pair.to_theirs(torch.empty(shapes[pair.ours], device="meta")).items():
            key = match.found[name]
            if weights.shapes[key] != tuple(expected.shape):
                wrong.append(f"{key} is {weights.shapes[key]}, and config.json means {tuple(expected.shape)}")
    return wrong


def _listed(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _lazy(shape: tuple[int, ...], read: partial[Tensor]) -> LazyShard:
    return LazyShard(torch.empty(shape, device="meta"), shape, (0,) * len(shape), read)


def _read(pair: TensorPair, found: Mapping[str, str], weights: Weights) -> Tensor:
    return pair.to_ours({name: weights.read(found[name]) for name in pair.theirs})


def _initial(name: str, shape: tuple[int, ...], spec: ModelSpec, seed: int) -> Tensor:
    whole = torch.empty(shape)
    fill_initial(name, whole, shape, (0,) * len(shape), spec, seed)
    return whole


def _description(section: ModelSection, out: Path, folder: Path) -> Description:
    recipe = Recipe(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", out.absolute().name).lstrip("._-") or "imported",
        model=section,
        data=DataSection(path="data", tokenizer=out.absolute() / "tokenizer", sequence_length=section.max_positions),
        objective=ObjectiveSection.model_validate({"kind": OBJECTIVES[section.family][0]}),
        optimizer=OptimizerSection(learning_rate=1e-4),
        training=TrainingSection(steps=1, global_batch_size=1),
    )
    return Description(
        step=0,
        samples=0,
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=fingerprint(recipe),
        model_fingerprint=model_fingerprint(recipe),
        layout=f"imported from {folder.name}",
        data_fingerprint="none",
        metrics={},
        torch_version=torch.__version__,
        world_size=1,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
