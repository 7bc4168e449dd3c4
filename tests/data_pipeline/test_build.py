from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import webdataset

from data_pipeline.build import build_shards, tokenize
from data_pipeline.errors import DataError
from data_pipeline.shards import Manifest, ShardSet, verify
from data_pipeline.sources import Document, read_documents
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from data_pipeline.words import sentence_starts
from tests.data_pipeline.corpus_slice import write_documents, write_slice

END = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer([str(corpus)], kind="sentencepiece-bpe", vocab_size=512, out=folder)
    return folder


@pytest.fixture(scope="module")
def build(corpus, folder):
    def build(out, source=corpus, **options):
        options = {"shard_bytes": 20_000, "validation_fraction": 0.2, **options}
        return build_shards(
            [str(source)], tokenizer=load_tokenizer(folder), tokenizer_folder=folder, out=out, **options
        )

    return build


@pytest.fixture(scope="module")
def built(build, tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "data")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(folder, tokenizer_folder):
    shards, tokenizer = ShardSet.open(folder), load_tokenizer(tokenizer_folder)
    tokens = shards.tokens(0, shards.num_tokens)
    starts = shards.document_starts(0, shards.num_tokens)
    rows = np.split(tokens, starts[1:])
    assert all(row[-1] == END and END not in row[:-1] for row in rows)
    return [tokenizer.decode(row.tolist()) for row in rows]


def test_every_document_is_on_one_side_in_order_and_decodes_to_its_text(built, corpus, folder):
    texts = [document.text for document in read_documents([str(corpus)])]
    train = documents_of(built.path / "train", folder)
    validation = documents_of(built.path / "validation", folder)
    assert train == [text for text in texts if text in set(train)]
    assert validation == [text for text in texts if text in set(validation)]
    assert sorted(train + validation) == sorted(texts)
    assert 0 < len(validation) < len(train)


def test_the_summary_and_the_progress_count_what_was_written(build, built, tmp_path):
    seen = []
    summary = build(tmp_path / "data", on_progress=seen.append)
    for side in summary.train, summary.validation:
        shards = ShardSet.open(side.path)
        assert (side.tokens, side.documents) == (shards.num_tokens, shards.num_documents)
        assert (side.shards, side.fingerprint) == (len(shards.manifest.shards), shards.fingerprint)
        assert verify(side.path) == []
    assert summary.train.shards > 1
    assert not summary.reused
    assert [progress.shards for progress in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].tokens == summary.train.tokens + summary.validation.tokens
    assert seen[-1].documents == summary.train.documents + summary.validation.documents
    assert "train: " in str(summary)


def test_two_workers_write_the_same_bytes_as_one(build, built, tmp_path):
    build(tmp_path / "data", workers=2)
    assert contents(tmp_path / "data") == contents(built.path)


