"""What a rank and the process beside it tell each other."""

from __future__ import annotations

from dataclasses import dataclass

from ptm_dist.keeper.peers import Peer
from ptm_dist.keeper.snapshots import SnapshotHeader


@dataclass(frozen=True)
class Part:
    """A tensor in a shared buffer.

    Attributes:
        pickled: how it is made of its values.
        begin: first byte of them.
        size: in bytes.
    """

    pickled: bytes
    begin: int
    size: int


@dataclass(frozen=True)
class Save:
    """Ask for files of a checkpoint, flushed to disk; answered by Saved.

    Attributes:
        buffer: number of the buffer that holds the tensors.
        folder: to write to.
        file: name of the file of tensors; there is none without parts.
        parts: of it, in this order.
        others: small files by name.
    """

    buffer: int
    folder: str
    file: str
    parts: tuple[Part, ...]
    others: dict[str, bytes]


@dataclass(frozen=True)
class Listen:
    """Ask to take snapshots of other nodes into a folder; answered by Listening.

    Attributes:
        folder: of this node.
        secret: that who sends them knows.
    """

    folder: str
    secret: str


@dataclass(frozen=True)
class Keep:
    """Ask to make a snapshot of what a buffer holds, here and at a peer; answered by Kept.

    Attributes:
        buffer: its number.
        folder: of this node.
        header: of the snapshot, without check sums.
        peer: on another node; None: there is none.
    """

    buffer: int
    folder: str
    header: SnapshotHeader
    peer: Peer | None


@dataclass(frozen=True)
class Listening:
    """Snapshots are taken at a port."""

    port: int


@dataclass(frozen=True)
class Kept:
    """There is a snapshot.

    Attributes:
        problem: why the peer has none, in words; None if it has, or if there is no peer.
    """

    problem: str | None


@dataclass(frozen=True)
class Saved:
    """Files are on the disk.

    Attributes:
        files: bytes and xxh3-128 in hex of each, by name.
    """

    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Failed:
    """The system refused something.

    Attributes:
        number: its error number; 0 if it has none.
        reason: in words.
    """

    number: int
    reason: str


Job = Save | Listen | Keep
Answer = Saved | Listening | Kept
