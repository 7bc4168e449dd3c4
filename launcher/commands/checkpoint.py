"""`ptm checkpoint`: what a run has saved, and the way to other programs and back."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands import checkpoint_tools
from launcher.commands.output import JsonFlag, examples, print_json, print_table, size

if TYPE_CHECKING:
    from ptm_dist.checkpoint import CheckpointInfo
    from ptm_dist.recipe.schema import ModelSection

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at what a run has saved; export and import it."
)
checkpoint_tools.register(app)


class Format(StrEnum):
    """Folders of other programs."""

    HF = "hf"
    """What Hugging Face transformers loads and saves."""
    DEEPSPEED = "deepspeed"
    """Universal checkpoints: weights and optimizer state."""


FormatOption = Annotated[
    Format,
    typer.Option("--format", help="hf: what Hugging Face transformers loads. deepspeed: a universal checkpoint."),
]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a text like `500MB` or `2GiB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?B|)", text.strip().upper())
    count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 1:
        raise typer.BadParameter(f"{text!r} is no size; use a number with KB, MB, GB, KiB, MiB or GiB, like 2GB")
    return count


@app.command("list", epilog=examples("ptm checkpoint list runs/demo-gpt"))
def list_(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    as_json: JsonFlag = False,
) -> None:
    """List the complete checkpoints of a run, oldest first."""
    from ptm_dist.checkpoint import best, list_checkpoints

    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not folder.is_dir():
        raise UserError(f"{run}: no such run directory")
    found = list_checkpoints(folder)
    if as_json:
        print_json([_entry(info) for info in found])
        return
    lowest = best(folder)
    rows = [
        (
            info.path.name,
            info.step,
            "-" if info.validation_loss is None else f"{info.validation_loss:.4f}",
            size(_bytes(info)),
            info.manifest.saved_at,
            info.manifest.layout,
            "best" if lowest is not None and info.step == lowest.step else "",
        )
        for info in found
    ]
    if rows:
        print_table([("checkpoint", "step", "validation loss", "size", "saved at", "layout", ""), *rows])
    else:
        print(f"no complete checkpoint in {folder}")


@app.command(
    epilog=examples(
        "ptm checkpoint show runs/demo-gpt", "ptm checkpoint show runs/demo-gpt/checkpoints/step-00000150 --verify"
    )
)
def show(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, or run directory (its newest).")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare hashes.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a checkpoint holds and by which layout it was saved."""
    from ptm_dist.checkpoint import find_checkpoint
    from ptm_dist.checkpoint import verify as find_problems

    info = find_checkpoint(checkpoint)
    problems = find_problems(info.path) if verify else []
    if problems:
        raise UserError("\n".join(problems))
    if as_json:
        print_json({**_entry(info), "manifest": info.manifest})
        return
    manifest, left_out = info.manifest, info.step - info.manifest.updates_done
    print_table(
        [
            ("checkpoint", str(info.path)),
            ("step", f"{manifest.step:,}"),
            ("samples", f"{manifest.samples:,}"),
            *([("updates left out", f"{left_out:,}")] if left_out else []),
            *((name.replace("_", " "), f"{value:.6f}") for name, value in manifest.metrics.items()),
            ("layout", f"{manifest.layout}; any other can load it"),
            ("files", f"{len(manifest.files)}, {size(_bytes(info))}{', all sound' if verify else ''}"),
            ("saved at", manifest.saved_at),
            ("torch", manifest.torch_version),
            ("recipe", manifest.recipe_fingerprint[:12]),
            ("model", manifest.model_fingerprint[:12]),
            ("data", manifest.data_fingerprint[:12]),
        ],
    )


