"""How far a build is, for people who wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline.build.reading import Step


@dataclass(frozen=True)
class BuildProgress:
    """How far the present stage of a build is.

    Attributes:
        stage: what is being done, for people.
        done_bytes: bytes worked through, of the sources as they are stored; of chunks under way, an estimate.
        total_bytes: how many there are.
        documents: worked through by this launch in this stage.
        text_bytes: of them, UTF-8.
        tokens: made of them.
        seconds: since the stage began.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    seconds: float = 0.0


class StageProgress:
    """Adds up the steps of all workers in a stage whose pieces of work read ``weights`` bytes each."""

    def __init__(
        self, stage: str, weights: Sequence[int], todo: Sequence[int], tell: Callable[[BuildProgress], None]
    ) -> None:
        self._stage, self._weights, self._tell = stage, weights, tell
        self._total = sum(weights)
        self._begun_with = self._total - sum(weights[chunk] for chunk in todo)
        self._finished = self._finished_text = 0
        self._under_way: dict[int, int] = {}
        self._documents = self._text_bytes = self._tokens = 0
        self._started = time.monotonic()

    def add(self, step: Step) -> None:
        """Count a step, and tell."""
        self._documents += step.documents
        self._text_bytes += step.text_bytes
        self._tokens += step.tokens
        text = self._under_way.pop(step.chunk, 0) + step.text_bytes
        if step.finished:
            self._finished += self._weights[step.chunk]
            self._finished_text += text
        else:
            self._under_way[step.chunk] = text
        self._tell(self._now())

    def _now(self) -> BuildProgress:
        # Compressed text takes fewer bytes than it has; how many, finished chunks tell.
        ratio = min(1.0, self._finished / self._finished_text) if self._finished_text else 1.0
        guesses = (min(self._weights[chunk], int(text * ratio)) for chunk, text in self._under_way.items())
        done = self._begun_with + self._finished + sum(guesses)
        seconds = time.monotonic() - self._started
        return BuildProgress(self._stage, done, self._total, self._documents, self._text_bytes, self._tokens, seconds)
