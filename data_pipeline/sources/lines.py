"""Lines of a stream with their places, from any byte on; the ground under JSON lines and plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.streams import DAMAGE, damaged

_BLOCK = 1 << 20
_LOOK_BACK = 4 << 10


class Line(NamedTuple):
    """A line of text.

    Attributes:
        text: its characters with the line end.
        offset: position of its first byte in the (unpacked) file.
        number: of the line, from 1; None where the lines before were not read.
    """

    text: str
    offset: int
    number: int | None

    def where(self, file: SourceFile) -> str:
        """Its place for messages: ``file:line``, or ``file at byte N``."""
        return f"{file.place} at byte {self.offset}" if self.number is None else f"{file.place}:{self.number}"


def read_lines(file: SourceFile, stream: BinaryIO, begin: int, end: int | None) -> Iterator[Line]:
    r"""Lines whose first byte lies in ``[begin, end)``; ``\n`` ends a line.

    Args:
        file: what is read, for messages.
        stream: its bytes, unpacked; readable from anywhere unless ``begin`` is 0.
        begin: first byte.
        end: byte after the last one, None: the end of the file.

    Raises: DataError naming the place of what is damaged or not UTF-8.
    """
    last: Line | None = None
    try:
        offset = first_line(stream, begin, end)
        number = None if begin else 1
        while end is None or offset < end:
            raw = stream.readline()
            if not raw:
                return
            last = _decode(file, raw, offset, number)
            yield last
            offset += len(raw)
            number = number and number + 1
    except DAMAGE as error:
        raise damaged(f"after {last.where(file)}" if last else file.place, error) from error


def first_line(stream: BinaryIO, begin: int, end: int | None) -> int:
    """Offset of the first line that begins at ``begin`` or after it; ``end`` or more if none begins before ``end``."""
    if begin == 0:
        return 0
    stream.seek(begin - 1)
    offset = begin - 1
    while end is None or offset < end:
        block = stream.readline(_BLOCK)
        offset += len(block)
        if not block or block.endswith(b"\n"):
            break
    return offset


def follows_text(stream: BinaryIO, line: int) -> bool:
    """Whether the line before the one that begins at byte ``line`` has more than white space.

    Reads backwards, and no further than the nearest visible character.
    """
    fragment, at = b"", line - 1
    while at > 0:
        size = min(_LOOK_BACK, at)
        at -= size
        stream.seek(at)
        block = stream.read(size)
        cut = block.rfind(b"\n")
        fragment = block[cut + 1 :] + fragment
        if fragment.decode("utf-8-sig" if at == 0 and cut < 0 else "utf-8", "ignore").strip():
            return True
        if cut >= 0:
            return False
    return False


def _decode(file: SourceFile, raw: bytes, offset: int, number: int | None) -> Line:
    try:
        # utf-8-sig drops the byte order mark that some editors put before the first line.
        return Line(raw.decode("utf-8-sig" if offset == 0 else "utf-8"), offset, number)
    except UnicodeDecodeError as error:
        where = Line("", offset, number).where(file)
        raise DataError(f"{where}: not UTF-8 (byte {error.start} of the line); convert the file") from error
