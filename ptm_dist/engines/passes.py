"""The forward passes of a step on one rank: micro-batches into stages, sums of losses out of the last one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ptm_dist.engines.losses import NUM_SUMS, forward_sums
from ptm_dist.engines.microbatch import MicroBatch
from ptm_dist.parallel.parallelize import ParallelModel
from ptm_dist.parallel.stage import Stage


class Passes:
    """Micro-batches, and what comes of them.

    Args:
        model: this rank's stages.
        micro_batches: of equal shape.
        dtype: of hidden states.
        device: of this process.
        keys: of dropout (:func:`ptm_dist.models.draws.dropout_keys`); None: nothing is dropped.

    Attributes:
        sums: of token losses, token hits, pair losses, pair hits over this rank's micro-batches, ``[4]``, float64; 0
            where this rank does not hold the last stage.
    """

    def __init__(
        self,
        model: ParallelModel,
        micro_batches: Sequence[MicroBatch],
        dtype: torch.dtype,
        device: torch.device,
        keys: Tensor | None = None,
    ) -> None:
        self._model = model
        self.micro_batches = micro_batches
        self._dtype = dtype
        self._keys = keys
        self.sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=device)

    @property
    def like(self) -> Tensor:
        """Hidden states as they go from stage to stage, of which nothing is stored."""
        batch, length = self.micro_batches[0].input_ids.shape
        if self._model.split.sequence_parallel:
            begin, end = self._model.split.range(length)
            length = end - begin
        hidden_size = self._model.spec.block.hidden_size
        return torch.empty(1, dtype=self._dtype, device=self.sums.device).expand(batch, length, hidden_size)

    def forward(
        self, stage: Stage, micro: int, hidden: Tensor | None, *, loss_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A stage's forward pass (:data:`ptm_dist.parallel.pipeline.Forward`).

        Args:
            stage: one of the model's.
            micro: which micro-batch.
            hidden: what the stage before made.
            loss_of: from the sums of the token and pair losses, ``[2]``, to what is differentiated.
        """
        batch = self.micro_batches[micro]
        inputs = batch.input_ids if hidden is None else hidden
        out = stage.module(
            inputs,
            batch.segment_ids,
            batch.valid,
            batch.positions,
            batch.documents,
            batch.window,
            batch.draws(self._keys),
            batch.targets,
            batch.packed,
        )
        if stage.module.head is None:
            return out
        losses, hits = forward_sums(out, batch)
        self.sums += torch.stack([losses.detach(), hits], dim=1).flatten()
        return loss_of(losses)
