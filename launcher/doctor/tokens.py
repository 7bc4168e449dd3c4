"""Do all nodes see one run directory? Each leaves a token there, and later looks for those of the others.

First :func:`write_token` on all nodes, then :func:`missing_tokens` on all, then :func:`remove_token`; who conducts the
examination sees to the order, and has :func:`launcher.doctor.compare.compare` judge.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from data_pipeline.errors import UserError
from launcher.doctor.storage import file_name, reason, write

_POLL_SECONDS = 0.1


class TokenError(UserError):
    """A node cannot leave its token in the run directory."""


def write_token(run_directory: Path, node: str, examination: str = "") -> None:
    """Leave this node's token.

    Args:
        run_directory: exists; here it is, or is not, the same as on other nodes.
        node: this one.
        examination: the same on all nodes and new each time, so that tokens of earlier times mean nothing.

    Raises: TokenError if it cannot.
    """
    path = _token(run_directory, node, examination)
    try:
        write(path, f"{time.time()}\n".encode())
    except OSError as error:
        raise TokenError(f"{node} cannot write to {run_directory}: {reason(error)}") from error


def missing_tokens(
    run_directory: Path, nodes: Collection[str], examination: str = "", patience: float = 3.0
) -> frozenset[str]:
    """The nodes whose tokens cannot be seen from here, when all have left theirs.

    Args:
        run_directory: as in :func:`write_token`.
        nodes: all that left a token.
        examination: as in :func:`write_token`.
        patience: seconds; network file systems show new files late.
    """
    deadline = time.monotonic() + patience
    while True:
        missing = _not_listed(run_directory, nodes, examination)
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(_POLL_SECONDS)


def remove_token(run_directory: Path, node: str, examination: str = "") -> None:
    """Take this node's token away, when all have looked."""
    with suppress(OSError):
        _token(run_directory, node, examination).unlink()


def _not_listed(run_directory: Path, nodes: Collection[str], examination: str) -> frozenset[str]:
    # Listing asks the server again; looking a single name up may answer from what this machine remembers.
    try:
        listed = {path.name for path in run_directory.iterdir()}
    except OSError:
        listed = set()
    return frozenset(node for node in nodes if _token(run_directory, node, examination).name not in listed)


def _token(run_directory: Path, node: str, examination: str) -> Path:
    return run_directory / ".".join(["", "doctor", *([examination] if examination else []), file_name(node)])
