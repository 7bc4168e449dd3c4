"""`ptm data`: from text to token shards, and a look at what a run reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands import build_options as given
from launcher.commands import data_convert, data_look
from launcher.commands.build_progress import built, quiet_unless, shown_progress
from launcher.commands.output import JsonFlag, examples, print_json, size

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
        "ptm data build --input runs/demo/corpus.jsonl --tokenizer runs/demo/tokenizer --out runs/demo/data",
        "ptm data build --input 's3://bucket/*.parquet' --deduplicate near --tokenizer t --out d --workers 16",
        "mpirun -n 64 ptm data build --input 'corpus/*.jsonl.zst' --tokenizer t --out d",
    )
)
def build(
    inputs: given.Inputs,
    tokenizer: given.TokenizerFolder,
    out: given.Out,
    workers: given.Workers = 1,
    validation_fraction: given.ValidationFraction = 0.02,
    shard_bytes: given.ShardBytes = 64 << 20,
    text_field: given.TextField = "text",
    id_field: given.IdField = "id",
    metadata_field: given.MetadataField = None,
    txt_documents: given.TxtDocuments = "blank_line",
    normalize: given.Normalize = "none",
    min_characters: given.MinCharacters = 0,
    max_characters: given.MaxCharacters = None,
    scrub: given.Scrubs = None,
    deduplicate: given.Deduplicate = "none",
    near_threshold: given.NearThreshold = 0.8,
    overwrite: given.Overwrite = False,
    more_inputs: given.MoreInputs = None,
    as_json: JsonFlag = False,
) -> None:
    """Tokenise text into shards; the bytes are the same whatever the number of workers.

    When the command is killed, the same command goes on where it was.
    """
    from data_pipeline.build import BuildOptions, LocalTeam, build_shards, find_team
    from data_pipeline.filters import FilterOptions
    from data_pipeline.sources import SourceOptions
    from data_pipeline.tokenizers import load_tokenizer

    team = find_team(workers)
    with quiet_unless(team.is_first), team, shown_progress(team.is_first) as on_progress:
        if workers > 1 and not isinstance(team, LocalTeam):
            raise UserError(f"each MPI rank is one worker; leave out --workers {workers} and start more ranks")
        options = BuildOptions(
            source=SourceOptions(text_field, id_field, tuple(metadata_field or ()), txt_documents),
            filters=FilterOptions(
                normalize,
                min_characters,
                max_characters,
                tuple(kind.value for kind in scrub or ()),
                deduplicate,
                near_threshold,
            ),
            validation_fraction=validation_fraction,
            shard_bytes=shard_bytes,
        )
        summary = build_shards(
            [*inputs, *(more_inputs or [])],
            tokenizer=team.share(lambda: load_tokenizer(tokenizer)),
            out=out,
            options=options,
            team=team,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if team.is_first:
        print_json(summary) if as_json else print(built(summary))


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
        data.stream,
        step=step - 1 - data.phase.first_step,
        sizes=data.phase.sizes,
        dp_rank=dp_rank,
        dp_size=dp_size,
        decode=tokenizer.decode,
    )
    print_json(shown) if as_json else print(format_shown(shown))


def parse_rank(text: str) -> tuple[int, int]:
    """`1/4` is rank 1 of 4."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--rank {text}: give R/N with 0 <= R < N, such as 0/2")
    return int(match[1]), int(match[2])
