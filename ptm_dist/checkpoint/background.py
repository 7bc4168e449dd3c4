"""Checkpoints that are written while the steps go on.

A save copies the state into memory of the host, one buffer for all saves, and the process beside the rank
(:mod:`ptm_dist.keeper`) writes it from there. The ranks speak to each other only between steps: nothing of a process
group happens beside the training's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ptm_dist.checkpoint.keepers import KeeperProcess
from ptm_dist.checkpoint.plan import RankPlan, boxes_with_values
from ptm_dist.checkpoint.staging import HostBuffer, places_of
from ptm_dist.checkpoint.state import METADATA_FILE, Files
from ptm_dist.checkpoint.store import CheckpointInfo, CheckpointStore, Description
from ptm_dist.errors import CheckpointError
from ptm_dist.keeper.messages import Part, Save, Saved
from ptm_dist.parallel.boxes import Held
from ptm_dist.parallel.control import ControlGroup


@dataclass
class _InFlight:
    """A save that is not committed: its directory, what it is of, and the answer of this rank's process."""

    unfinished: Path
    description: Description
    answer: Files | Exception | None = None


@dataclass
class _Prepared:
    """What saves of one plan share."""

    plan: RankPlan
    parts: tuple[Part, ...]
    buffer: HostBuffer
    keeper: KeeperProcess


class BackgroundSaves:
    """Saves of which at most one is in flight; all methods but :meth:`close` are collective.

    Args:
        store: of the run.
        control: all ranks.
        device: that holds the state.
    """

    def __init__(self, store: CheckpointStore, control: ControlGroup, device: torch.device) -> None:
        self._store = store
        self._control = control
        self._device = device
        self._prepared: _Prepared | None = None
        self._in_flight: _InFlight | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a save that was not committed; the same on all ranks."""
        return self._in_flight is not None

    def prepare(self, state: Mapping[str, Held]) -> None:
        """Plan, start the process and begin to reserve memory; waits for neither."""
        plan = self._store.plan(boxes_with_values(state))
        if self._prepared is not None and self._prepared.plan is plan:
            return
        self.close()
        begins, size = places_of([box.size for box in plan.boxes])
        parts = tuple(Part(box.pickled, begin, box.size) for box, begin in zip(plan.boxes, begins, strict=True))
        buffer = HostBuffer(max(size, 1), self._device)
        keeper = KeeperProcess([buffer.descriptor])
        buffer.reserve()
        self._prepared = _Prepared(plan, parts, buffer, keeper)

    def start(self, state: Mapping[str, Held], description: Description) -> None:
        """Copy the state and have it written; on return it may change.

        Raises: CheckpointError as :meth:`CheckpointStore.save`, if the disk can be known to be unusable already.
        """
        assert self._in_flight is None, "at most one save is in flight"
        self.prepare(state)
        prepared = self._control.together(lambda: self._stage(state))
        unfinished, plan = self._store.begin(description.step), prepared.plan
        others = {} if plan.metadata is None else {METADATA_FILE: plan.metadata}
        prepared.keeper.send(Save(0, str(unfinished), plan.file, prepared.parts, others))
        self._in_flight = _InFlight(unfinished, description)

    def poll(self) -> CheckpointInfo | None:
        """Commit the save in flight if all ranks have written theirs.

        Raises: CheckpointError if one of them failed, on all ranks.
        """
        return self._settle(self._look(waits=False))

    def wait(self) -> CheckpointInfo:
        """The same, however long it takes."""
        info = self._settle(self._look(waits=True))
        assert info is not None
        return info

    def close(self) -> None:
        """End the process, and with it what it is at."""
        if self._prepared is not None:
            self._prepared.keeper.close()
            self._prepared.buffer.close()
        self._prepared = None

    def _stage(self, state: Mapping[str, Held]) -> _Prepared:
        prepared, boxes = self._prepared, boxes_with_values(state)
        assert prepared is not None
        if prepared.keeper.has_answer():  # to nothing: it is gone
            prepared.keeper.answer()
        places = zip(prepared.parts, prepared.plan.boxes, strict=True)
        try:
            prepared.buffer.fill((part.begin, boxes[planned.index].local) for part, planned in places)
        except OSError as error:
            raise CheckpointError(
                f"no memory for a copy of the state ({prepared.buffer.size / 1024**3:.1f} GiB on this rank, {error}); "
                "let checkpoint.asynchronous=false save without one"
            ) from error
        return prepared

    def _look(self, waits: bool) -> _InFlight:
        """The save in flight with this rank's answer, if there is one."""
        flight, prepared = self._in_flight, self._prepared
        assert flight is not None and prepared is not None
        if flight.answer is None and (waits or prepared.keeper.has_answer()):
            try:
                answer = prepared.keeper.answer()
                assert isinstance(answer, Saved)
                flight.answer = answer.files
            except Exception as error:
                flight.answer = error
        return flight

    def _settle(self, flight: _InFlight) -> CheckpointInfo | None:
        has_failed = isinstance(flight.answer, Exception)
        is_writing, some_failed = self._control.maxima(float(flight.answer is None), float(has_failed))
        if is_writing and not some_failed:
            return None
        self._in_flight = None
        if some_failed:
            # Before the first rank removes what they write to.
            self.close()
        return self._store.commit(flight.unfinished, lambda: self._files(flight), flight.description)

    def _files(self, flight: _InFlight) -> Files:
        with self._store.disk_errors():
            if isinstance(flight.answer, Exception):
                raise flight.answer
            return flight.answer or {}
