"""How much a model of the BERT family has learnt, beside what needs no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptm_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class MaskedFigures:
    """Accuracies on the validation samples.

    Attributes:
        mlm_accuracy: share of the masked tokens that are guessed right.
        unigram_accuracy: the same for one who always answers with the commonest token of the training data.
        pair_name: nsp or sop; None for a model without pairs.
        pair_accuracy: share of the pairs that are judged right; None without.
        pairs: how many there are.
        chance: probability that tossing a coin judges as many right; None without.
    """

    mlm_accuracy: float
    unigram_accuracy: float
    pair_name: str | None
    pair_accuracy: float | None
    pairs: int
    chance: float | None

    @classmethod
    def of(cls, recipe: Recipe) -> MaskedFigures:
        """From the last validation of a run and its data."""
        from ptm_dist.downstream.baselines import chance_tail, commonest_token, unigram_accuracy
        from ptm_dist.training.data import RecipeData
        from ptm_dist.training.metrics import read_rows
        from ptm_dist.training.run_directory import RunDirectory

        rows = read_rows(RunDirectory(recipe.directory).metrics)
        row = [row for row in rows if row["kind"] == "validation"][-1]
        data = RecipeData(recipe)
        samples = data.validation_samples(row["step"])
        limit = recipe.evaluation.samples
        unigram = unigram_accuracy(commonest_token(*data.train.values()), samples, limit)
        name = next((name for name in ("nsp", "sop") if f"{name}_accuracy" in row), None)
        if name is None:
            return cls(row["mlm_accuracy"], unigram, None, None, 0, None)
        pairs = len(samples) if limit is None else min(limit, len(samples))
        accuracy = row[f"{name}_accuracy"]
        return cls(row["mlm_accuracy"], unigram, name, accuracy, pairs, chance_tail(round(accuracy * pairs), pairs))

    def text(self) -> str:
        """For people, one line each."""
        lines = [
            f"MLM accuracy on validation text {self.mlm_accuracy:.1%}; always the commonest token: "
            f"{self.unigram_accuracy:.1%}"
        ]
        if self.pair_name is not None:
            lines.append(
                f"{self.pair_name.upper()} accuracy {self.pair_accuracy:.1%} of {self.pairs} pairs; a coin gets as "
                f"many with a probability of {self.chance:.1g}"
            )
        return "\n".join(lines)
