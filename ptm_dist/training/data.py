"""The data of a recipe: what its steps read, in which order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batches import StepBatch
from data_pipeline.loader import BrokenHandler, training_batches, validation_batches
from data_pipeline.samples import Samples, ShardSamples
from data_pipeline.samples.joined import JoinedSamples
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet
from data_pipeline.shards.files import LocalFiles
from data_pipeline.store import CacheOptions, CacheStatistics, RemoteFiles, is_remote, open_shards
from data_pipeline.stream import SampleStream, StreamSource
from ptm_dist.recipe.phases import Phase, phase_at, phases
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.mixing import phase_mixture, samples_of_sources, source_orders

TRAIN = "train"
VALIDATION = "validation"


@dataclass(frozen=True)
class PhaseData:
    """The training data as one phase of a run reads it.

    Attributes:
        phase: the steps.
        stream: its samples in order.
        samples_read: how many the whole phase reads of each source, [sources], int64.
    """

    phase: Phase
    stream: SampleStream
    samples_read: NDArray[np.int64]

    @property
    def epochs(self) -> NDArray[np.float64]:
        """How often the phase reads each source; 1.0 is each sample once; [sources]."""
        return self.samples_read / np.array([len(source.samples) for source in self.stream.sources])


class RecipeData:
    """Training and validation samples of a recipe, opened once.

    Args:
        recipe: names the shards, the objective, the sequence lengths and the seed of order and masks.

    Attributes:
        train: training shards by source.
        validation: validation shards by source; empty if the recipe never validates.
        phases: the training data by phase.

    Raises:
        DataError: missing, incomplete or too few shards, or shards that do not suit the objective.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._cache = cache_directory(recipe)
        self.train = self._open(TRAIN)
        parts = phases(recipe)
        cut = {
            name: [self._samples(shards, phase, _source_key(name, phase)) for phase in parts]
            for name, shards in self.train.items()
        }
        orders = [
            source_orders(recipe, number, shards, cut[name]) for number, (name, shards) in enumerate(self.train.items())
        ]
        self.phases = tuple(
            PhaseData(
                phase,
                SampleStream(
                    [
                        StreamSource(name, cut[name][at], orders[number][at], recipe.training.seed, shards)
                        for number, (name, shards) in enumerate(self.train.items())
                    ],
                    phase_mixture(recipe, phase),
                ),
                samples_of_sources(recipe, phase, phase.end_step),
            )
            for at, phase in enumerate(parts)
        )
        self.validation: dict[str, ShardSet] = {}
        self._validation_samples: dict[int, Samples] = {}
        if recipe.evaluation.every:
            self.validation = self._open(VALIDATION)
            self._validation_samples = {phase.number: self._joined(phase) for phase in parts}

    @property
    def fingerprint(self) -> str:
        """Equal for equal training data only; a checkpoint remembers it."""
        fingerprints = [shards.fingerprint for shards in self.train.values()]
        if len(fingerprints) == 1:
            return fingerprints[0]
        return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()

    @property
    def epochs(self) -> dict[str, float]:
        """How often the whole run reads each source."""
        total = sum((data.epochs for data in self.phases), np.zeros(len(self.train)))
        return dict(zip(self.train, total.tolist(), strict=True))

    def cache_statistics(self) -> dict[str, CacheStatistics]:
        """What was fetched for this process, by source; empty without sources that lie elsewhere."""
        remote = {name: shards.files for name, shards in self.train.items() if isinstance(shards.files, RemoteFiles)}
        return {name: files.statistics() for name, files in remote.items()}

    def quarantine(self, shards: Collection[tuple[str, str]]) -> None:
        """Train without some shards, given by source and file name; replaces what was said before."""
        for data in self.phases:
            data.stream.quarantine(shards)

    def phase_at(self, step: int) -> PhaseData:
        """The phase that the step after `step` steps belongs to."""
        return self.phases[phase_at(self._recipe, step).number]

    def training(
        self,
        start_step: int,
        dp_rank: int,
        dp_size: int,
        *,
        pin_memory: bool = False,
        handle_broken: BrokenHandler | None = None,
    ) -> Iterator[StepBatch]:
        """This rank's batches from `start_step` to the end of the run; options as in `training_batches`."""
        recipe = self._recipe
        for data in self.phases:
            phase = data.phase
            if start_step >= phase.end_step:
                continue
            yield from training_batches(
                data.stream,
                sizes=phase.sizes,
                start_step=max(start_step - phase.first_step, 0),
                stop_step=phase.end_step - phase.first_step,
                dp_rank=dp_rank,
                dp_size=dp_size,
                num_workers=recipe.data.num_workers,
                prefetch_steps=recipe.data.prefetch_steps,
                first_step=phase.first_step,
                pin_memory=pin_memory,
                handle_broken=handle_broken,
            )

    def validating(self, step: int, dp_rank: int, dp_size: int) -> Iterator[StepBatch]:
        """This rank's part of the validation samples of the phase that step `step` ends, in training-sized batches."""
        return validation_batches(
            self.validation_samples(step),
            batch_size=phase_at(self._recipe, step - 1).sizes.final,
            dp_rank=dp_rank,
            dp_size=dp_size,
            limit=self._recipe.evaluation.samples,
        )

    def validation_samples(self, step: int) -> Samples:
        """The validation samples of the phase that step `step` ends."""
        return self._validation_samples[phase_at(self._recipe, step - 1).number]

    def _open(self, part: str) -> dict[str, ShardSet]:
        data = self._recipe.data
        cache = CacheOptions(
            self._cache / "shards",
            round(1e9 * data.cache.limit_gb),
            retries=data.cache.retries,
            timeout_s=data.cache.timeout_seconds,
        )
        return {
            source.name: self._open_part(f"{source.path.rstrip('/')}/{part}", cache) for source in data.named_sources
        }

    def _open_part(self, location: str, cache: CacheOptions) -> ShardSet:
        """A missing shard ends the run here, or where it is read if the run may go on without it."""
        if self._recipe.data.on_broken == "replace" and not is_remote(location):
            return ShardSet.open(LocalFiles(Path(location)))
        return open_shards(location, cache)

    def _joined(self, phase: Phase) -> Samples:
        parts = [
            self._samples(
                shards, phase, VALIDATION if len(self.validation) == 1 else f"{VALIDATION}/{name}", keep_tail=True
            )
            for name, shards in self.validation.items()
        ]
        return parts[0] if len(parts) == 1 else JoinedSamples(parts)

    def _samples(self, shards: ShardSet, phase: Phase, source: str, *, keep_tail: bool = False) -> ShardSamples:
        objective = self._recipe.objective
        options = ObjectiveOptions(
            kind=objective.kind,
            packing=objective.packing,
            document_attention=objective.document_attention,
            mask_fraction=objective.mask_fraction,
            max_predictions=phase.max_predictions,
            mask_unit=objective.mask_unit,
            max_ngram=objective.max_ngram,
            mask_share=objective.mask_share,
            random_share=objective.random_share,
            copies=objective.copies,
            short_sequence_probability=objective.short_sequence_probability,
        )
        return build_samples(
            shards,
            options,
            phase.sequence_length,
            seed=self._recipe.training.seed,
            source=source,
            keep_tail=keep_tail,
            cache=self._cache / "indexes",
        )


def _source_key(name: str, phase: Phase) -> str:
    """What masks and pairs of a source depend on: another one in every phase."""
    return name if phase.number == 0 else f"{name}/{phase.number}"


def cache_directory(recipe: Recipe) -> Path:
    """Where a recipe keeps on this machine what it can make or fetch again."""
    if recipe.data.cache.directory is not None:
        return Path(recipe.data.cache.directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptm-dist"
