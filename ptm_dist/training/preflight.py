"""What can be known to be wrong before any process starts, found in one process, without a device."""

from __future__ import annotations

import math
from bisect import bisect_left

from data_pipeline.errors import DataError
from data_pipeline.shards import ShardSet
from data_pipeline.tokenizers import Tokenizer, load_tokenizer
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.store import CheckpointInfo, checkpoint_paths, latest
from ptm_dist.errors import CheckpointError, RecipeError
from ptm_dist.models.roberta import PADDING_ID
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.fingerprint import differences, model_fingerprint
from ptm_dist.recipe.history import read_until
from ptm_dist.recipe.schema import Family, Recipe
from ptm_dist.training.data import PhaseData, RecipeData
from ptm_dist.training.mixing import samples_of_sources
from ptm_dist.training.run_directory import RunDirectory

# Progress is a number of samples: it means the same only where these agree about the steps so far.
_POSITION_KEYS = (
    "data.sequence_length",
    "data.shuffle",
    "data.sources",
    "data.weight_changes",
    "training.global_batch_size",
    "training.batch_ramp",
    "training.phases",
    "training.seed",
)


def preflight(recipe: Recipe, world_size: int) -> None:
    """Refuse a run that cannot work, with one message that says what to do; make its directory otherwise.

    Args:
        recipe: as loaded.
        world_size: processes that will run it.

    Raises:
        RecipeError: values that contradict each other; LayoutError if only the layout is wrong.
        DataError: a tokenizer or shards that are missing, damaged, too few, or do not belong together.
        RunDirectoryError: a directory that is not writable, or of another recipe.
        CheckpointError: a checkpoint of another model or other data, or none that can be read.
    """
    check_recipe(recipe, world_size, tokenizer_vocab_size=None)
    learning_rate(recipe.schedule, recipe.optimizer.learning_rate, 0, recipe.training.steps)
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    check_recipe(recipe, world_size, tokenizer.vocab_size)
    check_padding(recipe, tokenizer)
    data = RecipeData(recipe)
    for shards in (*data.train.values(), *data.validation.values()):
        _check_tokenizer(tokenizer, shards, recipe)
    _check_amount(recipe, data)
    directory = RunDirectory(recipe.directory)
    directory.prepare(recipe)
    info = starting_checkpoint(recipe, directory)
    if info is not None:
        check_checkpoint(recipe, info, data.fingerprint)


def starting_checkpoint(recipe: Recipe, directory: RunDirectory) -> CheckpointInfo | None:
    """The checkpoint a run goes on from, by its manifest alone: its own newest, else checkpoint.load_from.

    Raises: CheckpointError if there are checkpoints and none is complete, or if load_from names none.
    """
    own = latest(directory.checkpoints)
    if own is None and checkpoint_paths(directory.checkpoints):
        raise CheckpointError(
            f"no checkpoint in {directory.checkpoints} is complete; copy one back, or remove them all to start again"
        )
    if own is None and recipe.checkpoint.load_from is not None:
        return find_checkpoint(recipe.checkpoint.load_from)
    return own


def check_checkpoint(recipe: Recipe, info: CheckpointInfo, data_fingerprint: str) -> None:
    """Refuse to go on from a checkpoint of another model, of other data, or that has all the steps already.

    Raises: CheckpointError that lists what differs.
    """
    saved = info.manifest.parsed_recipe()
    found = differences(saved, recipe)
    if info.manifest.model_fingerprint != model_fingerprint(recipe):
        model = [text for text in found if text.startswith("model.")]
        raise CheckpointError(
            f"{info.path} is of another model ({'; '.join(model)}); use its model section, or another checkpoint"
        )
    if info.is_weights_only:
        return
    if read_until(saved, info.step) != read_until(recipe, info.step):
        position = [text for text in found if text.startswith(_POSITION_KEYS)]
        raise CheckpointError(
            f"{info.path} stands at sample {info.manifest.samples} of another order ({'; '.join(position)}); keep "
            "those values to go on from it"
        )
    if info.manifest.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"{info.path} was trained on other token shards than {_places(recipe)} holds now; name the ones it was "
            "trained on, or start a new run"
        )
    is_own = info.path.parent == RunDirectory(recipe.directory).checkpoints
    if info.step >= recipe.training.steps and not is_own:
        raise CheckpointError(
            f"{info.path} has {info.step} steps already; raise training.steps={recipe.training.steps} to go on"
        )


def check_padding(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose padding id RoBERTa would not find where its published code expects it.

    Raises: RecipeError.
    """
    pad = tokenizer.special_ids.get("pad")
    if recipe.model.family is Family.ROBERTA and pad != PADDING_ID:
        raise RecipeError(
            f"model.family=roberta counts positions from behind padding id {PADDING_ID}, and {recipe.data.tokenizer} "
            f"has {pad}; train one with `ptm tokenizer train --kind bytelevel-bpe` (or sentencepiece), or use "
            "model.family=bert"
        )


def _check_tokenizer(tokenizer: Tokenizer, shards: ShardSet, recipe: Recipe) -> None:
    made_by, given = shards.tokenizer.sha256, tokenizer.identity.sha256
    if made_by != given:
        raise DataError(
            f"the shards in {shards.location} were made by another tokenizer ({made_by[:12]}) than "
            f"{recipe.data.tokenizer} ({given[:12]}); point data.tokenizer to that one, or build the shards again"
        )


def _check_amount(recipe: Recipe, data: RecipeData) -> None:
    """Refuse a run that repeats a source more often than the recipe allows."""
    for number, source in enumerate(recipe.data.named_sources):
        allowed = source.max_epochs or recipe.data.max_epochs
        epochs = data.epochs[source.name]
        if epochs <= allowed:
            continue
        read = " and ".join(_amount(part, number) for part in data.phases)
        key = "data.max_epochs" if source.max_epochs is None else f"max_epochs of {source.name}"
        raise DataError(
            f"training.steps={recipe.training.steps} reads {read} of {source.path}: {epochs:.2f} epochs, more than "
            f"{key}={allowed:g}; set {key}={math.ceil(epochs)} to allow that, build more data, or train "
            f"{_enough_steps(recipe, data, number, allowed)} steps"
        )


def _amount(part: PhaseData, source: int) -> str:
    cut = part.stream.sources[source].samples
    return f"{part.samples_read[source]} samples of {part.phase.sequence_length} tokens from the {len(cut)}"


def _enough_steps(recipe: Recipe, data: RecipeData, source: int, allowed: float) -> int:
    """The most steps that read a source no more often than allowed."""

    def suffices(steps: int) -> bool:
        read = [
            samples_of_sources(recipe, part.phase, steps)[source] / len(part.stream.sources[source].samples)
            for part in data.phases
        ]
        return sum(read) <= allowed

    return bisect_left(range(recipe.training.steps), True, key=lambda steps: not suffices(steps)) - 1


def _places(recipe: Recipe) -> str:
    return ", ".join(source.path for source in recipe.data.named_sources)
