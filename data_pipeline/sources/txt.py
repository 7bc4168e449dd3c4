"""Plain text: documents parted by blank lines, one per line, or one per file."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.sources.document import Document, SourceOptions
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.lines import Line, first_line, follows_text, read_lines
from data_pipeline.sources.streams import opened, reading


def read_txt(file: SourceFile, options: SourceOptions, begin: int, end: int | None) -> Iterator[Document]:
    r"""Documents whose first line begins in bytes ``[begin, end)``; blank ones are left out.

    Line ends inside a document become ``\\n``, the last one is dropped.

    Raises: DataError naming the line that is not UTF-8.
    """
    with opened(file) as stream:
        if options.txt_documents == "line":
            groups: Iterator[list[Line]] = ([line] for line in read_lines(file, stream, begin, end))
        elif options.txt_documents == "file":
            groups = iter([list(read_lines(file, stream, 0, None))])
        else:
            with reading(file):
                first = first_line(stream, begin, end)
                inside = follows_text(stream, first)
            groups = _paragraphs(read_lines(file, stream, first, None), end, inside=inside)
        for lines in groups:
            text = "\n".join(line.text.removesuffix("\n").removesuffix("\r") for line in lines)
            if text.strip():
                yield Document(f"{file.place}@{lines[0].offset}", text)


def _paragraphs(lines: Iterator[Line], end: int | None, *, inside: bool) -> Iterator[list[Line]]:
    paragraph: list[Line] = []
    for line in lines:
        if not paragraph and end is not None and line.offset >= end:
            return
        if not line.text.strip():
            inside = False
            yield paragraph
            paragraph = []
        elif not inside:
            paragraph.append(line)
    yield paragraph
