"""What a pipeline rank does one after the other, what each action waits for, and when it could run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What is computed for one micro-batch in one stage, in torch's letters."""

    FORWARD = "F"
    """The forward pass."""
    BACKWARD = "B"
    """The whole backward pass: gradients of the stage's inputs and of its weights."""
    INPUT = "I"
    """Gradients of the stage's inputs only, which the stage before waits for."""
    WEIGHT = "W"
    """Gradients of its weights, which nobody waits for before the optimizer."""


class Action(NamedTuple):
    """One computation of a rank, written as torch writes it: ``2F0`` is the forward pass of micro-batch 0 in stage 2.

    Attributes:
        kind: what is computed.
        stage: in which part of the model.
        micro: for which micro-batch of the step.
    """

    kind: Kind
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro}"

    def result(self) -> Action:
        """What others wait for: a whole backward pass gives what its first half gives."""
        return self._replace(kind=Kind.INPUT) if self.kind is Kind.BACKWARD else self

    def needs(self, stages: int) -> tuple[Action, ...]:
        """The results that must exist before.

        Args:
            stages: of the whole pipeline.
        """
        kind, stage, micro = self
        if kind is Kind.FORWARD:
            return (Action(kind, stage - 1, micro),) if stage else ()
        if kind is Kind.WEIGHT:
            return (Action(Kind.INPUT, stage, micro),)
        own = Action(Kind.FORWARD, stage, micro)
        return (own, Action(Kind.INPUT, stage + 1, micro)) if stage + 1 < stages else (own,)


Orders = Sequence[Sequence[Action]]
"""By rank, what it does in order."""


class Timeline(NamedTuple):
    """When ranks end that start each action as soon as they can.

    Attributes:
        ends: time at which each rank is done, by rank.
        stuck: ranks that never get to their end, with the action at which they stop and the result they wait for.
    """

    ends: tuple[float, ...]
    stuck: dict[int, tuple[Action, Action]]


def play(orders: Orders, stages: int, cost: Mapping[Kind, float]) -> Timeline:
    """Let the ranks act, each in its order; messages take no time.

    Args:
        orders: by rank.
        stages: of the whole pipeline.
        cost: time of each kind of action, in any unit.
    """
    done: dict[Action, float] = {}
    position, clock = [0] * len(orders), [0.0] * len(orders)
    waiting: dict[Action, list[int]] = defaultdict(list)
    stuck: dict[int, tuple[Action, Action]] = {}
    ready = deque(range(len(orders)))
    while ready:
        rank = ready.popleft()
        stuck.pop(rank, None)
        for action in orders[rank][position[rank] :]:
            needs = action.needs(stages)
            missing = next((need for need in needs if need not in done), None)
            if missing is not None:
                waiting[missing].append(rank)
                stuck[rank] = (action, missing)
                break
            clock[rank] = max(clock[rank], *(done[need] for need in needs), 0.0) + cost[action.kind]
            done[action.result()] = clock[rank]
            ready.extend(waiting.pop(action.result(), ()))
            position[rank] += 1
    return Timeline(tuple(clock), stuck)
