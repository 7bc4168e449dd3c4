from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources import Piece, SourceOptions, cut_sources, find_sources, read_documents, read_piece

ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\n \n", "\r\n\r\n", "\n\u3000\n", "\n\t\r\n"])
WORDS = st.text(st.sampled_from("ab \t\r中é🎉\u3000\ufeff\x85"), max_size=12)
LONG = st.builds(lambda word, times: word * times, WORDS, st.sampled_from([1, 1, 1, 1, 900]))
PREFIX = st.sampled_from(["", "\ufeff", "\ufeff\n", "\n"])


@st.composite
def files(draw, line):
    parts = [draw(PREFIX)]
    for text in draw(st.lists(line, max_size=8)):
        parts += [text, draw(ENDS)]
    content = "".join(parts).encode()
    return content[: len(content) - draw(st.integers(0, 1)) * len(b"\n")] if parts[-1].endswith("\n") else content


def check(path, content, piece_bytes, options):
    path.write_bytes(content)
    sources = find_sources([str(path)])
    whole = list(read_documents([str(path)], options))
    pieces = cut_sources(sources, options, piece_bytes)
    found = [document for piece in pieces for document in read_piece(sources, piece, options)]
    if found != whole:  # the diff of long texts would take minutes
        raise AssertionError(f"{[document.key for document in found]} != {[document.key for document in whole]}")
    assert sum(piece.weight for piece in pieces) == len(content)
    assert all(piece.weight <= piece_bytes for piece in pieces)
    return whole


@settings(max_examples=200, deadline=None)
@given(files(LONG), st.integers(1, 40), st.sampled_from(["blank_line", "line"]))
def test_pieces_of_any_text_hold_each_document_once(tmp_path_factory, content, piece_bytes, rule):
    piece_bytes = max(piece_bytes, len(content) // 100)
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    whole = check(path, content, piece_bytes, SourceOptions(txt_documents=rule))
    lines = content.decode("utf-8-sig").split("\n")
    if rule == "line":
        assert [document.text for document in whole] == [line.removesuffix("\r") for line in lines if line.strip()]
    else:
        words = "".join(content.decode("utf-8-sig").split())
        assert "".join("".join(document.text.split()) for document in whole) == words


@settings(max_examples=80, deadline=None)
@given(
    files(LONG.map(lambda text: json.dumps({"text": text}, ensure_ascii=False))),
    st.integers(1, 60),
)
def test_pieces_of_any_json_lines_hold_each_document_once(tmp_path_factory, content, piece_bytes):
    path = tmp_path_factory.getbasetemp() / "pieces.jsonl"
    whole = check(path, content, max(piece_bytes, len(content) // 100), SourceOptions())
    lines = [json.loads(line)["text"] for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    assert [document.text for document in whole] == [text for text in lines if text.strip()]


@pytest.mark.parametrize("size", [4094, 4095, 4096, 4097, 8191, 8192, 9000])
@pytest.mark.parametrize("fill", [" ", "\u3000", "中"])
@pytest.mark.parametrize("first", ["", "中"])
def test_a_cut_after_a_long_line_knows_whether_the_line_was_blank(tmp_path, size, fill, first):
    line = first + fill * (size // len(fill.encode()))
    content = f"one\n{line}\ntwo\nthree\n".encode()
    begin = content.index(b"two")
    for cut in (begin - 1, begin, begin + 1):
        path = tmp_path / "a.txt"
        path.write_bytes(content)
        sources = find_sources([str(path)])
        options = SourceOptions()
        halves = Piece(0, 0, cut, cut), Piece(0, cut, len(content), len(content) - cut)
        found = [document for piece in halves for document in read_piece(sources, piece, options)]
        expected = list(read_documents([str(path)], options))
        assert found == expected
        assert len(expected) == (1 if line.strip() else 2)


def test_a_cut_inside_an_indented_line_does_not_begin_a_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n  two\nthree\n\nfour")
    sources = find_sources([str(path)])
    for cut in range(1, 15):
        found = [list(read_piece(sources, Piece(0, *edges, 0), SourceOptions())) for edges in [(0, cut), (cut, 20)]]
        assert [[document.text for document in part] for part in found] == [["one\n  two\nthree"], ["four"]], cut


def test_pieces_do_not_depend_on_other_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("line\n" * 100)
    one = cut_sources(find_sources([str(tmp_path / "b.txt")]), SourceOptions(), 120)
    both = cut_sources(find_sources([str(tmp_path / "*.txt")]), SourceOptions(), 120)
    assert [(piece.begin, piece.end) for piece in both if piece.source == 1] == [
        (piece.begin, piece.end) for piece in one
    ]
    assert [piece.source for piece in both] == sorted(piece.source for piece in both)
