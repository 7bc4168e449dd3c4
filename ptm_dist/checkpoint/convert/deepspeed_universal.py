"""DeepSpeed's universal checkpoints: a folder for each parameter, with a file for each tensor of its state.

``<folder>/latest_universal`` names a folder beside it, which holds ``zero/<parameter>/fp32.pt``, ``exp_avg.pt``,
``exp_avg_sq.pt`` and ``step.pt`` (Lian et al. 2024, arXiv 2406.18820). DeepSpeed loads one at any number of ranks. Our
own description of the run stands beside, so that what we exported can be imported again without other help.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from data_pipeline.atomic import atomic_folder
from ptm_dist.checkpoint.convert.exporting import refuse_existing
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.plan import LazyShard
from ptm_dist.checkpoint.state import SavedState
from ptm_dist.checkpoint.store import CheckpointStore, Description, verify
from ptm_dist.errors import CheckpointError
from ptm_dist.models import parameter_shapes
from ptm_dist.parallel.control import ALONE
from ptm_dist.recipe.fingerprint import fingerprint, model_fingerprint
from ptm_dist.recipe.phases import samples_before
from ptm_dist.recipe.schema import Recipe

LATEST_FILE = "latest_universal"
DESCRIPTION_FILE = "ptm.json"

_SLOTS = ("exp_avg", "exp_avg_sq")
_OLDEST_READER = "0.19.8"
"""Version of DeepSpeed that the files say they are of, and are tested with."""


@dataclass(frozen=True)
class UniversalCheckpoint:
    """What was written.

    Attributes:
        path: the folder.
        step: optimizer steps done.
        parameters: number of tensors of weights.
    """

    path: Path
    step: int
    parameters: int


def export_universal(path: Path, out: Path) -> UniversalCheckpoint:
    """Write a checkpoint, weights and optimizer state, so that DeepSpeed goes on from it at any ZeRO stage from 1 on.

    One tensor is in memory at a time. The folder appears when it is complete.

    Args:
        path: a checkpoint directory, or a run directory, of which the newest checkpoint is taken.
        out: folder to write; must not exist.

    Raises: CheckpointError if there is no checkpoint, it is damaged, or has no moments of Adam.
    """
    refuse_existing(out)
    info = find_checkpoint(path)
    if problems := verify(info.path):
        raise CheckpointError("; ".join(problems))
    saved = SavedState(info.path)
    names = [name.removeprefix("model.") for name in saved.shapes if name.startswith("model.")]
    if any(f"optimizer.{name}.{slot}" not in saved.shapes for name in names for slot in _SLOTS):
        raise CheckpointError(
            f"{info.path} has no {' and '.join(_SLOTS)}, which a universal checkpoint of DeepSpeed holds; export "
            "weights alone with --format hf"
        )
    tag = f"global_step{info.step}_universal"
    with atomic_folder(out) as unfinished:
        (unfinished / LATEST_FILE).write_text(tag)
        folder = unfinished / tag
        for name in names:
            _write_parameter(folder / "zero" / name, name, saved, info.manifest.updates_done)
        torch.save(_optimizer_state(info.manifest.updates_done), folder / "zero" / "optimizer_state.pt")
        for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):  # ZeRO-1 and 2, ZeRO-3
            torch.save(_model_state(info.step, info.manifest.updates_done), folder / file)
        description = Description(**{key: getattr(info.manifest, key) for key in Description.model_fields})
        (folder / DESCRIPTION_FILE).write_text(description.model_dump_json(indent=1))
    return UniversalCheckpoint(out, info.step, len(names))


def import_universal(
    folder: Path, out: Path, *, recipe: Recipe | None = None, data_fingerprint: str = "none", step: int | None = None
) -> UniversalCheckpoint:
    """Make a checkpoint, weights and optimizer state, of a universal checkpoint of one of our models.

    One tensor is in memory at a time. `out` appears when it is complete.

    Args:
        folder: holds ``latest_universal`` or ``zero``.
        out: folder to write; must not exist.
        recipe: of the run; None: as we wrote it beside the tensors.
        data_fingerprint: of the shards of a `recipe`, without which no run goes on at its place in the data.
        step: optimizer steps done; None: as the files say.

    Raises: CheckpointError if it is damaged, of another model, or does not say what is left out here.
    """
    refuse_existing(out)
    tagged = _tagged_folder(folder)
    described = _written_description(tagged) if recipe is None else None
    known = described.parsed_recipe() if described is not None else recipe
    if known is None:
        raise CheckpointError(f"{tagged} does not say of which recipe it is; give one by --recipe")
    shapes = parameter_shapes(known.model)
    _check_names(tagged, shapes, {"head.decoder.weight"} if known.model.tie_embeddings else set())
    steps_done = _steps_done(tagged, next(iter(shapes))) if step is None else step
    state = {
        key: LazyShard(torch.empty(shape, device="meta"), shape, (0,) * len(shape), partial(_read, path, shape))
        for name, shape in shapes.items()
        for key, path, shape in _places(tagged, name, shape)
    }
    description = described or _describe(known, steps_done, data_fingerprint, tagged)
    with atomic_folder(out) as unfinished:
        CheckpointStore(unfinished / "checkpoints", ALONE).save(state, description)
    return UniversalCheckpoint(out, description.step, len(shapes))


def _write_parameter(folder: Path, name: str, saved: SavedState, updates: int) -> None:
    folder.mkdir(parents=True)
    torch.save({"param": saved.read(f"model.{name}")}, folder / "fp32.pt")
    for slot in _SLOTS:
        torch.save({"param": saved.read(f"optimizer.{name}.{slot}")}, folder / f"{slot}.pt")
    torch.save(torch.tensor(float(updates)), folder / "step.pt")


def _optimizer_state(updates: int) -> dict[str, Any]:
    """What is not of a parameter; learning rates and the like stay those of the loading engine.

    ZeRO-1 and 2 read the first two entries (groups with and without weight decay), ZeRO-3 the last one.
    """
    states = {"state": {0: {"step": torch.tensor(float(updates))}}, "param_groups": [{}]}
    return {"ds_version": _OLDEST_READER, "param_groups": [{}, {}], "optimizer_state_dict": states}


def _model_state(step: int, updates: int) -> dict[str, Any]:
    counts = {"global_steps": step, "skipped_steps": step - updates, "dp_world_size": 1, "mp_world_size": 1}
    return {"module": {}, "lr_scheduler": None, **counts}


def _tagged_folder(folder: Path) -> Path:
    if (folder / "zero").is_dir():
        return folder
    try:
        tagged = folder / (folder / LATEST_FILE).read_text().strip()
    except OSError:
        raise CheckpointError(
            f"{folder} is no universal checkpoint of DeepSpeed: it has neither {LATEST_FILE} nor zero; make one with "
            "python -m deepspeed.checkpoint.ds_to_universal"
        ) from None
    if not (tagged / "zero").is_dir():
        raise CheckpointError(f"{folder} is damaged: {LATEST_FILE} names {tagged.name}, where no folder zero is")
    return tagged


def _written_description(tagged: Path) -> Description | None:
    path = tagged / DESCRIPTION_FILE
    try:
        return Description.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}); copy it again, or give --recipe") from None


def _check_names(tagged: Path, shapes: Mapping[str, tuple[int, ...]], tied: set[str]) -> None:
    """`tied` may be there: DeepSpeed repeats a parameter under each of its names."""
    there = {path.name for path in (tagged / "zero").iterdir() if path.is_dir()} - tied
    missing, unknown = sorted(set(shapes) - there), sorted(there - set(shapes))
    if missing or unknown:
        raise CheckpointError(
            f"{tagged} is of another model than the recipe: it lacks {', '.join(missing[:4]) or 'nothing'} and has "
            f"{', '.join(unknown[:4]) or 'nothing'} too many"
        )


def _steps_done(tagged: Path, name: str) -> int:
    path = tagged / "zero" / name / "step.pt"
    if not path.exists():
        raise CheckpointError(f"{tagged} does not say how many steps were done; give them by --step")
    return int(_load(path))


def _places(tagged: Path, name: str, shape: tuple[int, ...]) -> list[tuple[str, Path, tuple[int, ...]]]:
    folder = tagged / "zero" / name
    slots = [(f"optimizer.{name}.{slot}", folder / f"{slot}.pt", shape) for slot in _SLOTS]
    return [(f"model.{name}", folder / "fp32.pt", shape), *slots]


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    values = _load(path)
    tensor = values["param"] if isinstance(values, dict) and "param" in values else values
    if not isinstance(tensor, Tensor) or tensor.numel() != torch.Size(shape).numel():
        raise CheckpointError(f"{path} is of another model: the recipe means a tensor of shape {shape}")
    return tensor.float().reshape(shape)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}; copy it again") from None


def _describe(recipe: Recipe, step: int, data_fingerprint: str, tagged: Path) -> Description:
    return Description(
        step=step,
        samples=samples_before(recipe, step),
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=fingerprint(recipe),
        model_fingerprint=model_fingerprint(recipe),
        layout=f"imported from {tagged.name}",
        data_fingerprint=data_fingerprint,
        metrics={},
        torch_version=torch.__version__,
        world_size=1,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
