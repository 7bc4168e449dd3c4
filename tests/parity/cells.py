"""One cell of the parity table: train unsharded, train on a layout, compare.

The reference is plain single-process PyTorch: the model, which has a parity test of its own against Hugging
Face's, ``cross_entropy`` over all positions, ``clip_grad_norm_`` and ``torch.optim.AdamW`` in a ten-line loop.
Weights start random everywhere, biases and norms included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.batches import StepBatch
from data_pipeline.ramp import slice_of
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.native import NativeEngine
from ptm_dist.models import build_model
from ptm_dist.models.draws import Draws, dropout_keys
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe

GLOBAL_BATCH = 12
SEQUENCE = 8
NUM_HEADS = 4
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Problem:
    """What is learnt: the reference depends on this alone."""

    family: str = "gpt2"
    tied: bool = True
    vocab_size: int = 101
    precision: str = "fp64"
    steps: int = 10
    global_batch: int = GLOBAL_BATCH
    documents: bool = False
    """Rows hold several documents that do not see each other."""
    num_layers: int | None = None
    """None: 2, in ALBERT 4."""
    layer_groups: int | None = None
    """With num_layers, distinct blocks; None: the family's own."""
    dropout: float = 0.0
    """Of hidden states and attention probabilities, in training."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def objective(self) -> str:
        return {"bert": "mlm_nsp", "albert": "mlm_sop", "roberta": "mlm"}.get(self.family, "causal")

    @property
    def model(self) -> dict[str, Any]:
        """The model section; ALBERT's four layers share two blocks behind narrow embeddings."""
        own = {"albert": {"num_layers": 4, "layer_groups": 2, "embedding_size": 20}, "gpt3": {"attention_band": 2}}
        return {
            "family": self.family,
            "vocab_size": self.vocab_size,
            "max_positions": SEQUENCE,
            "hidden_size": 36,
            "num_layers": 2,
            "num_heads": NUM_HEADS,
            "ffn_hidden_size": 50,
            "tie_embeddings": self.tied,
            "dropout": self.dropout,
            **own.get(self.family, {}),
            **({"num_layers": self.num_layers, "layer_groups": self.layer_groups} if self.num_layers else {}),
        }


