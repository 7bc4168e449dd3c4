from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.shards import TokenizerIdentity, token_dtype, write_manifest, write_shard
from tests.data_pipeline.shard_files import documents_of

PARTS = {"train": [5, 900, 33, 2], "validation": [17]}


@pytest.fixture
def folder(tmp_path) -> Path:
    data = tmp_path / "data"
    for part, lengths in PARTS.items():
        documents = [replace(document, origin=number % 2) for number, document in enumerate(documents_of(lengths, 99))]
        entry = write_shard(data / part / "a.tar", "a", documents, token_dtype(99))
        sources = [{"name": "old.txt"}, {"name": "new.jsonl"}]
        build = {"sources": sources, "options": {"validation_fraction": 0.02, "filters": {"scrub": ["ip", "email"]}}}
        identity = TokenizerIdentity("ab" * 32, 99, {"end_of_document": 0, "pad": 1})
        write_manifest(data / part, [entry], identity, build)
    (data / "plan.json").write_text("{}")
    return data


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", ["verify", "inspect", "stats"])
def test_every_command_has_help_with_an_example_that_names_it(ptm, command):
    assert f"ptm data {command}" in ptm("data", command, "--help").out.partition("Example")[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_sound_parts_are_called_sound(ptm, folder, workers):
    result = ptm("data", "verify", folder, "--workers", workers)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{folder / 'train'}: sound; 4 documents, 940 tokens",
        f"{folder / 'validation'}: sound; 1 documents, 17 tokens",
    ]


def test_damage_is_named_for_people_and_for_scripts(ptm, folder):
    shard = folder / "validation" / "a.tar"
    flip(shard, 3)
    (folder / "notes.txt").write_text("mine")
    result = ptm("data", "verify", folder)
    assert result.code == 2
    assert "Traceback" not in result.err
    for words in ("notes.txt", str(shard), "header of a.meta.json, byte 3 of the file"):
        assert words in result.err
    told = ptm("data", "verify", folder, "--json")
    assert told.code == 2
    notes, damage = told.json["problems"]
    assert notes["file"] == str(folder / "notes.txt")
    assert (damage["file"], damage["member"], damage["begin"], damage["end"]) == (str(shard), "meta.json", 3, 4)


def test_inspect_shows_both_parts_side_by_side(ptm, folder):
    shown = {line.split("  ")[0]: line for line in ptm("data", "inspect", folder).out.splitlines()}
    assert shown["documents"].split()[1:] == ["4", "1"]
    assert shown["tokens"].split()[1:] == ["940", "17"]
    for name, words in {
        "tokenizer": "abababababab",
        "vocabulary": "99",
        "special ids": "end of document 0, pad 1",
        "sources": "old.txt, new.jsonl",
        "validation fraction": "0.02",
        "filters scrub": "ip, email",
        "format": "2",
    }.items():
        assert shown[name].count(words) == 1  # said once, as it is the same for both
    assert len(shown["fingerprint"].split()) == 3
    (train,) = ptm("data", "inspect", folder / "train", "--json").json
    assert (train["documents"], train["tokens"], train["sources"]) == (4, 940, ["old.txt", "new.jsonl"])


def test_stats_count_lengths_and_sources(ptm, folder):
    train, validation = ptm("data", "stats", folder, "--json").json
    assert (train["shortest"], train["longest"], train["percentiles"]["50"]) == (2, 900, 5)
    assert [(row["name"], row["documents"], row["tokens"]) for row in train["sources"]] == [
        ("old.txt", 2, 38),
        ("new.jsonl", 2, 902),
    ]
    assert validation["lengths"] == [{"low": 16, "high": 31, "documents": 1, "tokens": 17}]
    lines = ptm("data", "stats", folder / "train").out.splitlines()
    assert "512 - 1,023          1  25.0%     900  95.7%" in lines
    assert "new.jsonl          2  50.0%     902  96.0%" in lines


def test_stats_draw_a_picture(ptm, folder, tmp_path):
    from matplotlib.image import imread

    out = tmp_path / "pictures" / "lengths.png"
    result = ptm("data", "stats", folder, "--out", out)
    assert result.code == 0, result.err
    picture = imread(out)
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1000
    assert picture.std() > 0.01
    assert [path.name for path in out.parent.iterdir()] == ["lengths.png"]


def test_mistakes_are_told_in_one_sentence(ptm, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    cases = {
        ("inspect", tmp_path): "no token shards in",
        ("stats", tmp_path): "no token shards in",
        ("verify", tmp_path): "no token shards in",
        ("stats", folder, "--out", "lengths.pdf"): ".png",
        ("stats", folder, "--out", tmp_path / "a.png"): "pip install",
    }
    for arguments, words in cases.items():
        result = ptm("data", *arguments)
        assert result.code == 2
        assert words in result.err
        assert "Traceback" not in result.err
