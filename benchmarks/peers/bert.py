"""BERT as a researcher writes it in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batches import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.recipe.schema import ModelSection

_EPS = 1e-12


class PlainLayer(nn.Module):
    """A post-LN block with a fused ``[query | key | value]`` projection."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.norm_1, self.norm_2 = nn.LayerNorm(hidden, eps=_EPS), nn.LayerNorm(hidden, eps=_EPS)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape; `mask` is False at keys that are padding."""
        batch, seq, hidden = x.shape
        qkv = self.qkv(x).split(hidden, dim=2)
        q, k, v = (part.view(batch, seq, self.heads, -1).transpose(1, 2) for part in qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm_1(x + self.proj(mixed.transpose(1, 2).reshape(batch, seq, hidden)))
        return self.norm_2(x + self.down(F.gelu(self.up(x), approximate="tanh")))


class PlainBERT(nn.Module):
    """BERT with both heads in one screen.

    Args:
        model: its shape.
        picks: compute the head at the masked positions only; most compute it everywhere.
    """

    def __init__(self, model: ModelSection, *, picks: bool) -> None:
        super().__init__()
        hidden = model.hidden_size
        self.picks = picks
        self.words = nn.Embedding(model.vocab_size, hidden)
        self.positions = nn.Embedding(model.max_positions, hidden)
        self.segments = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps=_EPS)
        self.layers = nn.ModuleList(PlainLayer(hidden, model.num_heads) for _ in range(model.num_layers))
        self.transform, self.transform_norm = nn.Linear(hidden, hidden), nn.LayerNorm(hidden, eps=_EPS)
        self.decoder = nn.Linear(hidden, model.vocab_size)
        self.decoder.weight = self.words.weight
        self.pooler, self.classifier = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)

    def forward(self, batch: StepBatch) -> Tensor:
        """Mean loss over masked tokens plus mean loss over pairs."""
        places = torch.arange(batch.inputs.shape[1], device=batch.inputs.device)
        mask = (places < batch.lengths[:, None])[:, None, None, :]
        x = self.norm(self.words(batch.inputs) + self.positions(places) + self.segments(batch.segments))
        for layer in self.layers:
            x = layer(x, mask)
        pairs = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        x, labels = x.flatten(0, 1), batch.labels.flatten()
        if self.picks:
            chosen = (labels != IGNORE_INDEX).nonzero().squeeze(1)
            x, labels = x[chosen], labels[chosen]
        tokens = self.decoder(self.transform_norm(F.gelu(self.transform(x), approximate="tanh")))
        return F.cross_entropy(tokens.float(), labels) + F.cross_entropy(pairs.float(), batch.pair_labels)

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights by their names in ``BertForPreTraining``."""
        for name, parameter in self.named_parameters():
            stem, kind = name.rsplit(".", 1)
            if stem.endswith(".qkv"):
                attention = f"bert.encoder.{stem.replace('layers', 'layer').removesuffix('qkv')}attention.self"
                parts = [weights[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
                parameter.copy_(torch.cat(parts))
            else:
                parameter.copy_(weights[_theirs(stem, kind)])


_OUTER = {
    "words": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "segments": "bert.embeddings.token_type_embeddings",
    "norm": "bert.embeddings.LayerNorm",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "decoder": "cls.predictions",
    "pooler": "bert.pooler.dense",
    "classifier": "cls.seq_relationship",
}
_IN_LAYER = {
    "proj": "attention.output.dense",
    "norm_1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_2": "output.LayerNorm",
}


def _theirs(stem: str, kind: str) -> str:
    if not stem.startswith("layers."):
        return f"{_OUTER[stem]}.{kind}"
    _, number, part = stem.split(".")
    return f"bert.encoder.layer.{number}.{_IN_LAYER[part]}.{kind}"
