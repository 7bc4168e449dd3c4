"""One rank of any world on this machine: a fake process group, fake tensors, one step of the native engine.

Nothing is computed and nothing is allocated, yet every operation takes place, with its shapes. PyTorch keeps fake
process groups and what they need in globals: a simulation has a process to itself (:func:`simulate`).
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from data_pipeline.batches import StepBatch
from data_pipeline.ramp import slice_of
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.accounting.watch import Observed, observe
from ptm_dist.engines.microbatch import MicroBatch
from ptm_dist.engines.native import NativeEngine
from ptm_dist.kernels.linear_cross_entropy import Portion
from ptm_dist.recipe.layout import ResolvedLayout, resolve_layout
from ptm_dist.recipe.phases import phases
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.flops import predictions_per_sample


@dataclass(frozen=True)
class Task:
    """One rank to simulate.

    Attributes:
        recipe: of the run.
        world_size: its processes.
        rank: one of them.
    """

    recipe: Recipe
    world_size: int
    rank: int


def simulate(tasks: Sequence[Task]) -> list[Observed]:
    """What ranks do and hold in a step, one after the other, in a process of its own.

    Raises: RuntimeError if that fails; the message is that of its process.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "tasks"), Path(folder, "observed")
        given.write_bytes(pickle.dumps(list(tasks)))
        command = [sys.executable, "-m", "ptm_dist.accounting", str(given), str(found)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"a rank cannot be simulated:\n{ran.stderr}")
        observed: list[Observed] = pickle.loads(found.read_bytes())
    return observed


def watch_step(engine: NativeEngine, mode: FakeTensorMode | None = None, *, steps: int = 1) -> Observed:
    """Watch an engine's step on made-up samples.

    Args:
        engine: of this rank.
        mode: of the engine's tensors, where they are fake.
        steps: see :func:`ptm_dist.accounting.watch.observe`.
    """
    with unset_fake_temporarily():
        batch = full_batch(engine.recipe, engine.dp_rank, engine.dp_size)
    stages = engine.model.stages.values()
    resident = [
        *(weight for stage in stages for weight in stage.updated_parameters().values()),
        *(tensor for slot in engine.optimizer.slots().values() for tensor in slot.values()),
    ]
    computing = [parameter for stage in stages for parameter in stage.module.parameters()]
    return observe(lambda: engine.compute(batch, 0.0), resident, mode, beside=computing, steps=steps)


def full_batch(recipe: Recipe, dp_rank: int, dp_size: int) -> StepBatch:
    """A rank's slice of a batch of the last phase, all samples full and with as many targets as can be."""
    last = list(phases(recipe))[-1]
    length, size = last.sequence_length, last.sizes.final
    begin, end = slice_of(size, dp_rank, dp_size)
    predictions = predictions_per_sample(recipe, length)
    labels = torch.full((end - begin, length), IGNORE_INDEX)
    labels[:, :predictions] = 1
    ids = torch.zeros(end - begin, length, dtype=torch.int64)
    pairs = recipe.objective.kind in {"mlm_nsp", "mlm_sop"}
    return StepBatch(
        step=0,
        first_sample=begin,
        global_batch_size=size,
        sample_ids=np.arange(begin, end),
        inputs=ids,
        labels=labels,
        lengths=torch.full((end - begin,), length),
        segments=torch.zeros_like(ids),
        pair_labels=torch.full((end - begin,), 0 if pairs else IGNORE_INDEX),
        documents=torch.zeros_like(ids) if recipe.objective.document_attention else None,
    )


class _Rank(NativeEngine):
    """An engine whose tensors are fake, but for the numbers that steer it: ranks, and which tokens are predicted.

    It is built outside the mode and computes inside.
    """

    def __init__(self, recipe: Recipe, layout: ResolvedLayout, mode: FakeTensorMode) -> None:
        self._mode = mode
        super().__init__(recipe, layout, torch.device("cpu"))
        for stage in self.model.stages.values():
            if stage.module.head is not None:
                stage.module.head.decoder.portion = Portion.of(torch.device("cuda"))

    def _materialize(self) -> None:
        """Fake weights have no values."""
        with self._mode:
            self.model.materialize(self.device)

    def _micro_batches(self, batch: StepBatch) -> list[MicroBatch]:
        with unset_fake_temporarily():
            real = super()._micro_batches(batch)
        return [self._faked(micro) for micro in real]

    def _faked(self, micro: MicroBatch) -> MicroBatch:
        values = {each.name: self._fake(getattr(micro, each.name)) for each in fields(micro)}
        window = replace(micro.window, positions=self._fake(micro.window.positions))
        return MicroBatch(**{**values, "window": window})

    def _fake(self, value: Any) -> Any:
        # Watchers see what operations make: a view will do.
        return self._mode.from_tensor(value).detach() if isinstance(value, Tensor) else value


def simulate_here(task: Task) -> Observed:
    """:func:`simulate` in this process, which must have no process group and no other use."""
    import torch.distributed._tools.fake_collectives  # noqa: F401  fake tensors need to know of collectives
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=task.rank, world_size=task.world_size, store=FakeStore())
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        engine = _Rank(task.recipe, resolve_layout(task.recipe.layout, task.world_size), mode)
        with mode:
            return watch_step(engine, mode)
    finally:
        dist.destroy_process_group()
