"""`ptm tokenizer`: train tokenizers, import and export them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from launcher.commands.output import JsonFlag, examples, print_json

if TYPE_CHECKING:
    from data_pipeline.tokenizers import Family

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train, import and export tokenizers.")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another tokenizer in the folder.")]


@app.callback()
def group() -> None:
    """Train, import and export tokenizers."""


@app.command(
    epilog=examples(
        'ptm tokenizer train --input "corpus/*.jsonl" --vocab-size 4096 --out runs/demo/tokenizer',
        'ptm tokenizer train --input "corpus/*.jsonl" --kind wordpiece --lowercase --vocab-size 8192 --out runs/bert',
    )
)
def train(
    inputs: Annotated[
        list[str],
        typer.Option("--input", help="File, quoted glob or URL: jsonl, txt, parquet, tar, also packed; repeatable."),
    ],
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids of the tokenizer, special ones included.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    kind: Annotated[
        str, typer.Option(help="sentencepiece-bpe, sentencepiece-unigram, bytelevel-bpe or wordpiece.")
    ] = "sentencepiece-bpe",
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Fold case and strip accents (wordpiece only).")
    ] = False,
    sample_bytes: Annotated[
        int, typer.Option(min=1, help="Of more text than this, a sample drawn by content is read.")
    ] = 256 << 20,
    overwrite: Overwrite = False,
    more_inputs: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="More inputs.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a tokenizer on text files."""
    from data_pipeline.tokenizers import train_tokenizer

    tokenizer = train_tokenizer(
        [*inputs, *(more_inputs or [])],
        kind=kind,
        vocab_size=vocab_size,
        out=out,
        limit_bytes=sample_bytes,
        lowercase=lowercase,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"path": out, "kind": kind, **vars(tokenizer.identity)})
    else:
        print(f"{kind} tokenizer of {tokenizer.vocab_size} ids in {out}")


@app.command("import", epilog=examples("ptm tokenizer import models/bert-base --out runs/bert"))
def import_(
    folder: Annotated[Path, typer.Argument(metavar="HF_FOLDER", help="Folder with a Hugging Face tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a tokenizer of a Hugging Face folder: tokenizer.json, vocab.txt, or vocab.json with merges.txt."""
    from data_pipeline.tokenizers import import_tokenizer

    tokenizer = import_tokenizer(folder, out, overwrite=overwrite)
    if as_json:
        print_json({"path": out, "kind": "huggingface", **vars(tokenizer.identity)})
    else:
        roles = ", ".join(f"{role} {token}" for role, token in sorted(tokenizer.special_ids.items()))
        print(f"tokenizer of {tokenizer.vocab_size} ids in {out} ({roles})")


@app.command(epilog=examples("ptm tokenizer export runs/bert --family bert --out models/mine"))
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Tokenizer folder.")],
    family: Annotated[
        str, typer.Option(help="Whose special tokens to put around texts: gpt, bert, roberta or albert.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into; files of a model may be there.")],
    max_positions: Annotated[int, typer.Option(min=1, help="Tokens that the model reads at once.")] = 512,
    as_json: JsonFlag = False,
) -> None:
    """Write tokenizer.json and tokenizer_config.json for the AutoTokenizer of transformers."""
    from data_pipeline.tokenizers import export_tokenizer

    export_tokenizer(folder, out, cast("Family", family), max_positions)
    if as_json:
        print_json({"path": out, "family": family, "max_positions": max_positions})
    else:
        print(f"{family} tokenizer for AutoTokenizer.from_pretrained in {out}")
