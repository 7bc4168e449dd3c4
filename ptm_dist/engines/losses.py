"""What a forward pass is worth: losses and hits, summed over targets, and what a step reports of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batches import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.engines.microbatch import MicroBatch
from ptm_dist.models.model import ModelOutput, ModelScore
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


def forward_sums(score: ModelScore, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """Losses that can be differentiated, and hits.

    Args:
        score: of the model.
        micro: what it was to predict.

    Returns: sums over targets of the token and pair losses, ``[2]``, and of hits, ``[2]``.
    """
    return _with_pairs(score.tokens.loss, score.tokens.hits, score.pairs, micro)


def sums_of_logits(output: ModelOutput, micro: MicroBatch, spec: ModelSpec, ranks: RankGroup) -> tuple[Tensor, Tensor]:
    """:func:`forward_sums` of a model that gives its logits.

    Args:
        output: of the model; its token logits are this rank's columns.
        micro: what it was to predict.
        spec: of the model. A causal one's hits are not counted: that would be another pass over all logits.
        ranks: that share the vocabulary.

    Returns: sums over targets of the token and pair losses, ``[2]``, and of hits, ``[2]``; the same on all `ranks`.
    """
    vocab_size = spec.embedding.vocab_size
    logits = output.tokens.flatten(0, -2)
    loss = vocab_parallel_cross_entropy(logits, micro.targets, vocab_size, ranks).sum()
    hits = torch.zeros_like(loss)
    if not spec.block.causal:
        hits = vocab_parallel_hits(logits.detach(), micro.targets, vocab_size, ranks).sum().to(loss)
    return _with_pairs(loss, hits, output.pairs, micro)


def _with_pairs(loss: Tensor, hits: Tensor, pairs: Tensor | None, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """Those of tokens, and those of pairs, 0 without any."""
    if pairs is None:
        return torch.stack([loss, torch.zeros_like(loss)]), torch.stack([hits, torch.zeros_like(hits)])
    wide = pairs.to(loss.dtype)
    pair_loss = F.cross_entropy(wide, micro.pair_targets, ignore_index=IGNORE_INDEX, reduction="sum")
    pair_hits = (wide.argmax(-1) == micro.pair_targets).sum().to(hits)
    return torch.stack([loss, pair_loss]), torch.stack([hits, pair_hits])


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
