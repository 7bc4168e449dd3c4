"""Tensors between the stages of a pipeline: sent as soon as there are any, received in the order of the sender."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ptm_dist.parallel.actions import Action, Kind
from ptm_dist.parallel.mesh import RankGroup, RankMesh
from ptm_dist.parallel.schedules import Schedule


class Lanes:
    """Process groups for messages, so that no message waits for one that goes the other way.

    NCCL keeps the messages between two ranks in one order for both directions: forward passes one way and backward
    passes the other would wait for each other. Each kind of message has a group for either direction there. Gloo
    tells messages apart by their tags.

    Args:
        mesh: the ranks; collective over the world.
        device: of the tensors.
    """

    def __init__(self, mesh: RankMesh, device: torch.device) -> None:
        self.rank = mesh.pipeline.rank
        is_ordered = device.type == "cuda" and mesh.pipeline.size > 1
        keys = [(kind, upwards) for kind in (Kind.FORWARD, Kind.BACKWARD) for upwards in (True, False)]
        self._groups: dict[tuple[Kind, bool], RankGroup] = {
            key: mesh.pipeline_again(number + 1) if is_ordered else mesh.pipeline for number, key in enumerate(keys)
        }

    def between(self, source: int, target: int, kind: Kind) -> dist.ProcessGroup | None:
        """The group for messages of a kind from one pipeline rank to another."""
        return self._groups[kind, source < target].group


class Exchange:
    """The messages of one step.

    Args:
        schedule: of the step: says who sends what in which order.
        lanes: process groups.
        like: a tensor of the shape, dtype and device of every message; its values do not matter.
    """

    def __init__(self, schedule: Schedule, lanes: Lanes, like: Tensor) -> None:
        self._schedule = schedule
        self._lanes = lanes
        self._like = like
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._waiting: dict[tuple[int, Kind], Iterator[Action]] = {}
        self._posted: dict[Action, tuple[dist.Work, Tensor]] = {}
        self._kept: dict[Action, Tensor] = {}

    def give(self, action: Action, target_stage: int, tensor: Tensor) -> None:
        """Send what an action made to the rank of a stage; without a copy to this rank itself."""
        action = _message(action)
        target = self._schedule.rank_of[target_stage]
        if target == self._lanes.rank:
            self._kept[action] = tensor
            return
        group = self._lanes.between(self._lanes.rank, target, action.kind)
        tensor = tensor.contiguous()
        work = dist.isend(tensor, group=group, group_dst=target, tag=self._tag(action))
        assert work is not None
        self._sent.append((work, tensor))

    def take(self, action: Action) -> Tensor:
        """What an action of another stage made, when it is here."""
        action = _message(action)
        if action in self._kept:
            return self._kept.pop(action)
        source = self._schedule.rank_of[action.stage]
        key = (source, action.kind)
        if key not in self._waiting:
            sent = self._schedule.messages(source, self._lanes.rank, action.kind)
            self._waiting[key] = map(_message, sent)
        while action not in self._posted:
            self._post(next(self._waiting[key]), source)
        # One ahead: it travels while this one is computed on.
        following = next(self._waiting[key], None)
        if following is not None:
            self._post(following, source)
        work, tensor = self._posted.pop(action)
        work.wait()
        return tensor

    def close(self) -> None:
        """Wait until all that was sent has left."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()

    def _post(self, action: Action, source: int) -> None:
        tensor = torch.empty_like(self._like)
        group = self._lanes.between(source, self._lanes.rank, action.kind)
        work = dist.irecv(tensor, group=group, group_src=source, tag=self._tag(action))
        assert work is not None
        self._posted[action] = (work, tensor)

    def _tag(self, message: Action) -> int:
        """A number of its own for each message of a step."""
        backwards = int(message.kind is Kind.BACKWARD)
        return (backwards * self._schedule.stages + message.stage) * self._schedule.micro_batches + message.micro


def _message(action: Action) -> Action:
    """What names a message: the gradient of a stage's input is the same from a whole backward pass and from a half."""
    return action._replace(kind=Kind.BACKWARD) if action.kind is Kind.INPUT else action
