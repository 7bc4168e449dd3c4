"""`ptm checkpoint verify`, `tensors`, `diff` and `reshard`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.output import JsonFlag, examples, print_json, print_table, size

if TYPE_CHECKING:
    from ptm_dist.checkpoint.compare import Comparison
    from ptm_dist.checkpoint.contents import SavedTensor
    from ptm_dist.recipe.schema import Recipe

CheckpointArgument = Annotated[Path, typer.Argument(help="Checkpoint, or run directory (its newest).")]


def register(app: typer.Typer) -> None:
    """Add these commands to `ptm checkpoint`."""
    app.command(
        epilog=examples(
            "ptm checkpoint verify runs/demo-gpt", "ptm checkpoint verify runs/demo-gpt/checkpoints/step-00000150"
        )
    )(verify)
    app.command(
        epilog=examples("ptm checkpoint tensors runs/demo-gpt", "ptm checkpoint tensors runs/demo-gpt --boxes --json")
    )(tensors)
    app.command(epilog=examples("ptm checkpoint diff runs/a runs/b/checkpoints/step-00000150"))(diff)
    app.command(
        epilog=examples(
            "ptm checkpoint reshard runs/demo-gpt runs/for-8 --ranks 8 --layout layout.tensor_parallel=2 "
            "--layout layout.zero_stage=3",
            "ptm train recipe.yaml checkpoint.load_from=runs/for-8",
        )
    )(reshard)


def verify(
    path: Annotated[Path, typer.Argument(help="Checkpoint, or run directory (all of its checkpoints).")],
    as_json: JsonFlag = False,
) -> None:
    """Read every byte and say what is not as it was saved; exit code 1 if anything is not."""
    from ptm_dist.checkpoint.verification import checkpoints_to_verify, inspect

    paths = checkpoints_to_verify(path)
    verdicts = []
    for number, checkpoint in enumerate(paths, start=1):
        verdict = inspect(checkpoint)
        verdicts.append(verdict)
        if as_json:
            continue
        found = "sound" if verdict.is_sound else "DAMAGED"
        print(f"[{number}/{len(paths)}] {checkpoint}: {found}, {verdict.files} files, {size(verdict.size)}", flush=True)
        for problem in verdict.problems:
            print(f"  {problem}", flush=True)
    if as_json:
        print_json(verdicts)
    raise typer.Exit(0 if all(verdict.is_sound for verdict in verdicts) else 1)


def tensors(
    checkpoint: CheckpointArgument,
    boxes: Annotated[bool, typer.Option("--boxes", help="Also the boxes that each was saved as, and where.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the tensors of a checkpoint: shapes, number formats, sizes, and the boxes of the layout that saved them."""
    from ptm_dist.checkpoint import find_checkpoint
    from ptm_dist.checkpoint.contents import Contents

    info = find_checkpoint(checkpoint)
    found = list(Contents(info.path).tensors.values())
    if as_json:
        print_json({"path": info.path, "layout": info.manifest.layout, "tensors": [_entry(t) for t in found]})
        return
    print(f"{info.path}: {len(found)} tensors, {size(sum(t.size for t in found))}, saved at {info.manifest.layout}")
    rows: list[tuple[object, ...]] = [("tensor", "shape", "dtype", "size", "boxes")]
    for tensor in found:
        rows.append((tensor.name, _shape(tensor.shape), _dtype(tensor), size(tensor.size), len(tensor.boxes)))
        if boxes:
            rows += [(f"  from {_shape(b.offset)}", _shape(b.shape), "", size(b.length), b.file) for b in tensor.boxes]
    print_table(rows)


def diff(
    a: Annotated[Path, typer.Argument(help="Checkpoint, or run directory (its newest).")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what differs between two checkpoints, of whatever layouts; exit code 0 if nothing does, else 1."""
    from ptm_dist.checkpoint import find_checkpoint
    from ptm_dist.checkpoint.compare import compare

    found = compare(find_checkpoint(a), find_checkpoint(b))
    print_json({"equal": found.is_equal, "difference": found}) if as_json else _print_comparison(found)
    raise typer.Exit(0 if found.is_equal else 1)


def reshard(
    source: CheckpointArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    ranks: Annotated[int, typer.Option("--ranks", "--nproc", min=1, help="Processes of the layout.")] = 1,
    layout: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Key of the layout section; can be repeated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint anew with files cut for a layout, in this process alone; equal to the bit.

    The layout is that of the checkpoint's recipe but for the keys given. Any checkpoint loads at any layout: this
    one only loads faster there.
    """
    from ptm_dist.checkpoint import find_checkpoint
    from ptm_dist.checkpoint.reshard import reshard as write

    recipe = _with_layout(find_checkpoint(source).manifest.parsed_recipe(), layout or [])
    done = write(source, out, recipe, ranks)
    if as_json:
        print_json(done)
        return
    print(f"{done.tensors} tensors in {done.files} files for {done.layout}: {done.checkpoint}")


def _with_layout(recipe: Recipe, keys: list[str]) -> Recipe:
    from ptm_dist.errors import RecipeError
    from ptm_dist.recipe.loading import dump_recipe, load_recipe

    for key in keys:
        if not key.startswith("layout."):
            raise RecipeError(f"--layout {key}: only keys of the layout section, such as layout.tensor_parallel=2")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "recipe.yaml")
        saved.write_text(dump_recipe(recipe), encoding="utf-8")
        loaded = load_recipe(saved, keys)
    # Where the other values were written once is of no use: that file is gone.
    return loaded.written_at({key: place for key, place in loaded.places.items() if folder not in place})


def _entry(tensor: SavedTensor) -> dict[str, object]:
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": _dtype(tensor),
        "bytes": tensor.size,
        "boxes": [
            {"offset": b.offset, "shape": b.shape, "file": b.file, "begin": b.begin, "bytes": b.length}
            for b in tensor.boxes
        ],
    }


def _dtype(tensor: SavedTensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _print_comparison(found: Comparison) -> None:
    for text in (*found.recipe, *found.progress):
        print(text)
    for title, names in (
        ("only in the first", found.only_in_a),
        ("only in the second", found.only_in_b),
        ("of another shape", found.other_shapes),
    ):
        for name in names:
            print(f"{title}: {name}")
    if found.tensors:
        rows = [(t.name, t.elements, f"{t.absolute:.3e}", f"{t.relative:.3e}") for t in found.tensors]
        print_table([("tensor", "elements", "largest difference", "relative"), *rows])
    print(f"{found.equal_tensors} tensors are equal to the bit, {len(found.tensors)} are not")
