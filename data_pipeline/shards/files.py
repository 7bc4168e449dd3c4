"""Where the files of a data set come from: a folder here, or anything else that can put a whole file on this disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_pipeline.shards.errors import BrokenShard
from data_pipeline.shards.manifest import ShardEntry, manifest_text


class ShardFiles(Protocol):
    """The files of one data set; readers ask it for a path and map that file.

    A file may be unlinked while it is mapped. Implementations can be pickled.
    """

    @property
    def location(self) -> str:
        """Folder or URL, for messages."""
        ...

    def manifest_text(self) -> str:
        """The content of ``manifest.json``.

        Raises: DataError if there is none or it cannot be read.
        """
        ...

    def local_path(self, entry: ShardEntry) -> Path:
        """A shard as a whole file of the right size on this machine, fetched if need be.

        Raises: BrokenShard if it is missing, of another size, or cannot be fetched.
        """
        ...


@runtime_checkable
class MemberFiles(ShardFiles, Protocol):
    """Files of which single members can be had without the whole shard."""

    def members(self, entry: ShardEntry, names: Sequence[str]) -> Mapping[str, bytes]:
        """The content of some members of a shard, by name without the key.

        Raises: BrokenShard if they cannot be had.
        """
        ...


class LocalFiles:
    """Shards in a folder of this machine.

    Attributes:
        directory: the folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def location(self) -> str:
        """The folder, for messages."""
        return str(self.directory)

    def manifest_text(self) -> str:
        """The content of ``manifest.json``.

        Raises: DataError if there is none or it cannot be read.
        """
        return manifest_text(self.directory)

    def local_path(self, entry: ShardEntry) -> Path:
        """The path of a shard whose size is that of the manifest; its bytes are not read.

        Raises: BrokenShard if it is missing or of another size.
        """
        path = self.directory / entry.name
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise BrokenShard(
                entry.name,
                f"shard {path} is missing ({entry.bytes} bytes expected); copy it again or build the data again",
            ) from None
        except OSError as error:
            raise BrokenShard(
                entry.name,
                f"cannot read shard {path}: {error.strerror}; check the disk and the rights, or copy it again",
            ) from error
        check_size(path, found, entry)
        return path


def check_size(path: Path, found: int, entry: ShardEntry) -> None:
    """Raise BrokenShard unless a shard's file has `found` bytes as the manifest says.

    A file cut short would end a process that reads its map with a bus error, hence this look before mapping.
    """
    if found != entry.bytes:
        raise BrokenShard(
            entry.name,
            f"shard {path} is damaged: it has {found} bytes, {entry.bytes} expected; "
            "copy it again or build the data again",
        )