@app.command(
    epilog=examples(
        "ptm checkpoint export runs/demo-gpt --format hf --out runs/demo-gpt/hf",
        "ptm checkpoint export runs/demo-gpt/checkpoints/step-00000150 --out gpt-hf --max-shard-size 500MB",
        "ptm checkpoint export runs/demo-gpt --format deepspeed --out runs/demo-gpt/universal",
    )
)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, or run directory (its newest).")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    form: FormatOption = Format.HF,
    max_shard_size: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="hf: largest file of weights, like 500MB or 2GiB.")
    ] = "2GB",  # type: ignore[assignment]
    tokenizer: Annotated[
        Path | None, typer.Option(help="hf: tokenizer folder, if it is no longer where the recipe says.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the model of a checkpoint as a folder that another program loads: with its tokenizer, or its optimizer."""
    from ptm_dist.checkpoint.convert import export_checkpoint, export_universal

    if form is Format.DEEPSPEED:
        written = export_universal(checkpoint, out)
        if as_json:
            print_json(written)
        else:
            print(f"{written.parameters} parameters and their optimizer state of step {written.step} in {out}")
        return
    done = export_checkpoint(checkpoint, out, max_shard_bytes=max_shard_size, tokenizer=tokenizer)
    if as_json:
        print_json(done)
        return
    print(f"{done.model_class} of {done.parameters:,} parameters in {out}, from {done.checkpoint}")
    if done.tokenizer is None:
        print("without tokenizer: there is none where the recipe says; give one by --tokenizer")


@app.command(
    "import",
    epilog=examples(
        "ptm checkpoint import downloads/bert-base-uncased --format hf --out runs/bert-base",
        "ptm train recipe.yaml checkpoint.load_from=runs/bert-base",
        "ptm checkpoint import runs/ds/universal --format deepspeed --recipe recipe.yaml --out runs/from-ds",
    ),
)
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with config.json and weights, or a universal checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    form: FormatOption = Format.HF,
    seed: Annotated[int, typer.Option(min=0, help="hf: of the initial weights of heads that it lacks.")] = 1234,
    recipe: Annotated[
        Path | None, typer.Option(help="deepspeed: of the run, if `ptm checkpoint export` did not write the folder.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=1, help="deepspeed: steps done, if its files do not say.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a checkpoint of a folder of another program; a run starts from it by checkpoint.load_from."""
    from ptm_dist.checkpoint.convert import import_checkpoint

    if form is Format.DEEPSPEED:
        _import_universal(folder, out, recipe, step, as_json)
        return
    done = import_checkpoint(folder, out, seed=seed)
    if as_json:
        print_json(done)
        return
    print(f"{done.section.family.value} model of {done.section.num_layers} layers in {out}")
    if done.initial:
        print(f"not in {folder}, so with initial weights: {', '.join(done.initial)}")
    if done.unused:
        print(f"not used, as {done.section.family.value} here has no such part: {', '.join(done.unused)}")
    print(f"tokenizer: {done.tokenizer or f'none in {folder}; ptm needs one to train or generate'}")
    print("the model section for recipes that start from it:")
    for key, value in _said(done.section).items():
        print(f"  {key}: {value}")


def _import_universal(folder: Path, out: Path, recipe_file: Path | None, step: int | None, as_json: bool) -> None:
    from ptm_dist.checkpoint.convert import import_universal
    from ptm_dist.recipe.loading import load_recipe
    from ptm_dist.training.data import RecipeData

    recipe = load_recipe(recipe_file) if recipe_file is not None else None
    of_data = {"data_fingerprint": RecipeData(recipe).fingerprint} if recipe is not None else {}
    done = import_universal(folder, out, recipe=recipe, step=step, **of_data)
    if as_json:
        print_json(done)
        return
    print(f"{done.parameters} parameters and their optimizer state of step {done.step} in {out}")


def _said(section: ModelSection) -> dict[str, object]:
    """The keys of a model section that a recipe has to say."""
    return {"family": section.family.value, **section.model_dump(mode="json", exclude_defaults=True)}


def _entry(info: CheckpointInfo) -> dict[str, object]:
    return {
        "path": info.path,
        "step": info.step,
        "samples": info.manifest.samples,
        "validation_loss": info.validation_loss,
        "bytes": _bytes(info),
        "layout": info.manifest.layout,
        "saved_at": info.manifest.saved_at,
    }


def _bytes(info: CheckpointInfo) -> int:
    return sum(entry.size for entry in info.manifest.files.values())
