"""Work spread over processes: they take items as they get free, report as they go, and never outlive their parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from data_pipeline.errors import DataError

Item = TypeVar("Item")
Note = Callable[[Any], None]
"""Tells the process that gave the work how far it is; the value must be picklable."""

_KILLED = "a worker process was killed, probably for want of memory; use fewer workers or smaller shards"


def run_on_processes(
    function: Callable[[Item, Note], None], items: Sequence[Item], workers: int, on_note: Note
) -> None:
    """Apply a function to all items on ``workers`` processes, each of which takes the next item when it is free.

    When this call ends early or this process dies, even by SIGKILL, the workers end at once.

    Args:
        function: gets an item and a way to send notes; sent to each process once, picklable like the items.
        items: begun in this order.
        workers: processes, started by ``spawn``.
        on_note: called here with every note, in the order in which they arrive.

    Raises: what ``function`` raises; DataError if a worker is killed.
    """
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    crew: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(min(workers, len(items))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, lifeline, function), daemon=True)
            process.start()
            theirs.close()
            crew[ours] = process
        _hand_out(list(crew), iter(items), on_note)
    finally:
        held.close()
        for connection, process in crew.items():
            process.join()
            connection.close()
        lifeline.close()


def _hand_out(crew: list[Connection], items: Iterator[Item], on_note: Note) -> None:
    """Give every worker an item whenever it asks for one, until none is left and all have asked in vain."""
    while crew:
        for connection in wait(crew):
            assert isinstance(connection, Connection)
            kind, value = _receive(connection)
            if kind == "note":
                on_note(value)
            elif kind == "error":
                raise _revived(value)
            elif (item := next(items, crew)) is not crew:
                connection.send(item)
            else:
                crew.remove(connection)


def _receive(connection: Connection) -> tuple[str, Any]:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise DataError(_KILLED) from error
    return kind, value


def _revived(value: tuple[bytes, str]) -> BaseException:
    pickled, trace = value
    try:
        error = pickle.loads(pickled)
    except Exception:  # errors that cannot be pickled come in every kind
        return RuntimeError(trace)
    assert isinstance(error, BaseException)
    error.__cause__ = RuntimeError(trace)
    return error


def _serve(connection: Connection, lifeline: Connection, function: Callable[[Any, Note], None]) -> None:
    _tie_to(lifeline)
    while True:
        connection.send(("free", None))
        item = connection.recv()
        try:
            function(item, lambda value: connection.send(("note", value)))
        except Exception as error:
            connection.send(("error", (_pickled(error), traceback.format_exc())))


def _pickled(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # the text of the traceback goes in its place
        return b""


def _tie_to(lifeline: Connection) -> None:
    # The parent alone answers Ctrl-C; it lets go of the lifeline, also when it is killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    wait([lifeline])
    os._exit(1)
