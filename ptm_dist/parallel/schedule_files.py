"""Schedules that somebody wrote: a row for each rank, an action in each cell, as torch's ``_dump_csv`` writes them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from ptm_dist.errors import LayoutError
from ptm_dist.parallel.actions import Action, Kind

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
_OVERLAPPED = re.compile(r"\((.*)\)OVERLAP_F_B")
_NOT_COMPUTED = re.compile(r"\d+(SEND_F|RECV_F|SEND_B|RECV_B|UNSHARD|RESHARD|REDUCE_GRAD)\d*")


def read_orders(file: Path) -> list[tuple[Action, ...]]:
    """What each rank does in order, by rank.

    A cell is an action such as ``0F1`` (stage 0, forward pass, micro-batch 1), two that torch overlaps such as
    ``(0F1;7B2)OVERLAP_F_B``, or empty. Messages and gathered parameters, which torch may write as well, are skipped:
    they follow from the rest.

    Raises: LayoutError if the file cannot be read, or a cell is none of these; the message says where.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LayoutError(
            f"layout.pipeline_schedule_file={file} cannot be read as CSV: {reason}; name a file with a row per rank"
        ) from error
    return [
        tuple(
            action
            for column, cell in enumerate(row, start=1)
            for action in _read_cell(cell.strip(), f"{file}, row {number}, column {column}")
        )
        for number, row in enumerate(rows, start=1)
    ]


def _read_cell(cell: str, where: str) -> Iterator[Action]:
    """The actions of a cell."""
    if not cell or _NOT_COMPUTED.fullmatch(cell):
        return
    pair = _OVERLAPPED.fullmatch(cell)
    for text in pair[1].split(";") if pair else [cell]:
        action = _ACTION.fullmatch(text.strip())
        if action is None:
            raise LayoutError(
                f"{where}: {cell!r} is not an action; write stage, letter and micro-batch, such as 0F1 (forward pass), "
                "0B1 (backward pass), 0I1 and 0W1 (its halves: of inputs, of weights), or leave the cell empty"
            )
        stage, letter, micro = action.groups()
        yield Action(Kind(letter), int(stage), int(micro))
