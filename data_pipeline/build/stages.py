"""Numbered work of which what is finished stays finished."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from data_pipeline.atomic import atomic_file
from data_pipeline.build.team import Team
from data_pipeline.build.workplace import Workplace
from data_pipeline.errors import DataError
from data_pipeline.processes import Note

Record = TypeVar("Record")


@dataclass(frozen=True)
class Stage(Generic[Record]):
    """One kind of numbered work, each piece of which leaves a record when it is done.

    Attributes:
        name: of the folder with the records.
        record: their type.
        count: pieces of work.
        is_whole: whether what a record speaks of is still there.
    """

    place: Workplace
    name: str
    record: type[Record]
    count: int
    is_whole: Callable[[Record], bool] = lambda record: True

    def todo(self) -> list[int]:
        """The work that is not finished."""
        folder = self.place.records(self.name)
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return [number for number in range(self.count) if _name(number) not in names or not self._is_done(number)]

    def run(
        self, team: Team, todo: list[int], work: Callable[[int, Note], Record], on_note: Callable[[Any], None]
    ) -> None:
        """Do what is left; all ranks call this, with the same ``todo``.

        Raises: what the work raises, on all ranks.
        """
        team.run(
            _Recorded(work, self.record, self.place.records(self.name)), todo, self.place.claims / self.name, on_note
        )

    def results(self) -> list[Record]:
        """All records, in order.

        Raises: DataError if one is missing or damaged.
        """
        return [self._load(number) for number in range(self.count)]

    def _is_done(self, number: int) -> bool:
        try:
            return self.is_whole(self._load(number))
        except DataError:
            return False

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Record]:
        return TypeAdapter(self.record)

    def _load(self, number: int) -> Record:
        path = self.place.records(self.name) / _name(number)
        try:
            return self._adapter.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"cannot read {path}: {error}; the same command makes it again") from error


@dataclass(frozen=True)
class _Recorded(Generic[Record]):
    """Does a piece of work and leaves the record that it is done."""

    work: Callable[[int, Note], Record]
    record: type[Record]
    folder: Path

    def __call__(self, number: int, note: Note) -> None:
        result = self.work(number, note)
        # What a power cut takes from records is worked again.
        with atomic_file(self.folder / _name(number), durable=False) as stream:
            stream.write(TypeAdapter(self.record).dump_json(result))


def _name(number: int) -> str:
    return f"{number:06d}.json"
