from __future__ import annotations

import ast
import json
import pydoc_data.topics
import sysconfig
from pathlib import Path

import pytest

from data_pipeline.corpora import write_stdlib_corpus
from data_pipeline.errors import DataError
from data_pipeline.sources import read_documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "new" / "corpus.jsonl"
    return write_stdlib_corpus(out)


@pytest.fixture(scope="module")
def documents(corpus):
    return {document.key: document.text for document in read_documents([str(corpus.path)])}


def test_the_summary_counts_what_was_written(corpus, documents):
    assert corpus.documents == len(documents) > 300
    assert corpus.bytes == sum(len(text.encode()) for text in documents.values()) > 1_500_000


def test_every_docstring_of_a_module_is_there(documents):
    tree = ast.parse(Path(sysconfig.get_path("stdlib"), "argparse.py").read_text())
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    text = documents["module:argparse"]
    assert text.startswith("argparse\n\nCommand-line parsing library")
    assert all(docstring.strip() in text for docstring in docstrings if docstring)


def test_packages_topics_and_nothing_of_this_machine(documents):
    assert "module:email" in documents
    assert "module:email.message" in documents
    assert documents["topic:with"].startswith(pydoc_data.topics.topics["with"].split("\n")[0])
    assert not [key for key in documents if "test" in key.split(".") or "site-packages" in key]
    assert not [key for key in documents if "_sysconfigdata" in key or "sitecustomize" in key]


def test_source_text_adds_the_files_and_the_rest_is_the_same_again(corpus, tmp_path):
    summary = write_stdlib_corpus(tmp_path / "source.jsonl", source_text=True)
    lines = summary.path.read_bytes().splitlines(keepends=True)
    added = {json.loads(line)["id"]: line for line in lines if line.startswith(b'{"id": "source:')}
    argparse = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text()
    assert json.loads(added["source:argparse"])["text"] == argparse
    rest = [line for line in lines if not line.startswith(b'{"id": "source:')]
    assert b"".join(rest) == corpus.path.read_bytes()
    assert summary.bytes > 3 * corpus.bytes
    assert [path.name for path in tmp_path.iterdir()] == ["source.jsonl"]


def test_docstrings_are_documents_of_their_own_that_the_modules_hold(tmp_path, corpus):
    write_stdlib_corpus(tmp_path / "docstrings.jsonl", unit="docstring")
    modules = {row["id"]: row["text"] for row in map(json.loads, corpus.path.open())}
    rows = [json.loads(line) for line in (tmp_path / "docstrings.jsonl").open()]
    docstrings = [row for row in rows if row["id"].startswith("docstring:")]
    assert len(docstrings) > 3000
    for row in docstrings:
        _, name, _ = row["id"].split(":")
        assert row["text"] in modules[f"module:{name}"]
    topics = {key for key in modules if key.startswith("topic:")}
    assert {row["id"] for row in rows} - {row["id"] for row in docstrings} == topics


def test_a_wrong_place_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"ends in \.jsonl"):
        write_stdlib_corpus(tmp_path / "corpus.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_stdlib_corpus(tmp_path / "file" / "corpus.jsonl")


def test_lines_are_plain_json_with_id_and_text(corpus):
    first = json.loads(corpus.path.open().readline())
    assert set(first) == {"id", "text"}
