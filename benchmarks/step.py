"""One training step in one process: ours, plain PyTorch, Hugging Face."""

from __future__ import annotations

import torch

from benchmarks.peers import PlainGPT, PlainTrainer, hugging_face
from benchmarks.timing import interleave, ratio_table
from benchmarks.workloads import random_batch, recipe
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import resolve_layout


def compare(model: str, batch: int, sequence: int, rounds: int) -> tuple[str, dict[str, float]]:
    """Tokens per second of a float32 step on CPU, as text and as figures."""
    setting = recipe(model, batch, sequence, "fp32", {"micro_batch_size": batch})
    engine = NativeEngine(setting, resolve_layout(setting.layout, 1), torch.device("cpu"))
    ours = random_batch(setting, 0, 1, engine.device)
    plain = PlainTrainer(PlainGPT(setting.model), batch)
    hf = PlainTrainer(hugging_face(setting.model), batch)
    timings = interleave(
        {
            "ptm-dist": lambda: engine.step(ours, 1e-3),
            "plain PyTorch (nanoGPT style)": lambda: plain.step(ours.inputs, ours.labels),
            "Hugging Face GPT2LMHeadModel": lambda: hf.step(ours.inputs, ours.labels),
        },
        rounds,
    )
    tokens = batch * sequence
    title = f"step, {model}, batch {batch} x {sequence}, fp32, {torch.get_num_threads()} threads"
    figures = {name: tokens / timing.median for name, timing in timings.items()}
    return ratio_table(title, timings, "ptm-dist", "tokens", tokens), figures
