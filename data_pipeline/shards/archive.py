"""Where everything lies in a shard file: USTAR headers, members and padding follow from keys and sizes alone."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BLOCK = 512
"""Tar archives are made of blocks of this many bytes, and every member's data starts on one."""


@dataclass(frozen=True)
class Layout:
    """Where the members of an archive lie.

    Attributes:
        offsets: of each member's first byte in the file, by name, in the order of the file.
        bytes: size of the file.
    """

    offsets: dict[str, int]
    bytes: int


def layout(sizes: Mapping[str, int]) -> Layout:
    """Where members of these sizes, in this order, lie in an archive."""
    offsets = {}
    end = 0
    for name, size in sizes.items():
        offsets[name] = end + BLOCK
        end += BLOCK + size + padding(size)
    end += 2 * BLOCK
    return Layout(offsets, end + -end % tarfile.RECORDSIZE)


def header(name: str, size: int) -> bytes:
    """The block that stands before a member: no times, no users, the same on every machine.

    Raises:
        ValueError: the name is too long or the size too large for USTAR.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    info.uname = info.gname = ""
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> int:
    """Zeros that follow a member of `size` bytes."""
    return -size % BLOCK


@dataclass(frozen=True)
class Frame:
    """Bytes of an archive that belong to no member.

    Attributes:
        part: what they are, in words.
        member: the member that they belong to, without its key; None at the end of the archive.
        begin: where they lie in the file.
        content: what they must be.
    """

    part: str
    member: str | None
    begin: int
    content: bytes


def frames(key: str, sizes: Mapping[str, int]) -> Iterator[Frame]:
    """All bytes of an archive between the members' data, ascending.

    Args:
        key: what stands before the first dot of every member name.
        sizes: of the members, by name without the key, in the order of the file.
    """
    place = layout(sizes)
    end = 0
    for name, size in sizes.items():
        offset = place.offsets[name]
        yield Frame(f"header of {key}.{name}", name, offset - BLOCK, header(f"{key}.{name}", size))
        end = offset + size + padding(size)
        yield Frame(f"padding of {key}.{name}", name, offset + size, bytes(padding(size)))
    yield Frame("end of the archive", None, end, bytes(place.bytes - end))
