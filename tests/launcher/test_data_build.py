"""The command `ptm data build`: its options, what it prints, and what it says of mistakes."""

from __future__ import annotations

import json

import pytest

from data_pipeline.build import BuildProgress
from data_pipeline.shards import ShardSet
from launcher.commands import build_progress


@pytest.fixture
def arguments(prepared, tmp_path):
    return ("--input", prepared / "corpus.jsonl", "--tokenizer", prepared / "tokenizer", "--out", tmp_path / "data")


def test_all_options_reach_the_build(ptm, arguments, tmp_path):
    options = {
        "validation-fraction": 0.3,
        "shard-bytes": 9_000,
        "id-field": "name",
        "metadata-field": "id",
        "txt-documents": "line",
        "normalize": "NFC",
        "min-characters": 20,
        "max-characters": 50_000,
        "scrub": "ip",
        "deduplicate": "near",
        "near-threshold": 0.7,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = ptm("data", "build", *arguments, *given, "--scrub", "email", "--json")
    assert result.code == 0, result.err
    assert result.json["train"]["shards"] > 1
    shards = ShardSet.open(tmp_path / "data" / "train")
    kept = shards.manifest.build["options"]
    assert (kept["validation_fraction"], kept["shard_bytes"]) == (0.3, 9_000)
    assert kept["source"] == {
        "text_field": "text",
        "id_field": "name",
        "metadata_fields": ["id"],
        "txt_documents": "line",
    }
    assert kept["filters"] == {
        "normalize": "NFC",
        "min_characters": 20,
        "max_characters": 50_000,
        "scrub": ["ip", "email"],
        "deduplicate": "near",
        "near_threshold": 0.7,
    }
    assert all("id" in info for info in shards.infos(0))


def test_what_was_left_out_is_said_and_the_same_command_does_nothing(ptm, arguments, prepared, tmp_path):
    source = tmp_path / "twice.jsonl"
    source.write_text((prepared / "corpus.jsonl").read_text() * 2)
    command = ("data", "build", "--input", source, *arguments[2:], "--deduplicate", "exact")
    first = ptm(*command)
    assert first.code == 0, first.err
    assert "of 80 documents read: exact duplicate 4" in first.out
    assert "hashing" in first.out
    assert "was there already" in ptm(*command).out
    other = ptm(*command[:-1], "none")
    assert other.code == 2
    assert other.err.startswith("error: ")
    assert "was built of deduplicate=exact instead of none" in other.err


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (("--near-threshold", 1.5, "--deduplicate", "near"), "near_threshold=1.5"),
        (("--min-characters", 9, "--max-characters", 3), "max_characters=3"),
        (("--text-field", "body"), "no string field 'body'"),
        (("--input", "nowhere/*.jsonl"), "nowhere/*.jsonl"),
    ],
)
def test_mistakes_are_told_in_one_message_and_leave_nothing(ptm, arguments, tmp_path, mistake, words):
    result = ptm("data", "build", *arguments, *mistake)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


def test_progress_in_a_log_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(build_progress, "_LINE_SECONDS", 0.0)
    with build_progress.shown_progress(first=True) as show:
        show(BuildProgress("tokenising", 1 << 20, 4 << 20, documents=50, text_bytes=3_000_000, tokens=800, seconds=2))
    line = "tokenising: 1.0 MiB of 4.0 MiB, 25 documents/s, 1.5 MB/s, 400 tokens/s\n"
    assert capsys.readouterr().err == line


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with build_progress.shown_progress(first=True) as show:
        show(BuildProgress("hashing", 1 << 20, 4 << 20, documents=50, text_bytes=3_000_000, seconds=2))
        show(BuildProgress("tokenising", 4 << 20, 4 << 20, documents=50, text_bytes=3_000_000, seconds=2))
    shown = capsys.readouterr().err
    assert "hashing" in shown
    assert "25%" in shown
    assert "100%" in shown


def test_json_of_a_summary_holds_the_counts(ptm, arguments):
    result = ptm("data", "build", *arguments, "--min-characters", 1_000, "--json")
    summary = json.loads(result.out)
    kept = summary["train"]["documents"] + summary["validation"]["documents"]
    assert summary["counts"] == {"too_short": summary["documents_read"] - kept}
    assert summary["stages"].keys() == {"tokenising"}
