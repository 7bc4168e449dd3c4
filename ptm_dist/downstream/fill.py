"""Fill in masked tokens with a model of the BERT family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptm_dist.models import LanguageModel


@dataclass(frozen=True)
class Guess:
    """One token for one masked position.

    Attributes:
        token: its id.
        probability: that the model gives it.
    """

    token: int
    probability: float


@torch.no_grad()
def fill_masks(model: LanguageModel, input_ids: Tensor, mask_id: int, top_k: int = 5) -> list[list[Guess]]:
    """The likeliest tokens at every masked position.

    Args:
        model: of the BERT family, in evaluation mode.
        input_ids: one sequence with its special tokens, ``[seq]``, int64.
        mask_id: of the positions to fill in.
        top_k: guesses for each, likeliest first.

    Returns: guesses by masked position, in order.
    """
    positions = (input_ids == mask_id).nonzero().squeeze(1)
    probabilities = torch.softmax(model(input_ids[None], positions=positions).tokens.float(), dim=-1)
    values, tokens = probabilities.topk(min(top_k, probabilities.shape[-1]), dim=-1)
    return [
        [Guess(token, value) for token, value in zip(*row, strict=True)]
        for row in zip(tokens.tolist(), values.tolist(), strict=True)
    ]
