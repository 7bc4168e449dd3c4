from __future__ import annotations

import gzip
import json
import os
import socket
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import webdataset

from data_pipeline.build import build_shards, tokenize
from data_pipeline.errors import DataError
from data_pipeline.shards import Manifest, ShardSet, verify
from data_pipeline.sources import Document, SourceOptions, read_documents
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from data_pipeline.words import sentence_starts
from tests.data_pipeline.builds import END, SIDES, contents, documents_of, shards_and_manifests, small_tokenizer
from tests.data_pipeline.builds import build as build_from
from tests.data_pipeline.corpus_slice import write_documents, write_slice


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    return small_tokenizer(corpus, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def build(corpus, folder):
    def build(out, source=corpus, **options):
        return build_from(source, folder, out, **options)

    return build


@pytest.fixture(scope="module")
def built(build, tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "data")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_document_is_on_one_side_in_order_and_decodes_to_its_text(built, corpus, folder):
    texts = [document.text for document in read_documents([str(corpus)])]
    train = documents_of(built.path / "train", folder)
    validation = documents_of(built.path / "validation", folder)
    assert train == [text for text in texts if text in set(train)]
    assert validation == [text for text in texts if text in set(validation)]
    assert sorted(train + validation) == sorted(texts)
    assert 0 < len(validation) < len(train)


def test_the_summary_and_the_progress_count_what_was_written(build, tmp_path):
    seen = []
    summary = build(tmp_path / "data", on_progress=seen.append)
    for side in summary.train, summary.validation:
        shards = ShardSet.open(side.path)
        assert (side.tokens, side.documents) == (shards.num_tokens, shards.num_documents)
        assert (side.shards, side.fingerprint) == (len(shards.manifest.shards), shards.fingerprint)
        assert verify(side.path) == []
    assert summary.train.shards > 1
    assert not summary.reused
    assert summary.documents_read == summary.train.documents + summary.validation.documents == 40
    assert summary.counts == {}
    assert list(summary.stages) == ["tokenising"]
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes
    assert seen[-1].tokens == summary.train.tokens + summary.validation.tokens
    assert seen[-1].documents == 40
    assert "train: " in str(summary)


def test_two_workers_write_the_same_bytes_as_one(build, built, tmp_path):
    build(tmp_path / "data", workers=2)
    assert contents(tmp_path / "data") == contents(built.path)


def test_the_same_text_elsewhere_at_another_time_gives_the_same_shards_and_manifests(build, built, corpus, tmp_path):
    copy = tmp_path / "elsewhere" / corpus.name
    copy.parent.mkdir()
    copy.write_bytes(corpus.read_bytes())
    os.utime(copy, (1, 1))
    build(tmp_path / "data", copy)
    assert shards_and_manifests(tmp_path / "data") == shards_and_manifests(built.path)


def test_webdataset_reads_the_result(built):
    entries = Manifest.load(built.path / "train").shards
    shards = [str(built.path / "train" / entry.name) for entry in entries]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    tokens = np.concatenate([np.frombuffer(sample["tokens.bin"], "<u2") for sample in samples])
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in entries]
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
    for side in SIDES:
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
    with pytest.raises(DataError, match="shard_bytes=0"):
        build(tmp_path / "data", shard_bytes=0)
    with pytest.raises(DataError, match="workers=0"):
        build(tmp_path / "data", workers=0)
    assert names(tmp_path) == ["in"]


def test_a_side_that_the_filters_empty_is_refused_and_nothing_is_published(build, tmp_path):
    twins = [Document("a", "the same words " * 20 + "once"), Document("b", "the same words " * 20 + "once more")]
    source = write_documents(tmp_path / "twins.jsonl", twins)
    with pytest.raises(DataError, match=r"no document is left for (train|validation); give more text"):
        build(tmp_path / "data", source, deduplicate="near", near_threshold=0.5)
    assert not (tmp_path / "data").exists()


def test_the_same_build_is_reused_and_another_refused(build, corpus, tmp_path):
    source = tmp_path / corpus.name
    source.write_bytes(corpus.read_bytes())
    first = build(tmp_path / "data", source)
    before = contents(first.path)
    summary = build(first.path, source, workers=2)
    assert summary.reused
    assert "is there already" in str(summary)
    assert (summary.train, summary.documents_read) == (first.train, first.documents_read)
    changes = {
        "shard_bytes=20000 instead of 10000": {"shard_bytes": 10_000},
        "validation_fraction=0.2 instead of 0.3": {"validation_fraction": 0.3},
        "min_characters=0 instead of 3": {"min_characters": 3},
        "text_field=text instead of body": {"source_options": SourceOptions(text_field="body")},
    }
    for message, change in changes.items():
        with pytest.raises(DataError, match=message):
            build(first.path, source, **change)
    texts = [*read_documents([str(corpus)]), Document("new", "one more")]
    with pytest.raises(DataError, match=r"corpus\.jsonl with .* bytes instead of"):
        build(first.path, write_documents(source, texts))
    with pytest.raises(DataError, match=r"2 files|1 files"):
        build(first.path, [corpus, source])
    assert contents(first.path) == before
    assert names(tmp_path) == ["corpus.jsonl", "data"]


