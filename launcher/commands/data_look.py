"""`ptm data verify`, `inspect`, `stats`: what lies in a folder of token shards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json, size

if TYPE_CHECKING:
    from data_pipeline.shards.describe import SetDescription
    from data_pipeline.shards.statistics import SetStatistics

_SOURCES_SHOWN = 10

Shards = Annotated[Path, typer.Argument(help="Folder that `ptm data build` wrote, or one part of it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `ptm data`."""
    app.command(epilog=examples("ptm data verify runs/demo/data", "ptm data verify runs/demo/data --workers 16"))(
        verify
    )
    app.command(epilog=examples("ptm data inspect runs/demo/data"))(inspect)
    app.command(epilog=examples("ptm data stats runs/demo/data --out runs/demo/lengths.png"))(stats)


def verify(
    folder: Shards,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Read every byte of the shards and compare hashes; exit code 2 if something is wrong."""
    from data_pipeline.shards import verify as verify_shards
    from data_pipeline.shards.verify import parts_of, surplus

    parts = parts_of(folder)
    problems = surplus(folder)
    with _progress(parts) as show:
        for part in parts:
            problems += verify_shards(part, workers=workers, on_progress=show)
    if as_json:
        print_json({"folders": parts, "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise UserError("\n".join(map(str, problems)))
    for description in _described(parts):
        print(f"{description.folder}: sound; {description.documents:,} documents, {description.tokens:,} tokens")


def inspect(folder: Shards, as_json: JsonFlag = False) -> None:
    """Say what the shards are: tokenizer, counts, sources and options of the build; no text is read."""
    from data_pipeline.shards.verify import parts_of

    parts = _described(parts_of(folder))
    if as_json:
        print_json(parts)
        return
    columns = [_inspected(part) for part in parts]
    names = list(dict.fromkeys(name for column in columns for name in column))
    _print_facts([(name, [column.get(name, "-") for column in columns]) for name in names])


def stats(
    folder: Shards,
    out: Annotated[Path | None, typer.Option(help="Picture to draw (.png).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Count tokens per document and what each source file gave; no text is read."""
    from data_pipeline.shards.statistics import statistics
    from data_pipeline.shards.verify import parts_of

    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give the name of a .png file")
    parts = [statistics(part) for part in parts_of(folder)]
    if out is not None:
        from launcher.shard_plot import plot_statistics

        plot_statistics(parts, out)
    if as_json:
        print_json(parts)
        return
    for part in parts:
        _print_statistics(part)
    if out is not None:
        print(f"picture: {out}")


def _described(parts: Sequence[Path]) -> list[SetDescription]:
    from data_pipeline.shards.describe import describe

    return [describe(part) for part in parts]


def _inspected(part: SetDescription) -> dict[str, str]:
    sources = part.sources[:_SOURCES_SHOWN]
    more = len(part.sources) - len(sources)
    special = (f"{role.replace('_', ' ')} {number}" for role, number in part.tokenizer.special_ids.items())
    return {
        "folder": part.folder,
        "format": str(part.format),
        "shards": f"{part.shards:,}",
        "size": f"{size(part.bytes)}, {part.token_dtype} tokens",
        "documents": f"{part.documents:,}",
        "sentences": f"{part.sentences:,}",
        "tokens": f"{part.tokens:,}",
        "tokenizer": part.tokenizer.sha256[:12],
        "vocabulary": f"{part.tokenizer.vocab_size:,}",
        "special ids": ", ".join(special) or "-",
        "sources": ", ".join(sources) + (f" and {more:,} more" if more else "") if sources else "-",
        **dict(_options(part.build)),
        "fingerprint": part.fingerprint[:12],
    }


def _options(build: Mapping[str, object], group: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a build as rows of names and values; those of a group get its name in front."""
    for name, value in build.items():
        label = f"{group}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _options(value, "" if name == "options" else f"{label} ")
        else:
            yield label, _option(value)


def _option(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_option, value)) or "-"
    return "-" if value is None else str(value)


def _print_facts(rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print a column for each part; what all parts have in common is said once, and may be longer than a column."""
    margin = max(len(name) for name, _ in rows)
    different = [cells for _, cells in rows if len(set(cells)) > 1]
    widths = [max(map(len, column)) for column in zip(*different, strict=True)]
    for name, cells in rows:
        shown = (
            [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)] if cells in different else cells[:1]
        )
        print("  ".join([f"{name:<{margin}}", *shown]).rstrip())


def _print_statistics(part: SetStatistics) -> None:
    print(f"{part.folder}: {part.documents:,} documents, {part.tokens:,} tokens")
    middle = "  ".join(f"{percent}%: {tokens:,}" for percent, tokens in part.percentiles.items())
    print(f"tokens per document: {part.shortest:,} to {part.longest:,}; percentiles  {middle}\n")
    rows = [
        (f"{row.low:,} - {row.high:,}", *_counts(row.documents, part.documents), *_counts(row.tokens, part.tokens))
        for row in part.lengths
    ]
    _print_right([("tokens each", "documents", "share", "tokens", "share"), *rows])
    largest = sorted(part.sources, key=lambda source: -source.tokens)
    shown = [
        (source.name, *_counts(source.documents, part.documents), *_counts(source.tokens, part.tokens))
        for source in largest[:_SOURCES_SHOWN]
    ]
    if shown:
        print()
        _print_right([("source", "documents", "share", "tokens", "share"), *shown])
    if len(largest) > len(shown):
        print(f"and {len(largest) - len(shown):,} smaller sources (all of them with --json)")
    print()


def _counts(count: int, total: int) -> tuple[str, str]:
    return f"{count:,}", f"{count / total:.1%}"


def _print_right(rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose columns but the first stand right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([f"{first:<{widths[0]}}", *cells]))


@contextmanager
def _progress(parts: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal, nothing elsewhere; takes the bytes of each file that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    with Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        total = sum(path.stat().st_size for part in parts for path in part.glob("*.tar"))
        task = progress.add_task("", total=total)
        yield lambda done: progress.advance(task, done)
