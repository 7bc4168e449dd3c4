"""AdamW on the shards a rank holds (Loshchilov & Hutter 2019, arXiv 1711.05101).

The update is elementwise: computed on shards it equals the update of whole parameters, and needs no
communication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def is_decayed(name: str) -> bool:
    """Weight decay applies to matrices and embeddings, not to biases and LayerNorm."""
    return not (name.endswith("bias") or name.endswith("norm.weight"))


class AdamW:
    """Moments by parameter name, and the fused update.

    Args:
        parameters: gives this rank's shards by canonical name. Called at each step: the storage behind a
            shard may move.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, see :func:`is_decayed`.
    """

    def __init__(
        self,
        parameters: Callable[[], Mapping[str, Tensor]],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        self._parameters = parameters
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.steps_done = 0
        shards = parameters()
        self.exp_avg = {name: torch.zeros_like(shard) for name, shard in shards.items()}
        self.exp_avg_sq = {name: torch.zeros_like(shard) for name, shard in shards.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """Update every shard in place from gradients of the same names and shapes."""
        parameters = self._parameters()
        for decayed in (True, False):
            names = [name for name, p in parameters.items() if is_decayed(name) is decayed and p.numel()]
            if names:
                self._update(names, parameters, gradients, learning_rate, self.weight_decay if decayed else 0.0)
        self.steps_done += 1

    def _update(
        self,
        names: list[str],
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        steps = torch.full((len(names),), float(self.steps_done), device=parameters[names[0]].device)
        adamw(
            [parameters[name] for name in names],
            [gradients[name] for name in names],
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )
