"""A map over worker processes that keeps the order, bounds the memory and leaves no process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from data_pipeline.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Apply a function to items on ``workers`` processes; results come in the order of the items.

    At most ``workers + 1`` items are under way. One worker means this process. When the iterator is closed early or
    this process dies, even by SIGKILL, the workers end at once.

    Args:
        function: picklable, like the items and the results.
        items: read on as results are taken.
        workers: processes, started by ``spawn``.

    Raises: what ``function`` raises; DataError if a worker is killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_tie_to, initargs=(lifeline,))
    try:
        yield from _submit_all(pool, function, items, workers + 1)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, probably for want of memory; use fewer workers or smaller shards"
        ) from error
    except BaseException:
        held.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        held.close()
        lifeline.close()


def _submit_all(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _tie_to(lifeline: Connection) -> None:
    # The parent alone answers Ctrl-C; it lets go of the lifeline, also when it is killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    wait([lifeline])
    os._exit(1)
