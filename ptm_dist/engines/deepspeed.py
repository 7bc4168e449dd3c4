"""The DeepSpeed engine: ZeRO-0 to 3 over data-parallel ranks, state on the host if asked (arXiv 1910.02054)."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batches import StepBatch
from ptm_dist.engines.deepspeed_config import clips_itself, deepspeed_config, offload_of
from ptm_dist.engines.deepspeed_state import DeepSpeedState
from ptm_dist.engines.deepspeed_swap import finish_gradients, prepare_swapping, remove_swap_folder
from ptm_dist.engines.engine import Accept, EvaluationResult, StepResult
from ptm_dist.engines.losses import NUM_SUMS, count_targets, forward_sums, mean_loss, named_metrics
from ptm_dist.engines.microbatch import MicroBatch, split_batch
from ptm_dist.errors import RecipeError
from ptm_dist.kernels.choice import Choice
from ptm_dist.models import LanguageModel, ModelScore, build_model
from ptm_dist.models.attention import Window
from ptm_dist.models.draws import step_keys
from ptm_dist.models.initialization import fill_initial
from ptm_dist.optim.decay import decay_groups
from ptm_dist.parallel.activation_offload import offload_activations
from ptm_dist.parallel.boxes import Held, boxes_of
from ptm_dist.parallel.mesh import ALONE, RankGroup, ensure_process_group
from ptm_dist.parallel.recompute import apply_recompute, compile_blocks
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import OptimizerSection, Precision, Recipe

_SMALLEST_SCALE = 2.0
"""Loss scale of fp16 at which a gradient that overflows is no matter of the scale."""


class DeepSpeedEngine:
    """Computes the steps of a recipe on this process's share of ZeRO state.

    Args:
        recipe: what is learnt; its weights start from its seed.
        layout: where; all ranks of the default process group take part.
        device: of this process.

    Raises: RecipeError if DeepSpeed is not installed, or does not compute in fp16 on this device.
    """

    def __init__(self, recipe: Recipe, layout: ResolvedLayout, device: torch.device) -> None:
        deepspeed = import_deepspeed(device)
        if recipe.training.precision is Precision.FP16 and not computes_in_fp16():
            raise RecipeError(
                f"training.precision=fp16: DeepSpeed does not compute in it on this {device.type}; use "
                "training.precision=bf16, or another device"
            )
        self.recipe = recipe
        self.layout = layout
        self.device = device
        self.dp_rank, self.dp_size = dist.get_rank(), dist.get_world_size()
        self._data = RankGroup(dist.group.WORLD, self.dp_rank, self.dp_size) if self.dp_size > 1 else ALONE
        self._swap_folder = None
        if "nvme" in offload_of(recipe.deepspeed, layout.offload):
            self._swap_folder = prepare_swapping(recipe, self.dp_rank)
        config = deepspeed_config(recipe, layout, self._swap_folder)
        # ZeRO-3 puts its own in this place, and leaves it there.
        self._linear = F.linear
        model = _build(deepspeed, recipe, layout, config, device)
        self.spec = model.spec
        optimizer = _torch_optimizer(recipe.optimizer, model)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        self._clipping = _WholeClipping(recipe.optimizer.clip_norm) if clips_itself(recipe, layout) else None
        self._update = _Update(optimizer, self._clipping)
        self._state = DeepSpeedState(self.engine, model, recipe.optimizer)
        self._initialize()

    def step(self, batch: StepBatch, learning_rate: float, accept: Accept | None = None) -> StepResult:
        """Forward, backward, clip and update on this rank's slice of one global batch.

        Where gradients overflow in fp16, DeepSpeed lowers the loss scale and leaves the weights as they are; the
        step is then computed again, so that every step updates the weights once. Where they are no numbers for
        another reason it leaves the update out by itself.
        """
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = learning_rate
        while True:
            scale = self._loss_scale()
            sums, counts = self._accumulate(batch)
            loss = mean_loss(sums[::2], counts).item()
            self._update.begin(partial(self._is_accepted, accept, loss, scale))
            self.engine.step()
            if not self._has_overflown() or scale <= _SMALLEST_SCALE or not math.isfinite(loss):
                break
            finish_gradients(self.engine.optimizer)
        metrics = named_metrics(sums.tolist(), counts.tolist(), self.recipe.objective.kind)
        # ZeRO-3 keeps the norm of the step before where the gradient is no number.
        norm = math.inf if self._has_overflown() else self._gradient_norm(scale)
        return StepResult(loss, norm, int(counts[0].item()), metrics, self._update.is_made)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[StepBatch]) -> EvaluationResult:
        """Mean loss over batches; weights and gradients stay as they are."""
        totals = torch.zeros(NUM_SUMS + 2, dtype=torch.float64, device=self.device)
        for batch in batches:
            totals[NUM_SUMS:] += count_targets(batch).to(self.device)
            for micro in self._micro_batches(batch):
                totals[:NUM_SUMS] += torch.stack(self._forward(micro), dim=1).flatten()
        self._data.sum(totals)
        sums, counts = totals[:NUM_SUMS], totals[NUM_SUMS:]
        metrics = named_metrics(sums.tolist(), counts.tolist(), self.recipe.objective.kind)
        return EvaluationResult(mean_loss(sums[::2], counts).item(), int(counts[0].item()), metrics)

    def state(self) -> Mapping[str, Held]:
        """This rank's boxes of float32 weights and optimizer state; writing to them loads."""
        return self._state.boxes()

    def loaded(self, updates: int) -> None:
        """Go on after so many updates, with what was read into :meth:`state`; collective."""
        self._state.written(updates)

    def close(self) -> None:
        """Take DeepSpeed's hooks, buffers and files down; the process group belongs to the caller."""
        self.engine.destroy()
        F.linear = self._linear
        if self._swap_folder is not None:
            remove_swap_folder(self._swap_folder)

    def _initialize(self) -> None:
        """Initial weights, the same bits as with any other engine."""
        for key, held in self._state.boxes().items():
            kind, _, name = key.partition(".")
            if kind == "model":
                for box in boxes_of(held):
                    seed = self.recipe.training.seed
                    fill_initial(name, box.local, box.global_shape, box.offset, self.spec, seed)
        self._state.written(0)

    def _accumulate(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Gradient of the mean loss over the global batch; sums ``[4]`` and counts ``[2]`` as in the native engine."""
        counts = self._data.sum(count_targets(batch).to(self.device))
        sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=self.device)
        # DeepSpeed divides what it sums over ranks by their number.
        factor = self.dp_size * self._missing_scale()
        keys = step_keys(self.spec, self.recipe.training.seed, batch.step, self.device)
        for micro in self._micro_batches(batch):
            losses, hits = self._forward(micro, keys)
            loss = mean_loss(losses, counts.to(losses.dtype))
            self.engine.backward(loss * factor, scale_wrt_gas=False)
            sums += torch.stack([losses.detach(), hits], dim=1).flatten()
        return self._data.sum(sums), counts

    def _forward(self, micro: MicroBatch, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        score = self.engine(
            micro.input_ids,
            micro.segment_ids,
            micro.valid,
            micro.positions,
            micro.documents,
            draws=micro.draws(keys),
            targets=micro.targets,
        )
        return forward_sums(cast(ModelScore, score), micro)

    def _micro_batches(self, batch: StepBatch) -> Iterator[MicroBatch]:
        length = batch.inputs.shape[1]
        count, size = self.layout.micro_batches(batch.global_batch_size, self.recipe.data.sequence_length // length)
        return split_batch(batch, count, size, self.spec, Window.whole(length, self.device))

    def _loss_scale(self) -> float:
        """By which gradients are too large until they are used; 1 but in fp16."""
        if self.recipe.training.precision is not Precision.FP16:
            return 1.0
        return float(self.engine.optimizer.loss_scale)

    def _missing_scale(self) -> float:
        """DeepSpeed's optimizer of ZeRO-0 divides by the loss scale, by which its engine multiplies for ZeRO only."""
        return self._loss_scale() if self.layout.zero_stage == 0 else 1.0

    def _has_overflown(self) -> bool:
        return bool(getattr(self.engine.optimizer, "overflow", False))

    def _is_accepted(self, accept: Accept | None, loss: float, scale: float) -> bool:
        return accept is None or accept(loss, self._gradient_norm(scale))

    def _gradient_norm(self, scale: float) -> float:
        if self._clipping is not None:
            return self._clipping.norm
        return float(self.engine.optimizer._global_grad_norm) / (scale if self.layout.zero_stage == 0 else 1.0)


class _WholeClipping:
    """Clips where every rank has the whole gradient, and keeps its norm, which DeepSpeed does not there."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm
        self.norm = math.nan

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients that the optimizer is about to use."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm or math.inf).item()


class _Update:
    """Stands before the update of torch's optimizer, which DeepSpeed calls for each of its groups in a step.

    An update that is not wanted is not made: DeepSpeed then goes on with the weights as they are.

    Args:
        optimizer: whose `step` it takes the place of.
        clipping: done before, where DeepSpeed does none.

    Attributes:
        is_made: whether the update of the current step was made.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clipping: _WholeClipping | None) -> None:
        self._optimizer = optimizer
        self._clipping = clipping
        self._step = optimizer.step
        self._is_wanted: Callable[[], bool] = lambda: True
        self._answer: bool | None = None
        setattr(optimizer, "step", self)  # noqa: B010  a method is no attribute to mypy

    @property
    def is_made(self) -> bool:
        return self._answer is True

    def begin(self, is_wanted: Callable[[], bool]) -> None:
        """A step begins; `is_wanted` is asked once, when its gradients and their norm are known."""
        self._is_wanted, self._answer = is_wanted, None

    def __call__(self) -> None:
        """The update, if it is wanted."""
        if self._answer is None:
            if self._clipping is not None:
                self._clipping(self._optimizer)
            self._answer = self._is_wanted()
        if self._answer:
            self._step()


