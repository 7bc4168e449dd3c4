"""The competitors: the same GPT-2 as a researcher would write it in plain PyTorch, and Hugging Face's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptm_dist.recipe.schema import ModelSection


class PlainBlock(nn.Module):
    """A pre-LN block with a fused ``[query | key | value]`` projection."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.fc, self.out = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape."""
        batch, seq, hidden = x.shape
        qkv = self.qkv(self.ln1(x)).split(hidden, dim=2)
        q, k, v = (part.view(batch, seq, self.heads, -1).transpose(1, 2) for part in qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, seq, hidden))
        return x + self.out(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 in one screen."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.wte = nn.Embedding(model.vocab_size, model.hidden_size)
        self.wpe = nn.Embedding(model.max_positions, model.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(model.hidden_size, model.num_heads) for _ in range(model.num_layers))
        self.ln = nn.LayerNorm(model.hidden_size)
        self.head = nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids to logits."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def hugging_face(model: ModelSection) -> nn.Module:
    """``GPT2LMHeadModel`` of the same shape, without dropout; forward returns logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.max_positions,
        n_embd=model.hidden_size,
        n_layer=model.num_layers,
        n_head=model.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return _Logits(GPT2LMHeadModel(config))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits


class PlainTrainer:
    """The usual loop around a model: micro-batches, clipping, fused AdamW."""

    def __init__(
        self, model: nn.Module, micro_batch_size: int, autocast: torch.dtype | None = None, scale: float = 1.0
    ) -> None:
        self.model = model
        self.micro_batch_size = micro_batch_size
        self.autocast = autocast
        self.scale = scale
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(self, inputs: Tensor, labels: Tensor) -> float:
        """One optimizer step; the loss of the last micro-batch's share."""
        micros = list(zip(inputs.split(self.micro_batch_size), labels.split(self.micro_batch_size), strict=True))
        total = torch.zeros((), device=inputs.device)
        for ids, targets in micros:
            with torch.autocast(inputs.device.type, self.autocast, enabled=self.autocast is not None):
                logits = self.model(ids)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()) / len(micros) * self.scale
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()