def test_a_file_that_was_only_touched_is_read_again_once_and_one_that_was_changed_is_noticed(build, corpus, tmp_path):
    source = tmp_path / corpus.name
    source.write_bytes(corpus.read_bytes())
    first = build(tmp_path / "data", source)
    os.utime(source, (1, 1))
    touched = build(tmp_path / "data", source)
    assert touched.reused
    assert list(touched.stages) == ["comparing the text"]
    assert build(tmp_path / "data", source).stages == {}
    text = source.read_text()
    source.write_text(text.replace("The", "Teh", 1))
    with pytest.raises(DataError, match="was built of another text"):
        build(tmp_path / "data", source)
    assert names(tmp_path) == ["corpus.jsonl", "data"]
    assert shards_and_manifests(first.path) == shards_and_manifests(tmp_path / "data")


def test_overwriting_replaces_the_whole_folder(build, tmp_path):
    build(tmp_path / "data", shard_bytes=5_000)
    summary = build(tmp_path / "data", shard_bytes=1 << 20, overwrite=True)
    assert summary.train.shards == 1
    assert sorted(contents(tmp_path / "data")) == [
        "plan.json",
        *(f"{side}/{name}" for side in SIDES for name in ("000000-000.tar", "manifest.json")),
    ]
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(build, tmp_path, overwrite):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="remove it or choose another"):
        build(tmp_path / "here", overwrite=overwrite)
    assert (tmp_path / "here" / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["here"]


def test_an_empty_folder_is_filled(build, built, tmp_path):
    (tmp_path / "data").mkdir()
    build(tmp_path / "data")
    assert contents(tmp_path / "data") == contents(built.path)


def test_manifests_name_no_folder_no_machine_and_no_time(built):
    text = (built.path / "train" / "manifest.json").read_text()
    assert str(built.path.parent) not in text
    assert socket.gethostname() not in text
    sources = Manifest.load(built.path / "train").build["sources"]
    assert [sorted(source) for source in sources] == [["bytes", "name"]]
    assert sources[0]["name"] == "corpus.jsonl"


def test_each_document_remembers_its_file_and_its_metadata(build, corpus, folder, tmp_path):
    lines = corpus.read_text().splitlines()
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    rows = [json.dumps({**json.loads(line), "number": at}) + "\n" for at, line in enumerate(lines)]
    plain.write_text("".join(rows[:25]))
    packed.write_bytes(gzip.compress("".join(rows[25:]).encode()))
    build(tmp_path / "data", [packed, plain], source_options=SourceOptions(metadata_fields=("number",)))
    texts = [json.loads(line)["text"] for line in lines]
    for side in SIDES:
        shards = ShardSet.open(tmp_path / "data" / side)
        parts = range(len(shards.manifest.shards))
        origins = np.concatenate([shards.origins(number) for number in parts]).tolist()
        numbers = [info["number"] for part in parts for info in shards.infos(part)]
        assert [texts[number] for number in numbers] == documents_of(tmp_path / "data" / side, folder)
        assert origins == [int(number >= 25) for number in numbers]


def test_filters_come_before_the_split_and_are_counted(build, corpus, folder, tmp_path):
    documents = [*read_documents([str(corpus)])][:10]
    written = [Document("short", "tiny"), *documents, Document("mail", f"write to me@example.com. {documents[0].text}")]
    summary = build(
        tmp_path / "data", write_documents(tmp_path / "c.jsonl", written), min_characters=9, scrub=("email",)
    )
    texts = [text for side in SIDES for text in documents_of(tmp_path / "data" / side, folder)]
    assert len(texts) == 11
    assert "tiny" not in texts
    assert not any("me@example.com" in text for text in texts)
    assert summary.counts["too_short"] == 1
    assert summary.counts["scrubbed_email"] >= 1
    assert summary.documents_read == 12


def test_a_document_without_any_id_is_left_out_and_counted(corpus, tmp_path):
    train_tokenizer([str(corpus)], kind="wordpiece", vocab_size=512, out=tmp_path / "t")
    documents = [Document("control", "\x01\x02"), *list(read_documents([str(corpus)]))[:9]]
    source = write_documents(tmp_path / "c.jsonl", documents)
    summary = build_from(source, tmp_path / "t", tmp_path / "data")
    assert summary.counts == {"no_tokens": 1}
    assert summary.train.documents + summary.validation.documents == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_an_input_that_breaks_half_way_is_named_and_nothing_is_published(build, corpus, tmp_path, workers):
    source = tmp_path / "a.jsonl"
    source.write_text(corpus.read_text() + "broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl.*not valid JSON"):
        build(tmp_path / "data", source, workers=workers)
    assert names(tmp_path) == ["a.jsonl", "data.building"]
    source.write_text(corpus.read_text())
    with pytest.raises(DataError, match=r"interrupted build of a\.jsonl with .* --overwrite starts anew"):
        build(tmp_path / "data", source)
    build(tmp_path / "data", source, overwrite=True)
    assert names(tmp_path) == ["a.jsonl", "data"]


def test_a_source_that_grows_while_it_is_read_is_noticed(build, corpus, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(corpus.read_text())

    def grow(progress):
        os.utime(source, (1, 1))

    with pytest.raises(DataError, match=r"a\.jsonl changed while it was read"):
        build(tmp_path / "data", source, on_progress=grow)
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_without_an_end_of_documents_is_refused_with_what_to_do(corpus, tmp_path):
    class Endless:
        special_ids: ClassVar[dict[str, int]] = {"pad": 1}

    with pytest.raises(DataError, match=r"no end-of-document id; name one \(\"eos_token\"\)"):
        build_shards([str(corpus)], tokenizer=Endless(), out=tmp_path / "data")
    assert not (tmp_path / "data").exists()
