from __future__ import annotations

import json

import pytest

from data_pipeline.shards import ShardSet


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example_that_names_the_command(ptm, command):
    result = ptm("data", command, "--help")
    assert result.code == 0
    assert f"ptm data {command} " in result.out.partition("Example")[2]


def test_both_parts_go_out_and_come_back(ptm, workspace):
    tokenizer = workspace / "tokenizer"
    out = ptm("data", "export", workspace / "data", "--format", "megatron", "--out", workspace / "meg", "--json").json
    assert sorted(path.name for path in (workspace / "meg").iterdir()) == [
        f"{part}.{ending}" for part in ("train", "validation") for ending in ("bin", "idx")
    ]
    result = ptm(
        *("data", "import", workspace / "meg" / "train", "--validation", workspace / "meg" / "validation"),
        *("--format", "megatron", "--tokenizer", tokenizer, "--out", workspace / "again"),
    )
    assert result.code == 0
    assert f"train       {out['documents']['train']:,} documents, {out['tokens']['train']:,} tokens" in result.out
    for part in ("train", "validation"):
        before, after = (ShardSet.open(workspace / name / part) for name in ("data", "again"))
        assert before.tokens(0, before.num_tokens).tolist() == after.tokens(0, after.num_tokens).tolist()
        assert before.num_documents == after.num_documents


def test_one_part_goes_out_with_its_text(ptm, workspace, prepared):
    out = workspace / "lines"
    options = ("--part", "validation", "--tokenizer", workspace / "tokenizer")
    assert ptm("data", "export", workspace / "data", "--format", "jsonl", "--out", out, *options).code == 0
    (path,) = out.iterdir()
    texts = {json.loads(line)["text"] for line in path.read_text().splitlines()}
    corpus = {json.loads(line)["text"] for line in (prepared / "corpus.jsonl").read_text().splitlines()}
    assert texts
    assert texts < corpus


def test_what_was_changed_is_said(ptm, workspace):
    lines = [{"input_ids": [10, 11]}, {"input_ids": []}, {"input_ids": [12, 2]}]
    (workspace / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("--format", "jsonl", "--tokenizer", workspace / "tokenizer", "--validation-fraction", "0")
    result = ptm("data", "import", workspace / "x.jsonl", *arguments, "--out", workspace / "ours")
    assert result.code == 0
    assert "the end-of-document id was added to 1 documents" in result.out
    assert "1 documents without a token were left out" in result.out
    assert not (workspace / "ours" / "validation").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "tar"), "format 'tar' is not known"),
        (("--format", "jsonl", "--dtype", "int32"), "leave --dtype out"),
        (("--format", "jsonl", "--validation", "x", "--validation-fraction", "0.1"), "give one of them"),
        (("--format", "jsonl"), r"x.jsonl, document 1: id 99999 in a vocabulary of 512 ids"),
    ],
)
def test_mistakes_end_with_2_and_one_message(ptm, workspace, arguments, message):
    (workspace / "x.jsonl").write_text('{"input_ids": [10, 2]}\n{"input_ids": [99999, 2]}\n')
    tokenizer = ("--tokenizer", workspace / "tokenizer", "--out", workspace / "ours")
    result = ptm("data", "import", workspace / "x.jsonl", *arguments, *tokenizer)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert not (workspace / "ours").exists()


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(ptm, workspace):
    export = ("data", "export", workspace / "data", "--format", "olmo", "--out", workspace / "out")
    assert ptm(*export).code == 0
    assert "already exists" in ptm(*export).err
    assert ptm(*export, "--overwrite").code == 0
