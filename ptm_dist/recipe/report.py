"""What a run would be, before anything is started: size, work, memory, and the data it needs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.layout import ResolvedLayout, processes, resolve_layout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.flops import TokenFlops, flops_per_token
from ptm_dist.training.memory import MemoryEstimate, estimate_memory, parameter_shapes


@dataclass(frozen=True)
class DryRunReport:
    """A run in numbers.

    Attributes:
        name: of the run.
        run_dir: where it would write.
        parameters: of the model, tied ones once.
        layout: on how many ranks it is computed, and how.
        steps: optimizer steps.
        samples: read in all steps.
        tokens: read in all steps.
        flops_per_token: of training, recomputation excluded.
        flops: of the whole run, by the same two conventions.
        memory: bytes on the fullest rank, by part.
        data: folder of the token shards.
        tokenizer: folder of the tokenizer.
        distinct_samples: the fewest training samples that suffice within data.max_epochs.
        distinct_tokens: the same in tokens.
    """

    name: str
    run_dir: str
    parameters: int
    layout: ResolvedLayout
    steps: int
    samples: int
    tokens: int
    flops_per_token: TokenFlops
    flops: TokenFlops
    memory: MemoryEstimate
    data: str
    tokenizer: str
    distinct_samples: int
    distinct_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; memory with its total, the layout with its description."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        values["layout"]["description"] = self.layout.describe()
        return values

    def text(self) -> str:
        """For people: a table of plain text."""
        rows = [*self._run_rows(), *self._memory_rows(), *self._data_rows()]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)

    def _run_rows(self) -> list[tuple[str, str]]:
        flops = self.flops
        return [
            ("run", f"{self.name} (would write to {self.run_dir}; nothing is started)"),
            ("parameters", f"{self.parameters:,}"),
            ("layout", f"{self.layout.describe()} on {processes(self.layout.world_size)}"),
            ("steps", f"{self.steps:,}"),
            ("samples", f"{self.samples:,}"),
            ("tokens", f"{self.tokens:,} ({self.tokens / self.parameters:.1f} per parameter)"),
            ("training FLOPs", f"{flops.full:.3g} (attention counted in full), {flops.causal:.3g} (causal)"),
        ]

    def _memory_rows(self) -> list[tuple[str, str]]:
        memory = self.memory
        parts = {
            "weights": memory.weights,
            "gathered weights": memory.whole_weights,
            "gradients": memory.gradients,
            "optimizer state": memory.optimizer,
            "activations": memory.activations,
            "logits": memory.logits,
        }
        return [
            ("memory per rank", f"{_size(memory.total)} (estimate for the fullest rank)"),
            *((f"  {part}", _size(count)) for part, count in parts.items()),
        ]

    def _data_rows(self) -> list[tuple[str, str]]:
        enough = f"at least {self.distinct_samples:,} samples ({self.distinct_tokens:,} tokens)"
        return [
            ("training data", f"{enough} in {self.data}"),
            ("tokenizer", self.tokenizer),
        ]


def dry_run_report(recipe: Recipe, world_size: int) -> DryRunReport:
    """Work out what a run would be; starts nothing, reads no data and allocates no model.

    Args:
        recipe: as loaded.
        world_size: processes that would run it.

    Raises: RecipeError or LayoutError as :func:`ptm_dist.recipe.checks.check_recipe`.
    """
    check_recipe(recipe, world_size, tokenizer_vocab_size=None)
    layout = resolve_layout(recipe.layout, world_size)
    samples = recipe.training.steps * recipe.training.global_batch_size
    tokens = samples * recipe.data.sequence_length
    per_token = flops_per_token(recipe.model, recipe.data.sequence_length)
    distinct = math.ceil(samples / recipe.data.max_epochs)
    return DryRunReport(
        name=recipe.name,
        run_dir=str(recipe.directory),
        parameters=sum(math.prod(shape) for shape in parameter_shapes(recipe).values()),
        layout=layout,
        steps=recipe.training.steps,
        samples=samples,
        tokens=tokens,
        flops_per_token=per_token,
        flops=TokenFlops(full=per_token.full * tokens, causal=per_token.causal * tokens),
        memory=estimate_memory(recipe, layout),
        data=str(recipe.data.path),
        tokenizer=str(recipe.data.tokenizer),
        distinct_samples=distinct,
        distinct_tokens=distinct * recipe.data.sequence_length,
    )


def _size(count: int) -> str:
    """Bytes in the largest binary unit that leaves a number above one."""
    units = ("B", "KiB", "MiB", "GiB")
    power = min(len(units) - 1, max(count.bit_length() - 1, 0) // 10)
    return f"{count / 1024**power:,.1f} {units[power]}"
