from __future__ import annotations

import gzip
import json
import re

import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources import Document, describe_files, read_documents


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts(*patterns):
    return [document.text for document in read_documents([str(pattern) for pattern in patterns])]


def test_files_are_read_in_sorted_order_and_once_whatever_the_patterns(tmp_path):
    for name in "b", "a", "c":
        (tmp_path / f"{name}.jsonl").write_text(lines(f"{name}1", f"{name}2"))
    expected = ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert texts(tmp_path / "*.jsonl") == expected
    assert texts(tmp_path / "c.jsonl", tmp_path / "*.jsonl", tmp_path / "a.jsonl") == expected


def test_keys_are_ids_or_else_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "text": "one"}\n\n{"text": "two"}\n{"text": "  "}\n{"id": 7, "text": "three"}')
    assert list(read_documents([str(path)])) == [
        Document("x", "one"),
        Document(f"{path}:3", "two"),
        Document("7", "three"),
    ]


def test_txt_documents_are_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n one\n  two\t\n \t\n\n\nthree\r\nfour".encode())
    assert list(read_documents([str(path)])) == [
        Document(f"{path}:2", " one\n  two\t"),
        Document(f"{path}:7", "three\nfour"),
    ]


def test_compressed_files_read_like_plain_ones(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines("один", "two\nlines").encode()))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    assert texts(tmp_path / "*.gz") == ["один", "two\nlines", "three"]


def test_a_name_that_looks_like_a_glob_is_taken_literally_when_it_exists(tmp_path):
    (tmp_path / "a[1].jsonl").write_text(lines("here"))
    assert texts(tmp_path / "a[1].jsonl") == ["here"]


def test_source_files_are_described_without_their_folders(tmp_path):
    for folder in "x", "y":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    x, y = (describe_files([str(tmp_path / folder / "*.txt")]) for folder in "xy")
    assert x == y
    (tmp_path / "y" / "a.txt").write_text("diff")
    assert describe_files([str(tmp_path / "y" / "a.txt")]) != x


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\nnot json\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1: no string field 'text'"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: no string field 'text'"),
        ("a.jsonl", b'{"text": "ab\\ud83d"}\n', "a.jsonl:1: character 2 of 'text' is half of a surrogate pair"),
        ("a.txt", b"fine\n\xff\xfe\n", "a.txt:2: not UTF-8"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: damaged or unreadable"),
        ("a.txt.gz", gzip.compress(b"long enough " * 9)[:-12], "a.txt.gz: damaged or unreadable"),
        ("a.csv", b"x", "a.csv: unknown file type"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / message))):
        texts(tmp_path / name)


def test_missing_input_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*nothing\.jsonl"):
        texts(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"no file matches '.*\*.jsonl'"):
        texts(tmp_path / "*.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        texts(tmp_path)
    with pytest.raises(DataError, match="no input given"):
        texts()
