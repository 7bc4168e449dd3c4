from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.cli import main

RECIPE = """
name: tiny
run_dir: {root}/run
model: {{vocab_size: 512, hidden_size: 32, num_layers: 2, num_heads: 4, max_positions: 32}}
data: {{path: {root}/data, tokenizer: {root}/tokenizer, sequence_length: 32, max_epochs: 4}}
optimizer: {{learning_rate: 0.01}}
schedule: {{warmup_steps: 2}}
training: {{steps: 6, global_batch_size: 4, precision: fp32}}
layout: {{micro_batch_size: 2}}
evaluation: {{every: 3, samples: 8}}
checkpoint: {{every: 3}}
logging: {{every: 1, tensorboard: false}}
launch: {{device: cpu}}
"""


@dataclass(frozen=True)
class Result:
    """How a call of `ptm` ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


Ptm = Callable[..., Result]


@pytest.fixture
def ptm(monkeypatch, capfd) -> Ptm:
    """Calls `ptm` in this process, whatever launcher the tests themselves run under."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ptm", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with corpus, tokenizer and token shards that the commands themselves made."""
    from launcher.commands import data, tokenizer

    root = tmp_path_factory.mktemp("prepared")
    whole = root / "whole.jsonl"
    data.stdlib(whole)
    documents = whole.read_text().splitlines()[:40]
    (root / "corpus.jsonl").write_text("".join(f"{document}\n" for document in documents))
    corpus = [str(root / "corpus.jsonl")]
    tokenizer.train(corpus, vocab_size=512, out=root / "tokenizer")
    data.build(corpus, root / "tokenizer", root / "data", validation_fraction=0.1)
    return root


@pytest.fixture
def workspace(prepared, tmp_path) -> Path:
    """A folder of this test's own with the prepared data and a tiny recipe."""
    import shutil

    for name in ("tokenizer", "data"):
        shutil.copytree(prepared / name, tmp_path / name)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path
