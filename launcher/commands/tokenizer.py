"""`ptm tokenizer`: train tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.output import JsonFlag, examples, print_json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train tokenizers.")


@app.callback()
def group() -> None:
    """Train tokenizers."""


@app.command(
    epilog=examples('ptm tokenizer train --input "corpus/*.jsonl" --vocab-size 4096 --out runs/demo/tokenizer')
)
def train(
    inputs: Annotated[list[str], typer.Option("--input", help="File or quoted glob (.jsonl, .txt, .gz); repeatable.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids of the tokenizer, special ones included.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    kind: Annotated[str, typer.Option(help="sentencepiece-bpe or sentencepiece-unigram.")] = "sentencepiece-bpe",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a tokenizer of other text.")] = False,
    more_inputs: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="More inputs.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a tokenizer on text files."""
    from data_pipeline.tokenizers import train_tokenizer

    tokenizer = train_tokenizer(
        [*inputs, *(more_inputs or [])], kind=kind, vocab_size=vocab_size, out=out, overwrite=overwrite
    )
    if as_json:
        print_json({"path": out, "kind": kind, **vars(tokenizer.identity)})
    else:
        print(f"{kind} tokenizer of {tokenizer.vocab_size} ids in {out}")