@dataclass(frozen=True)
class Cell:
    """A problem and where it is computed."""

    problem: Problem
    world_size: int
    layout: dict[str, Any]
    accumulation: int = 1

    def recipe(self) -> Recipe:
        """Micro-batches may be one or two more than asked for, where samples do not divide."""
        sizes = ("tensor_parallel", "context_parallel", "pipeline_parallel")
        dp = self.world_size // math.prod(self.layout.get(key, 1) for key in sizes)
        micro = max(1, self.problem.global_batch // dp // self.accumulation)
        return Recipe.model_validate(
            {
                "name": "parity",
                "model": self.problem.model,
                "objective": {"kind": self.problem.objective, "document_attention": self.problem.documents},
                "data": {"path": "unused", "tokenizer": "unused", "sequence_length": SEQUENCE},
                "optimizer": {"learning_rate": LEARNING_RATE, "clip_norm": 0.5},
                "training": {
                    "steps": self.problem.steps,
                    "global_batch_size": self.problem.global_batch,
                    "precision": self.problem.precision,
                },
                "layout": {"micro_batch_size": micro, **self.layout},
            }
        )

    def engine(self, device: str = "cpu") -> NativeEngine:
        """This process's engine; all ranks of the group take part."""
        recipe = self.recipe()
        return NativeEngine(recipe, resolve_layout(recipe.layout, self.world_size), torch.device(device))


@dataclass
class Trace:
    """What a training run gives: per step losses and norms, the first gradients, the last weights."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    validation: float = float("nan")
    calls: int = 0


@dataclass(frozen=True)
class Errors:
    """Worst deviations from the reference, all relative."""

    loss: float
    norm: float
    gradient: float
    weight: float
    validation: float
    worst_gradient: str
    worst_weight: str

    def worst(self) -> float:
        return max(self.loss, self.norm, self.gradient, self.weight, self.validation)


def global_batch(problem: Problem, step: int) -> StepBatch:
    """A global batch; samples have very different numbers of targets, and unequal lengths where there is padding."""
    generator = torch.Generator().manual_seed(1000 + step)
    size = problem.global_batch
    ids = torch.randint(0, problem.vocab_size, (size, SEQUENCE + 1), generator=generator)
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].clone()
    lengths = torch.full((size,), SEQUENCE)
    segments, pair_labels = torch.zeros_like(inputs), torch.full((size,), IGNORE_INDEX)
    for sample in range(size):
        labels[sample, : sample % (SEQUENCE - 1)] = IGNORE_INDEX
    if problem.objective != "causal":
        lengths = torch.randint(3, SEQUENCE + 1, (size,), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE_INDEX
        labels[torch.arange(SEQUENCE) >= lengths[:, None]] = IGNORE_INDEX
    if problem.objective.startswith("mlm_"):
        segments = (torch.arange(SEQUENCE) >= lengths[:, None] // 2).long()
        pair_labels = torch.randint(0, 2, (size,), generator=generator)
    documents = None
    if problem.documents:
        documents = (torch.rand(inputs.shape, generator=generator) < 0.3).long().cumsum(1)
    return StepBatch(step, 0, size, np.arange(size), inputs, labels, lengths, segments, pair_labels, documents)


def initial_weights(problem: Problem) -> dict[str, Tensor]:
    """Random whole weights by canonical name."""
    model = build_model(Cell(problem, 1, {}).recipe().model)
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).mul(0.2).to(problem.dtype)
        for name, p in model.named_parameters()
    }


def reference_trace(problem: Problem) -> Trace:
    """Plain training in one process."""
    recipe = Cell(problem, 1, {}).recipe()
    model = build_model(recipe.model).to(problem.dtype)
    weights = initial_weights(problem)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    exempt = [p for name, p in model.named_parameters() if p.dim() == 1]
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    trace = Trace()
    for step in range(problem.steps):
        loss = plain_loss(model, global_batch(problem, step), _draws(problem, recipe, step))
        loss.backward()
        if step == 0:
            trace.gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        trace.norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        trace.losses.append(loss.item())
    trace.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        trace.validation = plain_loss(model, global_batch(problem, problem.steps)).item()
    return trace


def _draws(problem: Problem, recipe: Recipe, step: int) -> Draws | None:
    """Masks of a whole batch at once: those of Philox's published words, which test_dropout.py compares."""
    if not problem.dropout:
        return None
    keys = dropout_keys(recipe.training.seed, step, recipe.model.num_layers)
    return Draws(keys, torch.arange(problem.global_batch))


def plain_loss(model: nn.Module, batch: StepBatch, draws: Draws | None = None) -> Tensor:
    """Mean over tokens plus mean over pairs, logits computed at every position."""
    valid = torch.arange(SEQUENCE) < batch.lengths[:, None]
    segments = batch.segments if model.spec.embedding.segments > 1 else None
    if batch.documents is not None:
        logits = torch.cat(
            [logits_of_documents(model, *row) for row in zip(batch.inputs, batch.documents, strict=True)]
        )
        return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    output = model(batch.inputs, segments, valid, draws=draws)
    loss = F.cross_entropy(output.tokens.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    return loss if output.pairs is None else loss + F.cross_entropy(output.pairs, batch.pair_labels)


def logits_of_documents(model: nn.Module, row: Tensor, documents: Tensor) -> Tensor:
    """Logits of a row of which every document is computed by itself, ``[seq, vocab]``."""
    _, counts = documents.unique_consecutive(return_counts=True)
    return torch.cat([model(text[None]).tokens[0] for text in row.split(counts.tolist())])


def gather(shards: Mapping[str, LocalShard]) -> dict[str, Tensor]:
    """Whole tensors from every rank's boxes; fails where an element has no owner or two different values."""
    boxes: list[Any] = [None] * dist.get_world_size()
    mine = {name: (shard.global_shape, shard.offset, shard.local.cpu()) for name, shard in shards.items()}
    dist.all_gather_object(boxes, mine)
    whole: dict[str, Tensor] = {}
    for rank_boxes in boxes:
        for name, (global_shape, offset, local) in rank_boxes.items():
            full = whole.setdefault(name, torch.full(global_shape, torch.nan, dtype=local.dtype))
            target = LocalShard(local, global_shape, offset).cut(full)
            known = ~target.isnan()
            assert torch.equal(target[known], local[known]), f"ranks disagree about {name}"
            target.copy_(local)
    for name, full in whole.items():
        assert not full.isnan().any(), f"no rank holds all of {name}"
    return whole


def slice_batch(problem: Problem, step: int, engine: NativeEngine) -> StepBatch:
    """This rank's part of a global batch."""
    whole = global_batch(problem, step)
    begin, end = slice_of(problem.global_batch, engine.dp_rank, engine.dp_size)
    rows = ["sample_ids", "inputs", "labels", "lengths", "segments", "pair_labels"]
    rows += ["documents"] if problem.documents else []
    return replace(whole, first_sample=begin, **{name: getattr(whole, name)[begin:end] for name in rows})


def sharded_trace(cell: Cell, device: str = "cpu") -> Trace:
    """The same training on this group of processes."""
    engine = cell.engine(device)
    weights = initial_weights(cell.problem)
    for name, shard in engine.model.shards().items():
        shard.local.copy_(shard.cut(weights[name]))
    engine.model.changed()
    trace = Trace()
    engine.accumulate(slice_batch(cell.problem, 0, engine))
    boxes = engine.model.shards()
    trace.gradients = gather(
        {
            name: LocalShard(gradient, boxes[name].global_shape, boxes[name].offset)
            for name, gradient in engine.model.gradients().items()
        }
    )
    engine.model.zero_gradients()
    for step in range(cell.problem.steps):
        with CallCount() as count:
            result = engine.step(slice_batch(cell.problem, step, engine), LEARNING_RATE)
        trace.calls = count.calls
        trace.losses.append(result.loss)
        trace.norms.append(result.grad_norm)
    trace.validation = engine.evaluate([slice_batch(cell.problem, cell.problem.steps, engine)]).loss
    trace.weights = gather(engine.model.shards())
    engine.close()
    return trace


def compare(ours: Trace, reference: Trace) -> Errors:
    """Worst relative deviations."""
    gradients = {name: _relative(ours.gradients[name], reference.gradients[name]) for name in reference.gradients}
    weights = {
        name: _relative(_without_key_bias(name, ours.weights[name]), _without_key_bias(name, reference.weights[name]))
        for name in reference.weights
    }
    worst_gradient = max(gradients, key=gradients.__getitem__)
    worst_weight = max(weights, key=weights.__getitem__)
    return Errors(
        loss=_worst(ours.losses, reference.losses),
        norm=_worst(ours.norms, reference.norms),
        gradient=gradients[worst_gradient],
        weight=weights[worst_weight],
        validation=_worst([ours.validation], [reference.validation]),
        worst_gradient=worst_gradient,
        worst_weight=worst_weight,
    )


def _worst(ours: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


def _relative(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


def _without_key_bias(name: str, weight: Tensor) -> Tensor:
    """Softmax does not see the key bias: its true gradient is zero; Adam makes steps of the noise."""
    if not name.endswith("attention.qkv.bias"):
        return weight
    return weight.view(NUM_HEADS, 3, -1)[:, [0, 2]]


class CallCount(TorchDispatchMode):
    """Counts calls of collectives and messages."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.namespace == "c10d"
        return func(*args, **(kwargs or {}))


def run_cells(cells: list[Cell], references: str, device: str = "cpu") -> list[tuple[dict[str, Any], int]]:
    """Run cells one after another in one group of processes: rank 0's comparison on every rank, and calls of a step."""
    rows = []
    for cell in cells:
        reference = torch.load(Path(references) / reference_name(cell.problem), weights_only=False)
        trace = sharded_trace(cell, device)
        rows.append((asdict(compare(trace, reference)), trace.calls))
    return rows


def reference_name(problem: Problem) -> str:
    return "-".join(str(value) for value in asdict(problem).values())
