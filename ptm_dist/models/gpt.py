"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ptm_dist.models.embeddings import Embeddings
from ptm_dist.models.spec import ModelSpec
from ptm_dist.models.transformer import Block


class GPT(nn.Module):
    """A stack of causal blocks between an embedding and a head over the vocabulary.

    Layers are kept by number in a dictionary: a part of the model that holds some of them keeps their names.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden_size = spec.block.hidden_size
        self.embeddings = Embeddings(spec.vocab_size, spec.max_positions, hidden_size)
        self.layers = nn.ModuleDict({str(layer): Block(spec.block) for layer in range(spec.num_layers)})
        self.final_norm = nn.LayerNorm(hidden_size, eps=spec.block.layer_norm_eps)
        self.head = nn.Linear(hidden_size, spec.vocab_size, bias=False)
        if spec.tie_embeddings:
            self.head.weight = self.embeddings.token.weight

    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [cast(Block, layer) for layer in self.layers.values()]

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids ``[batch, seq]``, int64, to logits ``[batch, seq, vocab]``."""
        hidden = self.embeddings(input_ids)
        for layer in self.blocks():
            hidden = layer(hidden)
        return self.head(self.final_norm(hidden))
