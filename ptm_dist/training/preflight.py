"""What can be known to be wrong before any process starts, found in one process, without a device."""

from __future__ import annotations

import math

from data_pipeline.errors import DataError
from data_pipeline.loader import epochs_needed
from data_pipeline.shards import ShardSet
from data_pipeline.tokenizers import Tokenizer, load_tokenizer
from ptm_dist.checkpoint.model import find_checkpoint
from ptm_dist.checkpoint.store import CheckpointInfo, checkpoint_paths, latest
from ptm_dist.errors import CheckpointError
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.fingerprint import differences, model_fingerprint
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.data import RecipeData
from ptm_dist.training.run_directory import RunDirectory

# Progress is a number of samples: it means the same only where these agree.
_POSITION_KEYS = (
    "data.sequence_length",
    "data.shuffle",
    "training.global_batch_size",
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
    data = RecipeData(recipe)
    for shards in (data.train, data.validation):
        if shards is not None:
            _check_tokenizer(tokenizer, shards, recipe)
    _check_amount(recipe, len(data.samples))
    directory = RunDirectory(recipe.directory)
    directory.prepare(recipe)
    info = starting_checkpoint(recipe, directory)
    if info is not None:
        check_checkpoint(recipe, info, data.train.fingerprint)


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
    position = [text for text in found if text.startswith(_POSITION_KEYS)]
    if position:
        raise CheckpointError(
            f"{info.path} stands at sample {info.manifest.samples} of another order ({'; '.join(position)}); keep "
            "those values to go on from it"
        )
    if info.manifest.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"{info.path} was trained on other token shards than {recipe.data.path} holds now; point data.path to "
            "the ones it was trained on, or start a new run"
        )
    is_own = info.path.parent == RunDirectory(recipe.directory).checkpoints
    if info.step >= recipe.training.steps and not is_own:
        raise CheckpointError(
            f"{info.path} has {info.step} steps already; raise training.steps={recipe.training.steps} to go on"
        )


def _check_tokenizer(tokenizer: Tokenizer, shards: ShardSet, recipe: Recipe) -> None:
    made_by, given = shards.tokenizer.sha256, tokenizer.identity.sha256
    if made_by != given:
        raise DataError(
            f"the shards in {shards.directory} were made by another tokenizer ({made_by[:12]}) than "
            f"{recipe.data.tokenizer} ({given[:12]}); point data.tokenizer to that one, or build the shards again"
        )


def _check_amount(recipe: Recipe, num_samples: int) -> None:
    training, data = recipe.training, recipe.data
    epochs = epochs_needed(num_samples, training.steps, training.global_batch_size)
    if epochs > data.max_epochs:
        enough = math.floor(data.max_epochs * num_samples / training.global_batch_size)
        raise DataError(
            f"training.steps={training.steps} x training.global_batch_size={training.global_batch_size} means "
            f"{epochs:.2f} epochs of the {num_samples} training samples in {data.path}, more than "
            f"data.max_epochs={data.max_epochs:g}; set data.max_epochs={math.ceil(epochs)} to allow it, build more "
            f"data, or train {enough} steps"
        )
