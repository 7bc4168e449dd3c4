"""`ptm checkpoint`: what a run has saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import JsonFlag, examples, print_json, print_table, size

if TYPE_CHECKING:
    from ptm_dist.checkpoint import CheckpointInfo

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at what a run has saved.")


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
    manifest = info.manifest
    print_table(
        [
            ("checkpoint", str(info.path)),
            ("step", f"{manifest.step:,}"),
            ("samples", f"{manifest.samples:,}"),
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
