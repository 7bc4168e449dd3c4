from __future__ import annotations

import json

import pytest

from launcher.demo import Places, run_demo
from launcher.loss_plot import Curves

QUICK = (
    "model.hidden_size=32",
    "model.ffn_hidden_size=64",
    "model.num_layers=1",
    "model.num_heads=2",
    "training.steps=4",
    "training.global_batch_size=4",
    "schedule.warmup_steps=1",
    "schedule.decay_steps=4",
    "evaluation.every=2",
    "evaluation.samples=4",
    "launch.device=cpu",
)


@pytest.mark.parametrize("family", ["gpt", "albert"])
def test_the_demo_goes_from_text_to_a_model_over_two_layouts_and_a_second_one_has_nothing_to_do(
    family, tmp_path, capfd
):
    places = Places(tmp_path / "demo")
    assert run_demo(places.root, fresh=False, overrides=QUICK, family=family) == 0
    first = capfd.readouterr().out
    said = {"gpt": (), "albert": ("always the commonest token", "SOP accuracy")}[family]
    for part in ("ZeRO-3 x2", "tensor parallel 2 (sequence parallel)", "Return the", "Validation loss", *said):
        assert part in first
    assert places.plot.read_bytes().startswith(b"\x89PNG")
    curves = Curves.of(places.run / "metrics.jsonl")
    assert [step for step, _ in curves.train] == [1, 2, 3, 4]
    assert [(step, curves.layout_at(step)) for step, _ in curves.validation] == [
        (2, "ZeRO-3 x2"),
        (4, "tensor parallel 2 (sequence parallel)"),
    ]
    events = [json.loads(line)["event"] for line in (places.run / "events.jsonl").read_text().splitlines()]
    assert "layout_change" in events

    assert run_demo(places.root, fresh=False, overrides=QUICK, family=family) == 0
    second = capfd.readouterr().out
    assert "is at step 4 already" in second
    assert "starting" not in second

    keep = places.root / "notes.txt"
    keep.write_text("mine")
    places.remove()
    assert list(places.root.iterdir()) == [keep]