def test_webdataset_reads_the_result(built):
    shards = sorted(str(path) for path in (built.path / "train").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    tokens = np.concatenate([np.frombuffer(sample["tokens.bin"], "<u2") for sample in samples])
    assert [sample["__key__"] for sample in samples] == [f"{number:06d}" for number in range(len(shards))]
    assert np.array_equal(tokens, ShardSet.open(built.path / "train").tokens(0, tokens.size))


def test_sentences_and_words_of_a_document_lie_where_its_text_has_them(folder):
    tokenizer = load_tokenizer(folder)
    text = "One sentence. And 中文。Another one?\n\nA naïve title"
    document = tokenize(text, tokenizer)
    bounds = [*document.sentence_starts.tolist(), len(document.tokens)]
    pieces = [tokenizer.decode(document.tokens[a:b].tolist()) for a, b in pairwise(bounds)]
    starts = sentence_starts(text)
    assert pieces == [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert document.tokens[-1] == END
    assert document.word_starts[0]
    assert document.word_starts[-1]


def test_the_split_follows_content_not_place(build, built, corpus, folder, tmp_path):
    documents = list(read_documents([str(corpus)]))
    renamed = [Document(f"new-{number}", document.text) for number, document in enumerate(documents[::-1])]
    source = write_documents(tmp_path / "other.jsonl", renamed + renamed[:9])
    build(tmp_path / "data", source, shard_bytes=5_000)
    for side in "train", "validation":
        again = documents_of(tmp_path / "data" / side, folder)
        assert set(again) == set(documents_of(built.path / side, folder))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_two_documents_are_enough_for_both_sides(build, tmp_path, fraction):
    source = write_documents(tmp_path / "two.jsonl", [Document("a", "one text"), Document("b", "another text")])
    summary = build(tmp_path / "data", source, validation_fraction=fraction)
    assert summary.train.documents == summary.validation.documents == 1


def test_input_that_cannot_be_split_is_refused_and_leaves_nothing(build, tmp_path):
    (tmp_path / "in").mkdir()
    same = write_documents(tmp_path / "in" / "same.jsonl", [Document("a", "one text"), Document("b", "one text")])
    with pytest.raises(DataError, match="at least 2 different documents"):
        build(tmp_path / "data", same)
    blank = write_documents(tmp_path / "in" / "blank.jsonl", [Document("a", " \n")])
    with pytest.raises(DataError, match="no text"):
        build(tmp_path / "data", blank)
    with pytest.raises(DataError, match=r"validation_fraction=0\.0 must lie between"):
        build(tmp_path / "data", validation_fraction=0.0)
    with pytest.raises(DataError, match="workers=0"):
        build(tmp_path / "data", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_same_build_is_reused_and_another_refused(build, built, corpus, folder, tmp_path):
    before = contents(built.path)
    summary = build(built.path, workers=2)
    assert summary.reused
    assert "is there already" in str(summary)
    assert summary.train == built.train
    for change in {"shard_bytes": 10_000}, {"validation_fraction": 0.3}:
        with pytest.raises(DataError, match="holds shards built of other text, options"):
            build(built.path, **change)
    texts = [*read_documents([str(corpus)]), Document("new", "one more")]
    with pytest.raises(DataError, match="holds shards built of other text, options"):
        build(built.path, write_documents(tmp_path / "corpus.jsonl", texts))
    assert contents(built.path) == before


def test_overwriting_replaces_the_whole_folder(build, tmp_path):
    build(tmp_path / "data", shard_bytes=5_000)
    summary = build(tmp_path / "data", shard_bytes=1 << 20, overwrite=True)
    assert summary.train.shards == 1
    assert sorted(contents(tmp_path / "data")) == [
        f"{side}/{name}" for side in ("train", "validation") for name in ("000000.tar", "manifest.json")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_something_else_is_left_alone(build, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_folder_of_another_tokenizer_is_refused(corpus, folder, tmp_path):
    options = {"kind": "sentencepiece-bpe", "vocab_size": 400, "out": tmp_path / "t"}
    other = train_tokenizer([str(corpus)], **options)
    with pytest.raises(DataError, match="holds another tokenizer"):
        build_shards([str(corpus)], tokenizer=other, tokenizer_folder=folder, out=tmp_path / "data")


def test_build_keys_name_no_folder_and_no_machine(built):
    text = (built.path / "train" / "manifest.json").read_text()
    assert str(built.path.parent) not in text
    assert socket.gethostname() not in text
    assert Manifest.load(built.path / "train").build["sources"][0]["name"] == "corpus.jsonl"


class StopBuild(Exception):  # noqa: N818 - not an error
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_leaves_nothing(build, tmp_path, workers):
    def stop(progress):
        raise StopBuild

    with pytest.raises(StopBuild):
        build(tmp_path / "data", workers=workers, shard_bytes=2_000, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_input_that_breaks_half_way_is_named_and_leaves_nothing(build, corpus, tmp_path, workers):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "a.jsonl"
    source.write_text(corpus.read_text() + "broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl:41: not valid JSON"):
        build(tmp_path / "data", source, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


_KILLED = """
import os, sys, time
from pathlib import Path
from data_pipeline.build import build_shards
from data_pipeline.tokenizers import load_tokenizer

if __name__ == "__main__":
    corpus, folder, out = sys.argv[1:]
    def wait(progress):
        print("first shard", flush=True)
        time.sleep(600)
    build_shards([corpus], tokenizer=load_tokenizer(Path(folder)), tokenizer_folder=Path(folder), out=Path(out),
                 shard_bytes=2_000, workers=2, on_progress=wait)
"""


def test_a_killed_build_leaves_no_process_and_the_next_one_sweeps_its_files(build, built, corpus, folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_KILLED)
    out = tmp_path / "place" / "data"
    process = subprocess.Popen(
        [sys.executable, str(script), str(corpus), str(folder), str(out)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == b"first shard\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert [path.name.startswith("data.tmp-") for path in out.parent.iterdir()] == [True]
    wait_until(lambda: not session_is_alive(process.pid))
    build(out)
    assert [path.name for path in out.parent.iterdir()] == ["data"]
    assert contents(out) == contents(built.path)


def session_is_alive(session):
    stats = (path.read_text().rsplit(")", 1)[1].split() for path in map(stat_of, processes()) if path.exists())
    return any(int(fields[3]) == session and fields[0] != "Z" for fields in stats)


def processes():
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def stat_of(process):
    return process / "stat"


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_tokenizer_without_an_end_of_documents_is_refused_with_what_to_do(corpus, folder, tmp_path):
    class Endless:
        special_ids: ClassVar[dict[str, int]] = {"pad": 1}

    with pytest.raises(DataError, match=r"no end-of-document id; name one \(\"eos_token\"\)"):
        build_shards([str(corpus)], tokenizer=Endless(), tokenizer_folder=folder, out=tmp_path / "data")
    assert not (tmp_path / "data").exists()
