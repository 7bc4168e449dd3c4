"""`ptm data import` and `export`: token ids from and to the formats of other programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json

if TYPE_CHECKING:
    from data_pipeline.interop import ImportCounts, ImportSummary
    from data_pipeline.interop.options import Sequences

Format = Annotated[str, typer.Option(help="megatron, mds, olmo, parquet or jsonl.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a folder of that name.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `ptm data`."""
    app.command(
        "export",
        epilog=examples(
            "ptm data export runs/demo/data --format megatron --out runs/demo/megatron",
            "ptm data export runs/demo/data --format parquet --tokenizer runs/demo/tokenizer --out runs/demo/parquet",
        ),
    )(export)
    app.command(
        "import",
        epilog=examples(
            "ptm data import corpus_text_document.idx --format megatron --tokenizer runs/gpt/tokenizer --out runs/gpt",
            "ptm data import train-*.npy --format olmo --tokenizer runs/gpt/tokenizer --out runs/gpt/data",
        ),
    )(import_)


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `ptm data build` wrote, or one part.")],
    format: Format,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the shards' tokenizer; adds a column text (parquet, jsonl).")
    ] = None,
    part: Annotated[str | None, typer.Option(help="train or validation alone.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored type of ids, such as int32 (megatron, mds, olmo).")] = None,
    sequences: Annotated[
        str, typer.Option(help="What is one sequence (megatron): document, or sentence, as for BERT.")
    ] = "document",
    without_ends: Annotated[
        bool, typer.Option("--without-ends", help="Leave out the end-of-document id after each document.")
    ] = False,
    file_bytes: Annotated[int | None, typer.Option(min=1, help="Begin a new file after so many bytes.")] = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the token ids of shards in another format."""
    from data_pipeline.interop import ExportOptions, export_shards
    from data_pipeline.tokenizers import load_tokenizer

    options = ExportOptions(part, dtype, cast("Sequences", sequences), not without_ends, file_bytes)
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    with _progress("exported") as show:
        summary = export_shards(folder, format, out, options, tokenizer=loaded, overwrite=overwrite, on_progress=show)
    if as_json:
        print_json(summary)
        return
    print(f"{summary.path}: {format}, written in {summary.seconds:.1f} s")
    _print_parts(summary.documents, summary.tokens)


def import_(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files of the format, or folders of them.")],
    format: Format,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer that made the ids.")],
    out: Annotated[Path, typer.Option(help="Folder to write: train/ and validation/.")],
    validation: Annotated[
        list[Path] | None, typer.Option(help="Files to hold out for validation, of the same format; repeatable.")
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.5, help="Share of the documents to hold out; 0: none.  [default: 0.02]"),
    ] = None,
    sentences: Annotated[
        bool, typer.Option("--sentences", help="Decode the documents and look for sentences.")
    ] = False,
    column: Annotated[str | None, typer.Option(help="Column of the ids (mds, parquet, jsonl).")] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored type of ids (olmo, and column bytes of mds).")] = None,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a shard is closed.")] = 1 << 24,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Make shards of documents that are token ids already."""
    from data_pipeline.interop import ImportOptions, import_tokens
    from data_pipeline.tokenizers import load_tokenizer

    if validation and validation_fraction is not None:
        raise UserError("--validation and --validation-fraction both say what to hold out; give one of them")
    fraction = 0.02 if validation_fraction is None else validation_fraction
    options = ImportOptions(fraction, validation or (), sentences, shard_tokens, column, dtype)
    with _progress("imported") as show:

        def count(counts: ImportCounts) -> None:
            show(counts.tokens, None)

        summary = import_tokens(
            paths, format, load_tokenizer(tokenizer), out, options, overwrite=overwrite, on_progress=count
        )
    if as_json:
        print_json(summary)
        return
    print(f"{summary.path}: made of {format} in {summary.seconds:.1f} s")
    _print_parts(summary.documents, summary.tokens)
    for line in _changes(summary):
        print(f"  {line}")


def _print_parts(documents: dict[str, int], tokens: dict[str, int]) -> None:
    for name, count in documents.items():
        print(f"  {name:<11} {count:,} documents, {tokens[name]:,} tokens")


def _changes(summary: ImportSummary) -> Iterator[str]:
    """What was not taken as it was, one sentence each."""
    counts = summary.counts
    if counts.ends_added:
        yield f"the end-of-document id was added to {counts.ends_added:,} documents"
    if counts.empty:
        yield f"{counts.empty:,} documents without a token were left out"
    if counts.unsplit:
        yield f"{counts.unsplit:,} documents are one sentence: their text does not give the same ids again"


@contextmanager
def _progress(verb: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing elsewhere; takes the tokens that are done, and those there are if known."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.fields[count]} tokens " + verb),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None, count="0")

        def show(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total, count=f"{done:,}")

        yield show