def import_deepspeed(device: torch.device) -> Any:
    """The package `deepspeed`, joined to the default process group, which is made for a process that is alone.

    Raises: RecipeError if it is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        deepspeed = import_module("deepspeed")
    except ModuleNotFoundError as error:
        raise RecipeError(f"engine=deepspeed: {error}; install it: pip install 'ptm-dist[deepspeed]'") from None
    # torch 2.13 has new names for the collectives that DeepSpeed calls.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    ensure_process_group(device)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    # A faster all-reduce within a machine, which it would compile first, with a compiler that may not be there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


def computes_in_fp16() -> bool:
    """Whether DeepSpeed takes this device for one with arithmetic in fp16: GPUs, and few CPUs."""
    accelerator = import_module("deepspeed.accelerator")
    return bool(accelerator.get_accelerator().is_fp16_supported())


def _build(
    deepspeed: Any, recipe: Recipe, layout: ResolvedLayout, config: dict[str, Any], device: torch.device
) -> LanguageModel:
    """The model without values; at ZeRO-3 this rank never holds more of it than one module."""
    if layout.zero_stage == 3:
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = build_model(recipe.model)
    else:
        with torch.device("meta"):
            model = build_model(recipe.model)
        model.to_empty(device=device)
        model.tie()
    model.choose(Choice.of(recipe.kernels.model_dump(), device))
    apply_recompute(model, layout.recompute, layout.recompute_every)
    if layout.compile:
        compile_blocks(model)
    if layout.offload_activations:
        offload_activations(model)
    return model


def _torch_optimizer(section: OptimizerSection, model: LanguageModel) -> torch.optim.Optimizer:
    """The update of :mod:`ptm_dist.optim` as a torch optimizer, which DeepSpeed wraps."""
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in decay_groups(_shapes_only(parameters), section.weight_decay)
    ]
    if section.kind == "sgd":
        return torch.optim.SGD(groups, lr=section.learning_rate, momentum=section.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=section.betas, eps=section.eps, fused=True)


def _shapes_only(parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """Empty stand-ins of the whole parameters, of which ZeRO-3 leaves nothing in place."""
    return {
        name: torch.empty(getattr(parameter, "ds_shape", parameter.shape), device="meta")
        for name, parameter in parameters.items()
    }
