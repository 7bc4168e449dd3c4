"""What the tests of the build share: its options in short, the bytes it leaves, and processes that die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import BuildOptions, LocalTeam, build_shards
from data_pipeline.filters import FilterOptions
from data_pipeline.shards import ShardSet
from data_pipeline.sources import SourceOptions
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
SIDES = ("train", "validation")
END = 2


def build(source, folder, out, *, workers=1, overwrite=False, on_progress=None, source_options=None, **options):
    """Build with small shards; options of the filters are found by their name."""
    filters = {name: options.pop(name) for name in list(options) if name in FilterOptions.__dataclass_fields__}
    sources = source if isinstance(source, list) else [source]
    return build_shards(
        [str(path) for path in sources],
        tokenizer=load_tokenizer(folder),
        out=out,
        options=BuildOptions(
            source=source_options or SourceOptions(),
            filters=FilterOptions(**filters),
            **{"shard_bytes": 20_000, "validation_fraction": 0.2, **options},
        ),
        team=LocalTeam(workers),
        overwrite=overwrite,
        on_progress=on_progress,
    )


def small_tokenizer(corpus, place):
    """The folder of a tokenizer of few pieces, trained on the corpus."""
    folder = place / "t"
    train_tokenizer([str(corpus)], kind="sentencepiece-bpe", vocab_size=512, out=folder)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_and_manifests(folder):
    """All bytes but those of the plan, which knows where and when the sources were read."""
    return {name: data for name, data in contents(folder).items() if name != "plan.json"}


def documents_of(folder, tokenizer_folder):
    shards, tokenizer = ShardSet.open(folder), load_tokenizer(tokenizer_folder)
    tokens = shards.tokens(0, shards.num_tokens)
    starts = shards.document_starts(0, shards.num_tokens)
    rows = np.split(tokens, starts[1:])
    assert all(row[-1] == END and END not in row[:-1] for row in rows)
    return [tokenizer.decode(row.tolist()) for row in rows]


def command(*arguments, ranks=None):
    """`ptm data build` as a command line, under mpirun where ranks are given."""
    ptm = [sys.executable, "-m", "launcher", "data", "build", *map(str, arguments)]
    return ptm if ranks is None else [mpirun(), "-n", str(ranks), *ptm]


def mpirun():
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun; pip install 'ptm-dist[mpi]'")
    pytest.importorskip("mpi4py")
    return found


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(arguments):
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def descendants(process_id):
    children = Path(f"/proc/{process_id}/task/{process_id}/children")
    try:
        ids = [int(child) for child in children.read_text().split()]
    except OSError:
        return []
    return ids + [grandchild for child in ids for grandchild in descendants(child)]


def kill_all(process):
    """SIGKILL to a process and all that it started, the parents first."""
    for process_id in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(process_id, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
