"""From nothing to a trained model in minutes: text, tokenizer, shards, two layouts on one curve, samples."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from ptm_dist.errors import RunDirectoryError

if TYPE_CHECKING:
    from launcher.loss_plot import Curves
    from ptm_dist.recipe.schema import Recipe

CONFIGS = Path("configs/demo")
TOKENIZERS = {
    "gpt": "sentencepiece-bpe",
    "bert": "wordpiece",
    "roberta": "bytelevel-bpe",
    "albert": "sentencepiece-unigram",
}
"""The families that have a demo, and the kind of tokenizer that each was published with."""
_PAIRED = {"bert", "albert"}
"""Families that learn how sentences belong together: their documents are single docstrings."""
_PROCESSES = 2
_VOCAB_SIZE = 4096
_VALIDATION_FRACTION = 0.05
_FIRST_LAYOUT = ("layout.zero_stage=3",)
_SECOND_LAYOUT = ("layout.tensor_parallel=2", "layout.sequence_parallel=true")
_PROMPT = "Return the"
_MASKED = "Return the [MASK] of the file."


@dataclass(frozen=True)
class Places:
    """Where the demo keeps what it makes; all of it lies in `root`."""

    root: Path

    @property
    def corpus(self) -> Path:
        """Text."""
        return self.root / "corpus.jsonl"

    @property
    def tokenizer(self) -> Path:
        """Tokenizer folder."""
        return self.root / "tokenizer"

    @property
    def data(self) -> Path:
        """Token shards."""
        return self.root / "data"

    @property
    def run(self) -> Path:
        """Run directory."""
        return self.root / "run"

    @property
    def plot(self) -> Path:
        """Picture of the losses."""
        return self.root / "loss.png"

    def remove(self) -> None:
        """Delete what earlier demos made, and nothing else."""
        for folder in (self.tokenizer, self.data, self.run):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.corpus, self.plot):
            file.unlink(missing_ok=True)


def run_demo(out: Path, fresh: bool, overrides: tuple[str, ...] = (), family: str = "gpt") -> int:
    """Run all stages; what is there already is used again, a run that was interrupted goes on.

    Args:
        out: folder of everything.
        fresh: begin from nothing.
        overrides: of the recipe, for both layouts.
        family: one of `TOKENIZERS`.

    Returns: exit code.
    Raises: UserError for all that a user can mend.
    """
    places = Places(out)
    if fresh:
        places.remove()
    begin = time.monotonic()
    prepare_data(places, family)
    for part, layout in enumerate((_FIRST_LAYOUT, _SECOND_LAYOUT), start=1):
        recipe = demo_recipe(places, family, (*overrides, *layout))
        half = recipe.training.steps // 2
        if part == 1:
            recipe = demo_recipe(places, family, (*overrides, *layout, f"launch.stop_at_step={half}"))
        code = train_part(recipe, part)
        if code != 0 or steps_done(recipe) < (half if part == 1 else recipe.training.steps):
            return code
    show_result(places, recipe, family, time.monotonic() - begin)
    return 0


def prepare_data(places: Places, family: str) -> None:
    """Text, tokenizer and token shards; each command keeps what it made of the same input before."""
    from launcher.commands.data import build, stdlib
    from launcher.commands.tokenizer import train as train_tokenizer

    with stage("1/6 corpus: the documentation inside Python's standard library"):
        if places.corpus.exists():
            print(f"{places.corpus} is there already")
        else:
            stdlib(places.corpus, docstrings=family in _PAIRED)
    kind = TOKENIZERS[family]
    with stage(f"2/6 tokenizer: {kind} of {_VOCAB_SIZE} ids"):
        train_tokenizer([str(places.corpus)], kind=kind, vocab_size=_VOCAB_SIZE, out=places.tokenizer)
    with stage("3/6 token shards"):
        inputs = [str(places.corpus)]
        build(inputs, places.tokenizer, places.data, workers=_PROCESSES, validation_fraction=_VALIDATION_FRACTION)


def demo_recipe(places: Places, family: str, overrides: tuple[str, ...]) -> Recipe:
    """The demo's recipe with this folder's paths.

    Raises: UserError if the repository's configs/ is not where it should be.
    """
    from ptm_dist.recipe.loading import load_recipe

    recipe = CONFIGS / f"{family}.yaml"
    beside_package = Path(__file__).resolve().parents[1] / recipe
    path = recipe if recipe.exists() else beside_package
    if not path.exists():
        raise UserError(f"{recipe} not found: run `ptm demo` in a clone of the repository")
    paths = {"run_dir": places.run, "data.path": places.data, "data.tokenizer": places.tokenizer}
    return load_recipe(path, [*(f"{key}={json.dumps(str(value))}" for key, value in paths.items()), *overrides])


def train_part(recipe: Recipe, part: int) -> int:
    """Train up to where this part ends, unless the run is there already; returns an exit code."""
    from launcher.commands.train import run_recipe
    from ptm_dist.recipe.layout import resolve_layout

    layout = resolve_layout(recipe.layout, _PROCESSES).describe()
    end = recipe.launch.stop_at_step or recipe.training.steps
    with stage(f"{3 + part}/6 training to step {end} of {recipe.training.steps} on {_PROCESSES} processes: {layout}"):
        done = steps_done(recipe)
        if done >= end:
            print(f"{recipe.directory} is at step {done} already")
            return 0
        try:
            return run_recipe(recipe, _PROCESSES)
        except RunDirectoryError as error:
            raise RunDirectoryError(f"{error}; `ptm demo --fresh` begins anew") from None


def steps_done(recipe: Recipe) -> int:
    """Steps of the newest checkpoint of a run, 0 if there is none."""
    from ptm_dist.checkpoint import latest
    from ptm_dist.training.run_directory import RunDirectory

    newest = latest(RunDirectory(recipe.directory).checkpoints)
    return newest.step if newest is not None else 0


def show_result(places: Places, recipe: Recipe, family: str, seconds: float) -> None:
    """What the model writes or guesses, its accuracy beside chance, the picture, and where everything is."""
    from launcher.loss_plot import Curves, plot_losses
    from ptm_dist.training.run_directory import RunDirectory

    if family == "gpt":
        _show_text(places)
    else:
        _show_guesses(places, recipe)
    curves = Curves.of(RunDirectory(recipe.directory).metrics)
    plot_losses(curves, f"{recipe.name}: one run, two layouts", places.plot)
    print(summary(places, curves, family, seconds))


def _show_text(places: Places) -> None:
    from launcher.commands.generate import Sampling, sample_texts

    with stage(f"6/6 text from the model, prompt {_PROMPT!r}"):
        sampling = Sampling(samples=1, max_new_tokens=80, temperature=0.7, top_k=40)
        print("\n".join(sample_texts(places.run, _PROMPT, sampling)))


def _show_guesses(places: Places, recipe: Recipe) -> None:
    from launcher.commands.fill import guess_tokens
    from launcher.masked_figures import MaskedFigures

    with stage(f"6/6 what the model puts into {_MASKED!r}, and how much it knows"):
        (guesses,) = guess_tokens(places.run, _MASKED, top_k=5)
        print(", ".join(f"{word!r} {probability:.1%}" for word, probability in guesses))
        print(MaskedFigures.of(recipe).text())


def summary(places: Places, curves: Curves, family: str, seconds: float) -> str:
    """What was reached, where it is, and what to try next."""
    losses = [f"  step {step:>4}  {loss:.4f}  ({curves.layout_at(step)})" for step, loss in curves.validation]
    use = f'ptm generate --checkpoint {places.run} --prompt "{_PROMPT}" --samples 3'
    if family != "gpt":
        use = f'ptm fill --checkpoint {places.run} --text "{_MASKED}"'
    return "\n".join(
        [
            "",
            f"Done in {seconds:.0f} s. Validation loss in nats, one curve over two layouts:",
            *losses,
            "",
            "Where everything is:",
            f"  {places.corpus}, {places.tokenizer}, {places.data}",
            f"  {places.run}: recipe.yaml, metrics.jsonl, events.jsonl, tensorboard/, checkpoints/, logs/",
            f"  {places.plot}: the losses",
            "",
            "What to try next:",
            f"  {use}",
            f"  ptm checkpoint export {places.run} --format hf --out {places.root / 'hf'}",
            f"  ptm checkpoint list {places.run}",
            f"  ptm data show {places.run / 'recipe.yaml'} --step 1 --rank 0/2",
            f"  ptm train {CONFIGS / family}.yaml --nproc 2 --dry-run",
            f"  tensorboard --logdir {places.run}",
        ]
    )


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Announce a part of the demo, and say how long it took."""
    print(f"\n== {title}", flush=True)
    begin = time.monotonic()
    yield
    print(f"   {time.monotonic() - begin:.1f} s", flush=True)
