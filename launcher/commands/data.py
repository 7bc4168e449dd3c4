"""`ptm data`: from text to token shards, and a look at what a run reads."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands import data_convert, data_look
from launcher.commands.output import JsonFlag, examples, print_json, size

if TYPE_CHECKING:
    from data_pipeline.build import BuildProgress

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, check and look at training data.")
corpus = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write corpora that need no download.")
app.add_typer(corpus, name="corpus")
data_look.register(app)
data_convert.register(app)


@corpus.callback()
def corpus_group() -> None:
    """Write corpora that need no download."""


@corpus.command(epilog=examples("ptm data corpus stdlib --out runs/demo/corpus.jsonl"))
def stdlib(
    out: Annotated[Path, typer.Option(help="File to write (.jsonl).")],
    source_text: Annotated[bool, typer.Option("--source-text", help="Add the source files (11 MB).")] = False,
    docstrings: Annotated[
        bool, typer.Option("--docstrings", help="One document per docstring instead of one per module.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the documentation of Python's standard library as a corpus: about 2.4 MB of English prose."""
    from data_pipeline.corpora import write_stdlib_corpus

    summary = write_stdlib_corpus(out, source_text=source_text, unit="docstring" if docstrings else "module")
    if as_json:
        print_json(summary)
    else:
        print(f"{summary.documents} documents, {size(summary.bytes)} of text in {summary.path}")


@app.command(
    epilog=examples(
        "ptm data build --input runs/demo/corpus.jsonl --tokenizer runs/demo/tokenizer --out runs/demo/data"
    )
)
def build(
    inputs: Annotated[list[str], typer.Option("--input", help="File or quoted glob (.jsonl, .txt, .gz); repeatable.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder that `ptm tokenizer train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write: train/ and validation/.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise.")] = 1,
    validation_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of the documents held out for validation.")
    ] = 0.02,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards of other inputs.")] = False,
    more_inputs: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="More inputs.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tokenise text into shards; the bytes are the same whatever the number of workers."""
    from data_pipeline.build import build_shards
    from data_pipeline.tokenizers import load_tokenizer

    summary = build_shards(
        [*inputs, *(more_inputs or [])],
        tokenizer=load_tokenizer(tokenizer),
        tokenizer_folder=tokenizer,
        out=out,
        validation_fraction=validation_fraction,
        workers=workers,
        overwrite=overwrite,
        on_progress=_show_progress if sys.stderr.isatty() else None,
    )
    if as_json:
        print_json(summary)
        return
    made = "was there already, made of the same" if summary.reused else f"made in {summary.seconds:.1f} s"
    print(f"{summary.path}: {made}\n  train       {summary.train}\n  validation  {summary.validation}")


@app.command(
    epilog=examples(
        "ptm data show configs/demo/gpt.yaml --step 100",
        "ptm data show configs/demo/gpt.yaml --step 100 --rank 1/2 --json",
    )
)
def show(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace the recipe's.")
    ] = None,
    step: Annotated[int, typer.Option(min=1, help="Step as in metrics.jsonl: the first is 1.")] = 1,
    rank: Annotated[str, typer.Option(metavar="R/N", help="Data-parallel rank of how many, from 0.")] = "0/1",
    as_json: JsonFlag = False,
) -> None:
    """Print the exact samples that a rank reads in a step, decoded."""
    from data_pipeline.show import format_shown, show_step
    from data_pipeline.tokenizers import load_tokenizer
    from ptm_dist.recipe.loading import load_recipe
    from ptm_dist.training.data import RecipeData

    dp_rank, dp_size = parse_rank(rank)
    loaded = load_recipe(recipe, overrides or [])
    tokenizer = load_tokenizer(loaded.data.tokenizer)
    data = RecipeData(loaded).phase_at(step - 1)
    shown = show_step(
        data.samples,
        data.order,
        step=step - 1 - data.phase.first_step,
        sizes=data.phase.sizes,
        dp_rank=dp_rank,
        dp_size=dp_size,
        decode=tokenizer.decode,
    )
    print_json(shown) if as_json else print(format_shown(shown))


def _show_progress(progress: BuildProgress) -> None:
    done = f"{progress.shards} shards, {progress.tokens:,} tokens, {size(progress.text_bytes)} of text"
    print(f"\r{done}, {progress.seconds:.0f} s ", end="", file=sys.stderr, flush=True)


def parse_rank(text: str) -> tuple[int, int]:
    """`1/4` is rank 1 of 4."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--rank {text}: give R/N with 0 <= R < N, such as 0/2")
    return int(match[1]), int(match[2])
