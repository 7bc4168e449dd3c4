"""`ptm data verify`, `inspect`, `stats`: what lies in a folder of token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json

Shards = Annotated[Path, typer.Argument(help="Folder that `ptm data build` wrote, or one part of it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `ptm data`."""
    app.command(epilog=examples("ptm data verify runs/demo/data"))(verify)


def verify(folder: Shards, as_json: JsonFlag = False) -> None:
    """Read every byte of the shards and compare hashes; exit code 2 if something is wrong."""
    from data_pipeline.shards import ShardSet
    from data_pipeline.shards import verify as verify_shards

    parts = shard_folders(folder)
    problems = [problem for part in parts for problem in verify_shards(part)]
    if as_json:
        print_json({"folders": parts, "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise UserError("\n".join(problems))
    for part in parts:
        shards = ShardSet.open(part)
        print(f"{part}: sound; {shards.num_documents:,} documents, {shards.num_tokens:,} tokens")


def shard_folders(folder: Path) -> list[Path]:
    """The folders with a manifest in what `ptm data build` wrote; the folder itself if it has no parts."""
    parts = [folder / name for name in ("train", "validation") if (folder / name).is_dir()]
    return parts or [folder]
