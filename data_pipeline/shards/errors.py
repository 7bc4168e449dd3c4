"""What is wrong with a file of a data set, and the error of a shard that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.errors import DataError

ADVICE = "copy it again or build the data again"


class BrokenShard(DataError):  # noqa: N818 -- what is raised is the state of a shard, not a mistake
    """A shard is damaged, missing or cannot be fetched; a run may go on without it.

    Attributes:
        shard: its file name, as in the manifest.
    """

    def __init__(self, shard: str, message: str) -> None:
        super().__init__(message)
        self.shard = shard

    def __reduce__(self) -> tuple[type[BrokenShard], tuple[str, str]]:
        # Exceptions are rebuilt from what they print, which here is not what they were made of.
        return type(self), (self.shard, str(self))


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a file.

    Attributes:
        file: its path.
        message: the whole sentence, with what to do.
        what: the same without the file's name and what to do.
        member: the part of a shard that is concerned, without the key; None for the file as a whole.
        begin: first byte in the file that is wrong, or of the block that is; None if no bytes can be named.
        end: the byte behind the last.
    """

    file: str
    message: str
    what: str
    member: str | None = None
    begin: int | None = None
    end: int | None = None

    @classmethod
    def of_file(cls, file: str, message: str) -> Damage:
        """Something that concerns a file as a whole."""
        return cls(file, message, message)

    @classmethod
    def of_bytes(cls, file: str, part: str, member: str | None, begin: int, end: int, cause: str) -> Damage:
        """Damage of the bytes [begin, end) of a shard file, in the `part` of it that has to do with `member`."""
        place = f"byte {begin}" if end == begin + 1 else f"bytes {begin} to {end - 1}"
        what = f"{part}, {place} of the file: {cause}"
        return cls(file, f"shard {file} is damaged: {what}; {ADVICE}", what, member, begin, end)

    @classmethod
    def of_member(cls, file: str, key: str, member: str, begin: int, end: int) -> Damage:
        """Bytes [begin, end) of a shard file, data of `member`, that do not have their hash."""
        return cls.of_bytes(file, f"member {key}.{member}", member, begin, end, "not the data with the stored hash")

    def range_of(self, size: int) -> tuple[int, int]:
        """The bytes [begin, end) of a file of `size` bytes that are concerned: all, if none can be named."""
        return (0, size) if self.begin is None or self.end is None else (self.begin, self.end)

    def __str__(self) -> str:
        return self.message
