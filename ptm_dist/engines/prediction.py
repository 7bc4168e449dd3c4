"""Logits of a model that is spread over ranks, for generation and evaluation by the user's own code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.microbatch import MicroBatch
from ptm_dist.engines.native import NativeEngine
from ptm_dist.engines.passes import Passes
from ptm_dist.models import ModelOutput
from ptm_dist.parallel.shards import balanced_range
from ptm_dist.parallel.stage import Stage
from ptm_dist.parallel.zigzag import window as context_window


class Predictor:
    """Called like a model that one process holds; every rank gives the same and gets the same.

    Args:
        engine: whose weights are used, at whatever layout.
    """

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = engine
        self._spec = engine.model.spec

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, positions: Tensor) -> ModelOutput:
        """Logits at chosen positions; collective.

        Args:
            input_ids: ``[batch, seq]``, int64, the same on all ranks, without padding.
            positions: indices into the flattened ``[batch * seq]``, ``[n]``, int64.

        Returns: logits of tokens, ``[n, vocab]``, without pairs.
        """
        engine, mesh = self._engine, self._engine.mesh
        vocab_size = self._spec.embedding.vocab_size
        # What stands to the right of a position is not seen by it; each context rank needs a position of its own.
        missing = max(0, mesh.context.size - input_ids.shape[1]) if self._spec.block.causal else 0
        padded = F.pad(input_ids, (0, missing))
        rows = positions // input_ids.shape[1] * padded.shape[1] + positions % input_ids.shape[1]
        micro, chosen = self._micro_batch(padded, rows)
        logits = torch.zeros(len(positions), vocab_size, dtype=torch.float64, device=engine.device)
        # A causal head behind split positions gathers them by itself.
        whole_head = engine.model.split.sequence_parallel and self._spec.block.causal

        def forward(stage: Stage, _: int, hidden: Tensor | None) -> Tensor:
            inputs = micro.input_ids if hidden is None else hidden
            out = stage.module(inputs, None, None, None if whole_head else micro.positions, None, micro.window)
            if stage.module.head is None:
                return out
            found = out.tokens.flatten(0, -2)[micro.positions] if whole_head else out.tokens
            begin, end = balanced_range(vocab_size, mesh.tensor.size, mesh.tensor.rank)
            logits[chosen, begin:end] = found[: len(chosen)].double()
            return logits

        like = Passes(engine.model, [micro], engine.hidden_dtype, engine.device).like
        engine.pipeline.evaluate(1, like, forward)
        engine.model.release()
        for ranks in (mesh.tensor, mesh.context, mesh.pipeline):
            ranks.sum(logits)
        return ModelOutput(logits, None)

    def _micro_batch(self, input_ids: Tensor, positions: Tensor) -> tuple[MicroBatch, Tensor]:
        """This rank's positions, and which of the chosen ones are among them."""
        engine = self._engine
        batch, length = input_ids.shape
        window = context_window(length, engine.mesh.context, engine.device)
        place = torch.full((length,), -1, dtype=torch.int64, device=engine.device)
        place[window.positions] = torch.arange(len(window.positions), device=engine.device)
        local = place[positions % length]
        chosen = (local >= 0).nonzero().squeeze(1)
        here = (positions // length * len(window.positions) + local)[chosen]
        if not len(here):
            here = torch.zeros(1, dtype=torch.int64, device=engine.device)
        nothing = torch.full((batch,), IGNORE_INDEX, dtype=torch.int64, device=engine.device)
        rows = torch.arange(batch, device=engine.device)
        micro = MicroBatch(window, input_ids[:, window.positions], None, None, here, nothing, nothing, None, rows)
        return micro, chosen
