"""Runs the micro-batches of a step through the stages of a pipeline; a model in one piece is a pipeline of one stage.

The order of work is a table (:mod:`ptm_dist.parallel.schedules`). Each rank goes through its own column and waits for
nothing but the tensors that the next action needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ptm_dist.parallel.actions import Action, Kind
from ptm_dist.parallel.mesh import RankMesh
from ptm_dist.parallel.messages import Exchange, Lanes
from ptm_dist.parallel.schedules import Schedule, schedule_of
from ptm_dist.parallel.stage import Stage
from ptm_dist.recipe.layout import ResolvedLayout

Forward = Callable[[Stage, int, Tensor | None], Tensor]
"""A stage's forward pass of a micro-batch, given by its number: what the stage before made (None in the first stage) to
what the next one reads; in the last stage to a loss."""


class Pipeline:
    """This rank's stages and their schedules.

    Args:
        stages: of this rank, by number.
        rank_of: pipeline rank of each stage.
        layout: names the schedule.
        mesh: the ranks; collective over the world.
        device: of this process.
    """

    def __init__(
        self,
        stages: Mapping[int, Stage],
        rank_of: tuple[int, ...],
        layout: ResolvedLayout,
        mesh: RankMesh,
        device: torch.device,
    ) -> None:
        self._stages = stages
        self._rank_of = rank_of
        self._layout = layout
        self._rank = mesh.pipeline.rank
        self._lanes = Lanes(mesh, device)

    def train(self, micro_batches: int, like: Tensor, forward: Forward) -> None:
        """Forward and backward passes of all micro-batches; gradients stay in the stages.

        Args:
            micro_batches: their number.
            like: a tensor as it goes from stage to stage.
            forward: computes a stage.
        """
        for stage in self._stages.values():
            stage.begin_step(micro_batches)
        self._run(schedule_of(self._layout, micro_batches), like, forward)

    @torch.no_grad()
    def evaluate(self, micro_batches: int, like: Tensor, forward: Forward) -> None:
        """Forward passes only; arguments as in :meth:`train`."""
        self._run(_forward_schedule(self._rank_of, self._layout.pipeline_parallel, micro_batches), like, forward)

    def _run(self, schedule: Schedule, like: Tensor, forward: Forward) -> None:
        step = _Step(schedule, self._stages, Exchange(schedule, self._lanes, like), forward)
        for action in schedule.actions[self._rank]:
            step.do(action)
        step.close()


class _Step:
    """The tensors of one step that wait for their backward pass."""

    def __init__(self, schedule: Schedule, stages: Mapping[int, Stage], exchange: Exchange, forward: Forward) -> None:
        self._schedule = schedule
        self._stages = stages
        self._exchange = exchange
        self._forward = forward
        self._open: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        self._left = Counter(dict.fromkeys(stages, schedule.micro_batches))

    def do(self, action: Action) -> None:
        """One action, and the messages before and after it."""
        match action.kind:
            case Kind.FORWARD:
                self._pass_forward(action)
            case Kind.WEIGHT:
                self._pass_weights(action)
            case _:
                self._pass_backward(action)

    def close(self) -> None:
        """Wait for messages under way."""
        self._exchange.close()

    def _pass_forward(self, action: Action) -> None:
        stage, micro = action.stage, action.micro
        hidden = None
        if stage:
            hidden = self._exchange.take(action._replace(stage=stage - 1)).detach()
            hidden.requires_grad_(torch.is_grad_enabled())
        out = self._forward(self._stages[stage], micro, hidden)
        if stage + 1 < self._schedule.stages:
            self._exchange.give(action, stage + 1, out.detach())
        if torch.is_grad_enabled():
            self._open[stage, micro] = hidden, out

    def _pass_backward(self, action: Action) -> None:
        number, micro = action.stage, action.micro
        stage = self._stages[number]
        hidden, out = self._open.pop((number, micro))
        gradient = None
        if number + 1 < self._schedule.stages:
            gradient = self._exchange.take(Action(Kind.BACKWARD, number + 1, micro))
        if action.kind is Kind.BACKWARD or not stage.splits_backward:
            found = stage.backward(out, gradient, hidden, last=self._is_last(number))
        else:
            found = stage.backward_input(micro, out, gradient, hidden)
        if number:
            assert found is not None
            self._exchange.give(action, number - 1, found)

    def _pass_weights(self, action: Action) -> None:
        stage = self._stages[action.stage]
        if stage.splits_backward:
            stage.backward_weight(action.micro, last=self._is_last(action.stage))

    def _is_last(self, stage: int) -> bool:
        """Whether this backward pass of a stage completes its gradients."""
        self._left[stage] -= 1
        return self._left[stage] == 0


def _forward_schedule(rank_of: tuple[int, ...], ranks: int, micro_batches: int) -> Schedule:
    """Every micro-batch through all stages of a rank, one after the other."""
    actions = tuple(
        tuple(
            Action(Kind.FORWARD, stage, micro)
            for micro in range(micro_batches)
            for stage, owner in enumerate(rank_of)
            if owner == rank
        )
        for rank in range(ranks)
    )
    return Schedule(ranks, len(rank_of), micro_batches, rank_of, actions, splits_backward=False)
