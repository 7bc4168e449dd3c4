"""What a run would be, before anything is started: size, work, memory, and the data it needs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ptm_dist.accounting.cost import Exchange, RankCost, SimulatedCost, StepCost, simulated_cost, step_cost
from ptm_dist.models import parameter_shapes
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.host_memory import HostMemory, host_memory
from ptm_dist.recipe.layout import ResolvedLayout, processes, resolve_layout
from ptm_dist.recipe.phase_report import PhaseReport, phase_report
from ptm_dist.recipe.phases import phases
from ptm_dist.recipe.schema import ObjectiveSection, Recipe
from ptm_dist.training.flops import TokenFlops, flops_per_sample
from ptm_dist.training.memory import MemoryEstimate

_OBJECTIVES = {
    "causal": "the next token",
    "mlm": "masked tokens",
    "mlm_nsp": "masked tokens and next sentences",
    "mlm_sop": "masked tokens and the order of sentences",
}


@dataclass(frozen=True)
class DryRunReport:
    """A run in numbers.

    Attributes:
        name: of the run.
        run_dir: where it would write.
        family: of the model.
        objective: what is predicted, by name.
        optimizer: the update rule, by name.
        parameters: of the model, tied ones once.
        layout: on how many ranks it is computed, and how.
        steps: optimizer steps.
        samples: read in all steps.
        tokens: read in all steps, padding included.
        ramp_samples: samples over which the batch size grows at the start; 0 without a ramp.
        phases: the parts of the run, in order; one where all samples have the same length.
        flops_per_token: of training in the last phase, recomputation excluded.
        flops: of the whole run, by the same two conventions.
        memory: bytes on the fullest rank, by part, at their most.
        host: host memory of one rank for checkpoints and snapshots.
        cost: of one step, for each pipeline rank.
        simulated: the same of one rank on fake tensors, where that was asked for.
        data: folder of the token shards.
        tokenizer: folder of the tokenizer.
        tokenizer_roles: special ids that the objective needs of it.
        needs_sentences: whether the objective needs token shards that know their sentences.
        distinct_tokens: the fewest training tokens that suffice within data.max_epochs, special ids and padding
            included.
        distinct_samples: the same in samples of the last phase.
    """

    name: str
    run_dir: str
    family: str
    objective: str
    optimizer: str
    parameters: int
    layout: ResolvedLayout
    steps: int
    samples: int
    tokens: int
    ramp_samples: int
    phases: tuple[PhaseReport, ...]
    flops_per_token: TokenFlops
    flops: TokenFlops
    memory: MemoryEstimate
    host: HostMemory
    cost: StepCost
    simulated: SimulatedCost | None
    data: str
    tokenizer: str
    tokenizer_roles: tuple[str, ...]
    needs_sentences: bool
    distinct_samples: int
    distinct_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; memory with totals, the layout with its description."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        values["host"]["total"] = self.host.total
        for rank, cost in zip(values["cost"]["ranks"], self.cost.ranks, strict=True):
            rank["memory"]["total"] = cost.memory.total
        values["layout"]["description"] = self.layout.describe()
        return values

    def text(self) -> str:
        """For people: a table of plain text."""
        rows = [*self._run_rows(), *self._step_rows(), *self._memory_rows(), *self._cost_rows(), *self._data_rows()]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)

    def _run_rows(self) -> list[tuple[str, str]]:
        return [
            ("run", f"{self.name} (would write to {self.run_dir}; nothing is started)"),
            ("model", self.family),
            ("parameters", f"{self.parameters:,}"),
            ("objective", f"{self.objective}: {_OBJECTIVES[self.objective]}{self._masked()}"),
            ("optimizer", self.optimizer),
            ("layout", f"{self.layout.describe()} on {processes(self.layout.world_size)}"),
        ]

    def _step_rows(self) -> list[tuple[str, str]]:
        return [
            ("steps", f"{self.steps:,}"),
            *([("phases", self._phases())] if len(self.phases) > 1 else []),
            ("batch size", self._batch_sizes()),
            ("samples", f"{self.samples:,}"),
            ("tokens", f"{self.tokens:,} ({self.tokens / self.parameters:.1f} per parameter)"),
            ("training FLOPs", self._flops()),
        ]

    def _tokenizer_ids(self) -> str:
        *first, last = self.tokenizer_roles
        return f"ids for {', '.join(first)} and {last}" if first else f"an id for {last}"

    def _masked(self) -> str:
        if self.objective == "causal":
            return ""
        counts = [f"{phase.predictions} of {phase.sequence_length}" for phase in self.phases]
        return f" (at most {', then '.join(counts)} tokens of a sample)"

    def _phases(self) -> str:
        *earlier, last = self.phases
        parts = [f"{phase.sequence_length} tokens to step {phase.end_step:,}" for phase in earlier]
        return ", then ".join([*parts, str(last.sequence_length)])

    def _batch_sizes(self) -> str:
        sizes = [f"{phase.batch_size:,}" for phase in self.phases]
        text = f"{sizes[0] if len(set(sizes)) == 1 else ', then '.join(sizes)} samples"
        if not self.ramp_samples:
            return text
        return f"{text}; grows from {self.phases[0].first_batch_size:,} over the first {self.ramp_samples:,}"

    def _flops(self) -> str:
        if self.flops.full == self.flops.causal:
            return f"{self.flops.full:.3g}"
        return f"{self.flops.full:.3g} (attention counted in full), {self.flops.causal:.3g} (causal)"

    def _memory_rows(self) -> list[tuple[str, str]]:
        memory = self.memory
        parts = {
            "weights": memory.weights,
            "gathered weights": memory.whole_weights,
            "gradients": memory.gradients,
            "optimizer state": memory.optimizer,
            "activations": memory.activations,
            "logits": memory.logits,
            "within a layer": memory.working,
            "messages": memory.messages,
            "offloaded": memory.host,
        }
        return [
            ("memory per rank", f"{_size(memory.total)} (estimate for the fullest rank)"),
            *((f"  {part}", _size(count)) for part, count in parts.items() if count),
            *self._host_rows(),
        ]

    def _host_rows(self) -> list[tuple[str, str]]:
        host = self.host
        parts = {
            "written from": (host.staging, "while a checkpoint is written beside the steps"),
            "snapshots": (host.snapshots, "two in turn"),
            "of another node": (host.received, "two in turn, if there are several nodes"),
        }
        if not host.total:
            return []
        return [
            ("host memory", f"about {_size(host.total)} of each rank, for copies of its share of the state"),
            *((f"  {part}", f"{_size(count)}, {why}") for part, (count, why) in parts.items() if count),
        ]

    def _cost_rows(self) -> list[tuple[str, str]]:
        cost = self.cost
        idle = f", pipeline idle {cost.bubble:.1%} of the time" if len(cost.ranks) > 1 else ""
        rows = [("micro-batches", f"{cost.micro_batches:,} a step on each rank{idle}")]
        for rank in cost.ranks:
            rows += [(f"pipeline rank {rank.pipeline_rank}", _holdings(rank))] if len(cost.ranks) > 1 else []
            rows += [(f"  {purpose}", text) for purpose, text in _exchanges(rank.exchanges).items()]
        return [*rows, *self._simulated_rows()]

    def _simulated_rows(self) -> list[tuple[str, str]]:
        if self.simulated is None:
            return []
        found = self.simulated
        layers = " and ".join(map(str, found.layers))
        how = f"{found.micro_batches:,} micro-batches, {layers} layers a stage"
        if len(found.layers) > 1:
            how += ", extrapolated"
        return [
            ("simulated", f"rank {found.rank:,}, {how}; by formula in brackets"),
            ("  memory", f"{_size(found.peak)} ({_size(found.estimated_peak)})"),
            ("  collectives", f"{found.calls:,} calls ({found.estimated_calls:,})"),
            ("  their tensors", f"{_size(found.bytes)} ({_size(found.estimated_bytes)})"),
        ]

    def _data_rows(self) -> list[tuple[str, str]]:
        length = self.phases[-1].sequence_length
        enough = f"{self.distinct_samples:,} samples of {length} ({self.distinct_tokens:,} tokens)"
        sentences = ", with sentences" if self.needs_sentences else ""
        return [
            ("training data", f"at least {enough} in {self.data}{sentences}"),
            ("tokenizer", f"{self.tokenizer}, with {self._tokenizer_ids()}"),
        ]


def dry_run_report(recipe: Recipe, world_size: int, *, simulates: bool = False) -> DryRunReport:
    """Work out what a run would be; starts nothing, reads no data and allocates no model.

    Args:
        recipe: as loaded.
        world_size: processes that would run it.
        simulates: one rank on fake tensors too, in a process of its own.

    Raises: RecipeError or LayoutError as :func:`ptm_dist.recipe.checks.check_recipe`.
    """
    check_recipe(recipe, world_size, tokenizer_vocab_size=None)
    layout = resolve_layout(recipe.layout, world_size)
    parts = tuple(phase_report(recipe, phase) for phase in phases(recipe))
    tokens = sum(part.tokens for part in parts)
    cost = step_cost(recipe, layout)
    distinct = math.ceil(tokens / recipe.data.max_epochs / parts[-1].sequence_length)
    return DryRunReport(
        name=recipe.name,
        run_dir=str(recipe.directory),
        family=recipe.model.family.value,
        objective=recipe.objective.kind,
        optimizer=recipe.optimizer.kind,
        parameters=sum(math.prod(shape) for shape in parameter_shapes(recipe.model).values()),
        layout=layout,
        steps=recipe.training.steps,
        samples=sum(part.samples for part in parts),
        tokens=tokens,
        ramp_samples=recipe.training.batch_ramp.samples if recipe.training.batch_ramp else 0,
        phases=parts,
        flops_per_token=parts[-1].flops_per_token,
        flops=_run_flops(recipe, parts),
        memory=max((rank.memory for rank in cost.ranks), key=lambda memory: memory.total),
        host=host_memory(recipe, layout, cost.ranks),
        cost=cost,
        simulated=simulated_cost(recipe, layout) if simulates else None,
        data=", ".join(source.path for source in recipe.data.named_sources),
        tokenizer=str(recipe.data.tokenizer),
        tokenizer_roles=_tokenizer_roles(recipe.objective),
        needs_sentences=recipe.objective.kind in {"mlm_nsp", "mlm_sop"},
        distinct_samples=distinct,
        distinct_tokens=distinct * parts[-1].sequence_length,
    )


def _holdings(rank: RankCost) -> str:
    layers = ", ".join(f"{first}-{end - 1}" if end - first > 1 else str(first) for first, end in rank.layers)
    return f"layers {layers}: {rank.parameters:,} parameters, {_size(rank.memory.total)}"


def _exchanges(exchanges: tuple[Exchange, ...]) -> dict[str, str]:
    """By purpose, each kind of collective with calls and bytes of a step."""
    texts: dict[str, list[str]] = {}
    for each in exchanges:
        calls = f"{each.calls:,} {'call' if each.calls == 1 else 'calls'}"
        texts.setdefault(each.purpose, []).append(f"{each.kind} {calls}, {_size(each.bytes)}")
    return {purpose: "; ".join(kinds) for purpose, kinds in texts.items()}


def _run_flops(recipe: Recipe, parts: tuple[PhaseReport, ...]) -> TokenFlops:
    by_part = [(part.samples, flops_per_sample(recipe, part.sequence_length)) for part in parts]
    return TokenFlops(
        full=sum(samples * flops.full for samples, flops in by_part),
        causal=sum(samples * flops.causal for samples, flops in by_part),
    )


def _tokenizer_roles(objective: ObjectiveSection) -> tuple[str, ...]:
    """Special ids that the samples of an objective are made with."""
    return ("end_of_document",) if objective.kind == "causal" else ("pad", "classify", "separator", "mask")


def _size(count: int) -> str:
    """Bytes in the largest binary unit that leaves a number above one."""
    units = ("B", "KiB", "MiB", "GiB")
    power = min(len(units) - 1, max(count.bit_length() - 1, 0) // 10)
    return f"{count / 1024**power:,.1f} {units[power]}"
