"""Continue token sequences with a causal model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    max_positions: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end_id: int | None = None,
) -> Tensor:
    """Append tokens one by one, each drawn from the model's distribution given all before it.

    Args:
        model: a causal :class:`ptm_dist.models.LanguageModel`; put it in evaluation mode.
        input_ids: prompts of equal length, ``[b, s]``, int64, s >= 1.
        max_new_tokens: how many tokens to append at most.
        max_positions: the longest sequence the model takes; of a longer one it sees the end.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the likeliest tokens whose probabilities sum to at least p
            (Holtzman et al. 2020, arXiv 1904.09751).
        seed: of a generator of its own; the same seed and batch give the same tokens.
        end_id: once a sequence has drawn it, the rest of that sequence is `end_id` too.

    Returns: prompts and continuations, ``[b, s + n]`` with n <= `max_new_tokens`; n is smaller if all have ended.
    """
    generator = torch.Generator(device=input_ids.device).manual_seed(seed)
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        token = _draw(_next_logits(model, input_ids[:, -max_positions:]), temperature, top_k, top_p, generator)
        if end_id is not None:
            token = torch.where(ended, end_id, token)
            ended = ended | (token == end_id)
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        if ended.all():
            break
    return input_ids


def _next_logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Logits behind the last position only, ``[b, vocab]``, float32."""
    batch, length = input_ids.shape
    last = torch.arange(1, batch + 1, device=input_ids.device) * length - 1
    return model(input_ids, positions=last).tokens.float()


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """One token id per row of ``[b, vocab]``."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        probabilities[:, top_k:] = 0.0
    if top_p is not None:
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest token stays whatever p is.
        before[:, 0] = -1.0
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    chosen = torch.multinomial(probabilities, 1, generator=generator)
    return ids.gather(-1, chosen)[:, 0]
