"""What a forward pass is worth: losses and hits, summed over targets, and what a step reports of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batches import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.microbatch import MicroBatch
from ptm_dist.models.model import ModelOutput
from ptm_dist.models.spec import ModelSpec
from ptm_dist.parallel.loss import vocab_parallel_cross_entropy, vocab_parallel_hits
from ptm_dist.parallel.mesh import RankGroup

TOKEN_LOSS, TOKEN_HITS, PAIR_LOSS, PAIR_HITS = range(4)
"""Places in the sums of :func:`forward_sums`."""
NUM_SUMS = 4


def count_targets(batch: StepBatch) -> Tensor:
    """Numbers of tokens and of pairs that a slice is to predict, ``[2]``, float64."""
    counts = [(batch.labels != IGNORE_INDEX).sum(), (batch.pair_labels != IGNORE_INDEX).sum()]
    return torch.stack(counts).double()


def forward_sums(output: ModelOutput, micro: MicroBatch, spec: ModelSpec, ranks: RankGroup) -> tuple[Tensor, Tensor]:
    """Losses that can be differentiated, and hits.

    Args:
        output: of the model; its token logits are this rank's columns.
        micro: what it was to predict.
        spec: of the model. A causal one's hits are not counted: that would be another pass over all logits.
        ranks: that share the vocabulary.

    Returns: sums over targets of the token and pair losses, ``[2]``, and of hits, ``[2]``; the same on all `ranks`.
    """
    vocab_size = spec.embedding.vocab_size
    logits = output.tokens.flatten(0, -2)
    losses = [vocab_parallel_cross_entropy(logits, micro.targets, vocab_size, ranks).sum()]
    hits = [torch.zeros_like(losses[0])]
    if not spec.block.causal:
        hits = [vocab_parallel_hits(logits.detach(), micro.targets, vocab_size, ranks).sum().to(losses[0])]
    if output.pairs is None:
        return torch.stack([*losses, torch.zeros_like(losses[0])]), torch.stack([*hits, torch.zeros_like(hits[0])])
    pairs = output.pairs.to(losses[0].dtype)
    losses.append(F.cross_entropy(pairs, micro.pair_targets, ignore_index=IGNORE_INDEX, reduction="sum"))
    hits.append((pairs.argmax(-1) == micro.pair_targets).sum().to(hits[0]))
    return torch.stack(losses), torch.stack(hits)


def named_metrics(sums: list[float], counts: list[float], objective: str) -> dict[str, float]:
    """Means per target by name, such as `mlm_loss` and `sop_accuracy`.

    Args:
        sums: of token losses, token hits, pair losses, pair hits over the global batch.
        counts: of tokens and pairs.
        objective: the recipe's objective.kind; a causal model has its loss only, which needs no name.
    """
    names = [] if objective == "causal" else objective.split("_")
    metrics = {}
    for part, (name, count) in enumerate(zip(names, counts, strict=False)):
        metrics[f"{name}_loss"] = sums[2 * part] / count
        metrics[f"{name}_accuracy"] = sums[2 * part + 1] / count
    return metrics


def mean_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean per token plus mean per pair, as the papers add them; `counts` of 0 add nothing."""
    return (sums / counts.clamp(min=1.0)).sum()
