"""Stochastic gradient descent with momentum (Sutskever et al. 2013, ICML), on the shards a rank holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from ptm_dist.optim.decay import decay_groups
from ptm_dist.optim.optimizer import Shards, divided_before, is_infinite, zero_slot


class SGD:
    """The momentum buffer b by parameter name, and the fused update.

    With learning rate a, momentum mu, weight decay d and gradient g, each step does ``b = mu b + g + d w`` and
    ``w -= a b``. The buffer starts at zero, so the first update is the gradient itself. As everywhere in this
    form of SGD the decay is part of the gradient, unlike AdamW's.

    Args:
        parameters: this rank's shards.
        momentum: decay rate of the buffer; 0 leaves it unused.
        weight_decay: see :func:`ptm_dist.optim.decay.is_decayed`.
    """

    def __init__(self, parameters: Shards, *, momentum: float, weight_decay: float) -> None:
        self._parameters = parameters
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.steps_done = 0
        self._buffers = zero_slot(parameters())

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float, divisor: Tensor | None = None) -> None:
        """Update every shard in place; see :class:`ptm_dist.optim.optimizer.Optimizer`."""
        parameters = self._parameters()
        for names, weight_decay in decay_groups(parameters, self.weight_decay):
            grads = [gradients[name] for name in names]
            sgd(
                [parameters[name] for name in names],
                grads,
                [self._buffers[name] for name in names],
                fused=True,
                lr=learning_rate,
                momentum=self.momentum,
                weight_decay=weight_decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                grad_scale=divided_before(grads, divisor),
                found_inf=is_infinite(divisor),
            )
        self.steps_done += 1

    def slots(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The momentum buffer."""
        return {"momentum": self._buffers}
