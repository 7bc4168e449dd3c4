"""How a run ended: in words for people, in JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptm_dist.training.run import RunSummary

_OUTCOME_FILE = "outcome.json"


def ending(summary: RunSummary) -> str:
    """One line: what was reached, and how to go on."""
    losses = [
        f", {name} {loss:.4f}"
        for name, loss in (("loss", summary.loss), ("validation loss", summary.validation_loss))
        if loss is not None
    ]
    step, results = f"step {summary.step} of {summary.total_steps}", "".join(losses)
    if summary.stop_reason is not None:
        same = "the same command" + ("" if summary.stop_reason.startswith("SIG") else " without it")
        return f"stopped at {step} by {summary.stop_reason}{results}; {same} continues"
    if summary.start_step == summary.step:
        return f"nothing to do: {summary.directory} is at {step}{results}"
    return f"finished: {step}{results} ({summary.seconds:.0f} s); everything is in {summary.directory}"


def write_outcome(summary: RunSummary) -> None:
    """Leave a run's end in its log folder, for the process that started the ranks."""
    from ptm_dist.checkpoint.files import write_atomically

    write_atomically(_path(summary.directory), json_text(summary))


def read_outcome(directory: Path) -> dict[str, Any]:
    """What :func:`write_outcome` left in a run directory."""
    outcome: dict[str, Any] = json.loads(_path(directory).read_text(encoding="utf-8"))
    return outcome


def json_text(value: object) -> str:
    """Dataclasses, pydantic models, paths, arrays and plain values as JSON."""
    return json.dumps(value, default=_plain, indent=2, ensure_ascii=False)


def _path(directory: Path) -> Path:
    from ptm_dist.training.run_directory import RunDirectory

    return RunDirectory(directory).logs / _OUTCOME_FILE


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path | Enum):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
