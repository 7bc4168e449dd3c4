"""GPT-2 as a researcher writes it in plain PyTorch (nanoGPT style)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batches import StepBatch
from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.recipe.schema import ModelSection


class PlainBlock(nn.Module):
    """A pre-LN block with a fused ``[query | key | value]`` projection."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.c_attn, self.c_proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.c_fc, self.out = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape."""
        batch, seq, hidden = x.shape
        qkv = self.c_attn(self.ln_1(x)).split(hidden, dim=2)
        q, k, v = (part.view(batch, seq, self.heads, -1).transpose(1, 2) for part in qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(batch, seq, hidden))
        return x + self.out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 in one screen."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.wte = nn.Embedding(model.vocab_size, model.hidden_size)
        self.wpe = nn.Embedding(model.max_positions, model.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(model.hidden_size, model.num_heads) for _ in range(model.num_layers))
        self.ln_f = nn.LayerNorm(model.hidden_size)
        self.head = nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, batch: StepBatch) -> Tensor:
        """Mean loss over all tokens."""
        x = self.wte(batch.inputs) + self.wpe(torch.arange(batch.inputs.shape[1], device=batch.inputs.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX)

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights by their names in ``GPT2LMHeadModel``, whose matrices stand the other way round."""
        for name, parameter in self.named_parameters():
            theirs = name.replace("blocks.", "h.").replace(".out.", ".mlp.c_proj.").replace(".c_fc.", ".mlp.c_fc.")
            if theirs == name.replace("blocks.", "h."):
                theirs = theirs.replace(".c_attn.", ".attn.c_attn.").replace(".c_proj.", ".attn.c_proj.")
            weight = weights[f"transformer.{theirs}"]
            parameter.copy_(weight if weight.shape == parameter.shape and "c_proj.weight" not in theirs else weight.T)
