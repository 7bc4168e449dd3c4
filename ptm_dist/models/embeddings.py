"""From token ids to the first hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Embeddings(nn.Module):
    """Learned token plus learned absolute position embeddings."""

    def __init__(self, vocab_size: int, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Embedding(max_positions, hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids ``[batch, seq]``, int64, to ``[batch, seq, hidden]``."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.token(input_ids) + self.position(positions)
