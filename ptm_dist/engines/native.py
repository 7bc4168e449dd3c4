"""The native engine: PyTorch alone, every layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.loader import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.engine import EvaluationResult, StepResult
from ptm_dist.models import build_model, model_spec
from ptm_dist.optim.adamw import AdamW
from ptm_dist.optim.clipping import clip, global_norm
from ptm_dist.parallel.loss import vocab_parallel_cross_entropy
from ptm_dist.parallel.mesh import build_mesh, ensure_process_group
from ptm_dist.parallel.parallelize import Numbers, ParallelModel
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Precision, Recipe

_NUMBERS = {
    Precision.FP32: Numbers(torch.float32, None),
    Precision.FP64: Numbers(torch.float64, None),
    Precision.BF16: Numbers(torch.float32, torch.bfloat16),
}


class NativeEngine:
    """Computes the steps of a recipe on this process's part of a layout.

    Args:
        recipe: what is learnt; its weights start from its seed.
        layout: where; all ranks of the default process group take part.
        device: of this process.
    """

    def __init__(self, recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> None:
        numbers = _NUMBERS[recipe.training.precision]
        if numbers.compute is not None:
            ensure_process_group(device)
        self.device = device
        self.mesh = build_mesh(layout, device)
        self.dp_rank, self.dp_size = self.mesh.data.rank, self.mesh.data.size
        self.vocab_size = recipe.model.vocab_size
        self.clip_norm = recipe.optimizer.clip_norm
        self.micro_batches, self.micro_batch_size = layout.micro_batches(recipe.training.global_batch_size)
        with torch.device("meta"):
            model = build_model(recipe.model)
        self.model = ParallelModel(model, model_spec(recipe.model), layout, self.mesh, numbers, device)
        self.model.initialize(recipe.training.seed)
        self.optimizer = AdamW(
            lambda: {name: shard.local for name, shard in self.model.shards().items()},
            betas=recipe.optimizer.betas,
            eps=recipe.optimizer.eps,
            weight_decay=recipe.optimizer.weight_decay,
        )

    def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """Forward, backward, clip and update on this rank's slice of one global batch."""
        loss, targets = self.accumulate(batch)
        gradients = self.model.gradients()
        norm = global_norm(gradients, self.model.owners, self.mesh)
        clip(gradients, norm, self.clip_norm)
        self.optimizer.step(gradients, learning_rate)
        self.model.zero_gradients()
        # One wait for the device, after everything was given to it.
        loss_value, norm_value, target_count = torch.stack([loss, norm.double(), targets.double()]).tolist()
        return StepResult(loss_value, norm_value, int(target_count))

    def accumulate(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Gradient of the mean loss over the global batch, left in the model.

        Returns:
            That loss and the global number of targets, scalars, the same on every rank.
        """
        targets = self._count_targets(batch)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for index, (inputs, labels) in enumerate(self._split(batch)):
            self.model.begin_micro_batch(last=index == self.micro_batches - 1)
            share = self._losses(inputs, labels).sum() / targets
            share.backward()
            loss += share.detach()
        return self.mesh.data.sum(loss), targets

    @torch.no_grad()
    def evaluate(self, batches: Iterable[StepBatch]) -> EvaluationResult:
        """Mean loss over batches of at most the global batch size; weights and gradients stay as they are."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            for inputs, labels in self._split(batch):
                totals[0] += self._losses(inputs, labels).sum()
                totals[1] += (labels != IGNORE_INDEX).sum()
        self.model.release()
        loss, targets = self.mesh.data.sum(totals).tolist()
        return EvaluationResult(loss / targets, int(targets))

    def state(self) -> dict[str, LocalShard]:
        """This rank's boxes of weights and moments; writing to them loads."""
        state = {}
        for name, shard in self.model.shards().items():
            state[f"model.{name}"] = shard
            moments = {"exp_avg": self.optimizer.exp_avg, "exp_avg_sq": self.optimizer.exp_avg_sq}
            for moment, tensors in moments.items():
                state[f"optimizer.{name}.{moment}"] = LocalShard(tensors[name], shard.global_shape, shard.offset)
        return state

    def loaded(self, steps_done: int) -> None:
        """Go on after `steps_done` optimizer steps, with what was read into :meth:`state`."""
        self.optimizer.steps_done = steps_done

    def close(self) -> None:
        """Nothing outlives the process group, which belongs to the caller."""

    def _count_targets(self, batch: StepBatch) -> Tensor:
        local = (batch.labels != IGNORE_INDEX).sum().to(self.device)
        return self.mesh.data.sum(local)

    def _losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = self.model.module(inputs)
        return vocab_parallel_cross_entropy(logits.flatten(0, 1), labels.flatten(), self.vocab_size, self.mesh.tensor)

    def _split(self, batch: StepBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of equal shape; a rank with fewer samples fills up with samples without targets."""
        missing = self.micro_batches * self.micro_batch_size - len(batch.inputs)
        inputs = F.pad(batch.inputs, (0, 0, 0, missing)).to(self.device, non_blocking=True)
        labels = F.pad(batch.labels, (0, 0, 0, missing), value=IGNORE_INDEX).to(self.device, non_blocking=True)
        return zip(inputs.split(self.micro_batch_size), labels.split(self.micro_batch_size), strict=True)
