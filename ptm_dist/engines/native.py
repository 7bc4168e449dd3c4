"""The native engine: PyTorch alone, every layout."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.batches import StepBatch
from ptm_dist.engines.engine import Accept, EvaluationResult, StepResult
from ptm_dist.engines.losses import NUM_SUMS, count_targets, mean_loss, named_metrics
from ptm_dist.engines.microbatch import MicroBatch, split_batch
from ptm_dist.engines.passes import Passes
from ptm_dist.kernels.attention_order import attention_order
from ptm_dist.kernels.choice import Choice
from ptm_dist.models import build_model
from ptm_dist.models.draws import step_keys
from ptm_dist.optim.build import build_optimizer
from ptm_dist.optim.clipping import clip_divisor, global_norm
from ptm_dist.parallel.mesh import build_mesh, ensure_process_group
from ptm_dist.parallel.parallelize import Numbers, ParallelModel, plan_stages
from ptm_dist.parallel.pipeline import Pipeline
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.parallel.zigzag import window as context_window
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Precision, Recipe

_NUMBERS = {
    Precision.FP32: Numbers(torch.float32, None),
    Precision.FP64: Numbers(torch.float64, None),
    Precision.BF16: Numbers(torch.float32, torch.bfloat16),
}


class _Gradient(NamedTuple):
    """A step before its update.

    Attributes:
        gradients: of this rank's shards.
        norm: of the whole gradient.
        figures: what :meth:`NativeEngine.compute` gives.
    """

    gradients: dict[str, Tensor]
    norm: Tensor
    figures: Tensor


class NativeEngine:
    """Computes the steps of a recipe on this process's part of a layout.

    Args:
        recipe: what is learnt; its weights start from its seed.
        layout: where; all ranks of the default process group take part.
        device: of this process.
    """

    def __init__(self, recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> None:
        numbers = _NUMBERS[recipe.training.precision]
        if layout.offload == "parameters":
            ensure_process_group(device)
        self.recipe = recipe
        self.layout = layout
        self.device = device
        self.mesh = build_mesh(layout, device)
        self.dp_rank, self.dp_size = self.mesh.data.rank, self.mesh.data.size
        plan = plan_stages(recipe.model, layout)
        self.hidden_dtype = numbers.compute or numbers.master
        choice = Choice.of(recipe.kernels.model_dump(), device)
        self.model = ParallelModel(partial(build_model, recipe.model), plan, layout, self.mesh, numbers, choice)
        self.pipeline = Pipeline(self.model.stages, plan.rank_of, layout, self.mesh, device)
        self._materialize()
        head_size = self.model.spec.block.head_size
        self.optimizer = build_optimizer(
            recipe.optimizer,
            self.model.shards,
            self.model.owners,
            self.mesh,
            head_size,
            on_host=layout.offload == "optimizer",
            choice=choice,
        )

    def step(self, batch: StepBatch, learning_rate: float, accept: Accept | None = None) -> StepResult:
        """Forward, backward, clip and update on this rank's slice of one global batch.

        With `accept` the host waits for the loss before the update is put in line, not behind it.
        """
        if accept is None:
            (loss, norm, *rest), is_applied = self.compute(batch, learning_rate).tolist(), True
        else:
            step = self._gradient(batch)
            loss, norm, *rest = step.figures.tolist()
            is_applied = accept(loss, norm)
            if is_applied:
                self._update(step, learning_rate)
            self.model.zero_gradients()
        metrics = named_metrics(rest[2:], rest[:2], self.recipe.objective.kind)
        return StepResult(loss, norm, int(rest[0]), metrics, is_applied)

    def compute(self, batch: StepBatch, learning_rate: float) -> Tensor:
        """A step without a wait for the device.

        Returns: loss and norm, then counts and sums as :meth:`accumulate` gives them, ``[8]``, float64.
        """
        step = self._gradient(batch)
        self._update(step, learning_rate)
        self.model.zero_gradients()
        return step.figures

    def accumulate(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Gradient of the mean loss over the global batch, left in the model.

        Returns:
            Sums over the global batch (token losses, token hits, pair losses, pair hits), ``[4]``, and the numbers
            of token and pair targets, ``[2]``, float64, the same on every rank.
        """
        counts = self.mesh.data.sum(count_targets(batch).to(self.device))
        passes = self._passes(batch, step_keys(self.model.spec, self.recipe.training.seed, batch.step, self.device))

        def loss_of(losses: Tensor) -> Tensor:
            return mean_loss(losses, counts.to(losses.dtype))

        with attention_order(self.device):
            self.pipeline.train(len(passes.micro_batches), passes.like, partial(passes.forward, loss_of=loss_of))
        return self.mesh.losses.sum(passes.sums), counts

    @torch.no_grad()
    def evaluate(self, batches: Iterable[StepBatch]) -> EvaluationResult:
        """Mean loss over batches; weights and gradients stay as they are."""
        totals = torch.zeros(NUM_SUMS + 2, dtype=torch.float64, device=self.device)
        for batch in batches:
            totals[NUM_SUMS:] += count_targets(batch).to(self.device)
            passes = self._passes(batch)
            forward = partial(passes.forward, loss_of=torch.sum)
            with attention_order(self.device):
                self.pipeline.evaluate(len(passes.micro_batches), passes.like, forward)
            totals[:NUM_SUMS] += passes.sums
        self.model.release()
        sums = self.mesh.losses.sum(totals[:NUM_SUMS])
        counts = self.mesh.data.sum(totals[NUM_SUMS:])
        metrics = named_metrics(sums.tolist(), counts.tolist(), self.recipe.objective.kind)
        return EvaluationResult(mean_loss(sums[::2], counts).item(), int(counts[0].item()), metrics)

    def state(self) -> dict[str, LocalShard]:
        """This rank's boxes of weights and optimizer state; writing to them loads."""
        state = {}
        for name, shard in self.model.shards().items():
            state[f"model.{name}"] = shard
            for slot, tensors in self.optimizer.slots().items():
                state[f"optimizer.{name}.{slot}"] = LocalShard(tensors[name], shard.global_shape, shard.offset)
        return state

    def loaded(self, updates: int) -> None:
        """Go on after so many updates, with what was read into :meth:`state`."""
        self.optimizer.steps_done = updates
        self.model.changed()

    def close(self) -> None:
        """Take down this engine's process groups; the default one belongs to the caller."""
        self.mesh.close()

    def _gradient(self, batch: StepBatch) -> _Gradient:
        sums, counts = self.accumulate(batch)
        gradients = self.model.gradients()
        norm = global_norm(gradients, self.model.owners, self.model.counted, self.mesh)
        loss = mean_loss(sums[::2], counts)
        return _Gradient(gradients, norm, torch.cat([torch.stack([loss, norm.double()]), counts, sums]))

    def _update(self, step: _Gradient, learning_rate: float) -> None:
        divisor = clip_divisor(step.norm, self.recipe.optimizer.clip_norm)
        self.optimizer.step(step.gradients, learning_rate, divisor)
        self.model.changed()

    def _materialize(self) -> None:
        self.model.materialize(torch.device("cpu") if self.layout.offload == "parameters" else self.device)
        self.model.initialize(self.recipe.training.seed)

    def _passes(self, batch: StepBatch, keys: Tensor | None = None) -> Passes:
        return Passes(self.model, self._micro_batches(batch), self.hidden_dtype, self.device, keys)

    def _micro_batches(self, batch: StepBatch) -> list[MicroBatch]:
        times_shorter = self.recipe.data.sequence_length // batch.inputs.shape[1]
        count, size = self.layout.micro_batches(batch.global_batch_size, times_shorter)
        length = batch.inputs.shape[1]
        window = context_window(length, self.mesh.context, self.device)
        return list(split_batch(batch, count, size, self.model.spec, window, packs=self._packs))

    @property
    def _packs(self) -> bool:
        """Whether blocks may get any number of positions: stages exchange equal shapes, and so does a compiler ask."""
        layout = self.layout
        is_whole = layout.pipeline_parallel == layout.context_parallel == 1 and not layout.sequence_parallel
        return is_whole and not layout.compile
