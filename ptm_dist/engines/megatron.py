"""Megatron-Core as an engine: its model parts, pipeline schedules and distributed optimizer, our data and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.batches import StepBatch
from ptm_dist.engines.engine import Accept, EvaluationResult, StepResult
from ptm_dist.engines.losses import NUM_SUMS, count_targets, mean_loss, named_metrics, sums_of_logits
from ptm_dist.engines.megatron_config import (
    check_device,
    check_installed,
    data_parallel_config,
    megatron_problems,
    optimizer_config,
    start_groups,
    stop_groups,
    transformer_config,
)
from ptm_dist.engines.microbatch import MicroBatch, split_batch
from ptm_dist.errors import RecipeError
from ptm_dist.models import model_spec, parameter_shapes
from ptm_dist.parallel.boxes import Held
from ptm_dist.parallel.context import window
from ptm_dist.parallel.mesh import RankGroup, ensure_process_group
from ptm_dist.parallel.stages import stage_parts
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Recipe


class MegatronEngine:
    """Computes the steps of a recipe with Megatron-Core on this process's part of a layout.

    Args:
        recipe: what is learnt; its weights start from its seed, with the bits that the native engine starts from.
        layout: where; all ranks of the default process group take part.
        device: of this process.

    Raises:
        RecipeError: where Megatron-Core or CUDA is missing, and for what
            :func:`ptm_dist.engines.megatron_config.megatron_problems` reports.
    """

    def __init__(self, recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> None:
        if problems := list(megatron_problems(recipe, recipe.layout, layout.world_size)):
            raise RecipeError("\n".join(problems))
        check_installed()
        check_device(device)
        ensure_process_group(device)
        self.recipe = recipe
        self.layout = layout
        self.device = device
        self.spec = model_spec(recipe.model)
        start_groups(layout)
        self._groups()
        self._build()
        self.stored.initialize(recipe.training.seed)

    def _groups(self) -> None:
        from megatron.core import parallel_state as groups

        self.dp_rank = groups.get_data_parallel_rank()
        self.dp_size = groups.get_data_parallel_world_size()
        self.tensor = _rank_group(groups.get_tensor_model_parallel_group())
        self._data = _rank_group(groups.get_data_parallel_group())
        self._context = _rank_group(groups.get_context_parallel_group())
        self._pipeline = _rank_group(groups.get_pipeline_model_parallel_group())

    def _build(self) -> None:
        from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
        from megatron.core.optimizer import get_megatron_optimizer

        from ptm_dist.engines.megatron_layers import Visibility
        from ptm_dist.engines.megatron_model import build_chunk, padded_vocabulary
        from ptm_dist.engines.megatron_state import MegatronState

        size, chunks = self._pipeline.size, self.layout.stages_per_rank
        parts = stage_parts(self.spec, size * chunks, split=self.layout.pipeline_split)
        own = parts[self._pipeline.rank :: size]
        self.config = transformer_config(self.spec, self.recipe, self.layout, parts)
        self.config.finalize_model_grads_func = lambda models, targets, **others: finalize_model_grads(models, **others)
        numbers = [None] if len(own) == 1 else range(len(own))
        visibility = Visibility(self.spec.block.causal, self._context, self.layout.context_method)
        stages = [
            build_chunk(self.config, self.spec, part, number, visibility, self.device)
            for number, part in zip(numbers, own, strict=True)
        ]
        sums = data_parallel_config(self.layout)
        self.chunks = [DistributedDataParallel(self.config, sums, stage) for stage in stages]
        self.optimizer = get_megatron_optimizer(
            optimizer_config(self.recipe, self.layout), self.chunks, use_gloo_process_groups=False
        )
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.recipe.optimizer.weight_decay * group["wd_mult"]
        first_layers = [part.first for part in own]
        shapes = parameter_shapes(self.recipe.model)
        self.stored = MegatronState(self.chunks, first_layers, self.optimizer, self.spec, shapes, self.tensor)
        vocab_size = padded_vocabulary(self.spec.embedding.vocab_size, self.tensor.size)
        self._padded = replace(self.spec, embedding=replace(self.spec.embedding, vocab_size=vocab_size))

    def step(self, batch: StepBatch, learning_rate: float, accept: Accept | None = None) -> StepResult:
        """Forward, backward, clip and update on this rank's slice of one global batch."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        counts = self._data.sum(count_targets(batch).to(self.device))
        sums = self._sum_over_ranks(self._run(batch, counts, forward_only=False))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = mean_loss(sums[::2], counts).item()
        norm, is_applied = self._update(loss, accept)
        metrics = named_metrics(sums.tolist(), counts.tolist(), self.recipe.objective.kind)
        return StepResult(loss, norm, int(counts[0].item()), metrics, is_applied)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[StepBatch]) -> EvaluationResult:
        """Mean loss over batches; weights and gradients stay as they are."""
        sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=self.device)
        counts = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            counts += count_targets(batch).to(self.device)
            sums += self._run(batch, counts, forward_only=True)
        self._sum_over_ranks(sums)
        self._data.sum(counts)
        metrics = named_metrics(sums.tolist(), counts.tolist(), self.recipe.objective.kind)
        return EvaluationResult(mean_loss(sums[::2], counts).item(), int(counts[0].item()), metrics)

    def state(self) -> Mapping[str, Held]:
        """This rank's boxes of weights and optimizer state; writing to them loads."""
        return self.stored.boxes()

    def loaded(self, updates: int) -> None:
        """Go on after so many updates, with what was read into the boxes of :meth:`state`."""
        self.stored.refresh(updates)

    def close(self) -> None:
        """Take down Megatron-Core's process groups."""
        stop_groups()

    def _update(self, loss: float, accept: Accept | None) -> tuple[float, bool]:
        """What Megatron-Core's optimizer does in one step, with a question in its middle; the norm and the answer."""
        clip_norm = self.recipe.optimizer.clip_norm
        (mixed,) = self.optimizer.chained_optimizers
        self.optimizer.prepare_grads()
        norm = float(mixed.clip_grad_norm(clip_norm) if clip_norm > 0.0 else mixed.get_grad_norm())
        is_applied = accept is None or accept(loss, norm)
        if is_applied:
            self.optimizer.step_with_ready_grads()
        return norm, is_applied

    def _run(self, batch: StepBatch, counts: Tensor, *, forward_only: bool) -> Tensor:
        """All micro-batches through the pipeline.

        Args:
            batch: this rank's slice.
            counts: what losses are divided by for the gradient.
            forward_only: leave gradients alone.

        Returns: this rank's sums of losses and hits, ``[4]``, float64; 0 where the last stage is elsewhere.
        """
        from megatron.core.pipeline_parallel import get_forward_backward_func

        count, size = self._micro_batches(batch)
        here = window(batch.inputs.shape[1], self._context, self.device)
        micros = list(split_batch(batch, count, size, self.spec, here))
        parts = get_forward_backward_func()(
            forward_step_func=self._forward(counts),
            data_iterator=[iter(micros) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=count,
            seq_length=batch.inputs.shape[1],
            micro_batch_size=size,
            forward_only=forward_only,
        )
        sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=self.device)
        return sums + torch.stack(parts).sum(0) if parts else sums

    def _micro_batches(self, batch: StepBatch) -> tuple[int, int]:
        """Number and size of micro-batches; stages in turn want a multiple of the pipeline's ranks."""
        times_shorter = self.recipe.data.sequence_length // batch.inputs.shape[1]
        count, _ = self.layout.micro_batches(batch.global_batch_size, times_shorter)
        if len(self.chunks) > 1:
            count = -(-count // self._pipeline.size) * self._pipeline.size
        largest_slice = -(-batch.global_batch_size // self.dp_size)
        return count, -(-largest_slice // count)

    def _forward(self, counts: Tensor) -> Callable[[Iterator[MicroBatch], nn.Module], tuple[Any, Any]]:
        """What Megatron-Core's schedules call for each micro-batch and stage: the output, and its loss."""
        from ptm_dist.engines.megatron_model import predict

        def forward(micros: Iterator[MicroBatch], stage: nn.Module) -> tuple[Any, Any]:
            micro = next(micros)

            def loss(output: Any) -> tuple[Tensor, Tensor, Tensor]:
                losses, hits = sums_of_logits(output, micro, self._padded, self.tensor)
                sums = torch.stack([losses.detach(), hits], dim=1).flatten().double()
                return mean_loss(losses, counts.to(losses.dtype)), torch.zeros_like(sums[0]).int(), sums

            return predict(stage, micro, self.spec), loss

        return forward

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        return self._pipeline.sum(self._context.sum(self._data.sum(sums)))


def _rank_group(group: dist.ProcessGroup) -> RankGroup:
    return RankGroup(group, dist.get_rank(group), dist.get_world_size(group))
