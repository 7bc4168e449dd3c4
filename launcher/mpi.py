"""What MPI itself says of the world that mpirun started, and where its ranks can meet.

Used for training by mpirun, where mpi4py is installed (`pip install 'ptm-dist[mpi]'`). MPI is asked at the start and
left at once: the run itself speaks over sockets or NCCL, and no thread or memory hook of MPI is in its way.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from data_pipeline.errors import UserError
from ptm_dist.training.world import World

_TRY_SECONDS = 5.0
"""How long a rank waits for an answer of rank 0 at one of its names."""
_BACKLOG = 4096
"""Ranks that may ask at the same time."""


def world_of_mpi() -> World | None:
    """This process among all that mpirun started, with an address of rank 0 that all of them have reached.

    Collective over them, once in a process. The port was free a moment ago.

    Returns: None where there is no mpi4py, or its library cannot be loaded.
    Raises: UserError on all ranks if one of them reaches rank 0 at none of its names.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    MPI.Init()
    _fall_by_signal()
    try:
        everybody = MPI.COMM_WORLD
        node = everybody.Split_type(MPI.COMM_TYPE_SHARED)
        address, port = _meet(everybody, is_one_node=node.size == everybody.size)
        return World(everybody.rank, everybody.size, node.rank, node.size, address, port, "mpirun")
    finally:
        MPI.Finalize()


def _meet(everybody: Any, is_one_node: bool) -> tuple[str, int]:
    """Where all ranks reach rank 0: the first of its names at which each of them found it."""
    with ExitStack() as stack:
        offer = stack.enter_context(_Offer()) if everybody.rank == 0 else None
        names, port, token = everybody.bcast(offer and (offer.names(is_one_node), offer.port, offer.token), 0)
        found = everybody.allgather([_answers(name, port, token) for name in names])
    reached = [name for name, answers in zip(names, zip(*found, strict=True), strict=True) if all(answers)]
    if not reached:
        rank = min(rank for rank, answers in enumerate(found) if not all(answers))
        raise UserError(
            f"mpirun: rank {rank} does not reach the machine of rank 0 as {' or '.join(names)}; export MASTER_ADDR "
            "(a name or number of it that all machines reach) and MASTER_PORT (a free port there) to all ranks"
        )
    return reached[0], port


class _Offer:
    """A free port of this machine, where whoever asks is told that this is rank 0, while the `with` block lasts."""

    def __init__(self) -> None:
        self.token = secrets.token_bytes(16)
        self._server = socket.create_server(("", 0), backlog=_BACKLOG)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    @staticmethod
    def names(is_one_node: bool) -> list[str]:
        """What others may call this machine: MASTER_ADDR, its host name, the numbers that the name stands for."""
        if is_one_node:
            return ["127.0.0.1"]
        name, numbers = socket.gethostname(), []
        with suppress(OSError):
            numbers = [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)]
        return list(dict.fromkeys([os.environ.get("MASTER_ADDR") or name, name, *numbers]))

    def _answer(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    connection.sendall(self.token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # closed alone, it would listen on while somebody accepts
        self._thread.join()
        self._server.close()


def _fall_by_signal() -> None:
    """Have an error that nobody handles end this process by SIGTERM, once it has been printed.

    MPICH's mpirun then ends the other ranks. It leaves them alone when one goes with an exit code, and they might wait
    minutes for one that will never come.
    """
    shown = sys.excepthook

    def show_and_fall(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    sys.excepthook = show_and_fall


def _answers(name: str, port: int, token: bytes) -> bool:
    """Whether rank 0, and not somebody else, listens there."""
    with suppress(OSError), socket.create_connection((name, port), _TRY_SECONDS) as connection:
        return connection.recv(len(token), socket.MSG_WAITALL) == token
    return False
