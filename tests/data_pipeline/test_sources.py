from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources import (
    Document,
    Piece,
    SourceOptions,
    cut_sources,
    describe_files,
    find_sources,
    read_documents,
    read_piece,
)
from data_pipeline.sources.remote import without_query


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts(*patterns, **options):
    return [
        document.text for document in read_documents([str(pattern) for pattern in patterns], SourceOptions(**options))
    ]


def pieces_of(path, piece_bytes=1, **options):
    options = SourceOptions(**options)
    files = find_sources([str(path)])
    pieces = cut_sources(files, options, piece_bytes)
    return pieces, [list(read_piece(files, piece, options)) for piece in pieces]


def test_files_are_read_in_sorted_order_and_once_whatever_the_patterns(tmp_path):
    for name in "b", "a", "c":
        (tmp_path / f"{name}.jsonl").write_text(lines(f"{name}1", f"{name}2"))
    expected = ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert texts(tmp_path / "*.jsonl") == expected
    assert texts(tmp_path / "c.jsonl", tmp_path / "*.jsonl", f"file://{tmp_path}/a.jsonl") == expected


def test_keys_are_ids_or_else_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "text": "one"}\n\n{"text": "two"}\n{"text": "  "}\n{"id": 7, "text": "three"}')
    assert list(read_documents([str(path)])) == [
        Document("x", "one"),
        Document(f"{path}@28", "two"),
        Document("7", "three"),
    ]


def test_fields_can_have_other_names_and_metadata_is_kept(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"body": "one", "text": 3, "url": "u", "n": [1, {"a": null}]}\n{"body": "two", "doc": 4}\n')
    options = SourceOptions(text_field="body", id_field="doc", metadata_fields=("url", "n"))
    assert list(read_documents([str(path)], options)) == [
        Document(f"{path}@0", "one", {"url": "u", "n": [1, {"a": None}]}),
        Document("4", "two", {}),
    ]


def test_txt_documents_are_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n one\n  two\t\n \t\n\n\nthree\r\nfour".encode())
    assert list(read_documents([str(path)])) == [
        Document(f"{path}@4", " one\n  two\t"),
        Document(f"{path}@21", "three\nfour"),
    ]


def test_txt_documents_can_be_lines_or_whole_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\n two\nthree")
    assert texts(path, txt_documents="line") == ["one", " two", "three"]
    assert texts(path, txt_documents="file") == ["one\n\n two\nthree"]
    assert pieces_of(path, txt_documents="file")[0] == [Piece(0, 0, 1, 16)]


def zstd_of_two_frames(data):
    middle = len(data) // 2
    return b"".join(zstandard.compress(part) for part in (data[:middle], b"", data[middle:]))


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + bytes(100)),
        ("zst", zstd_of_two_frames),
        ("xz", lambda data: lzma.compress(data[:9]) + lzma.compress(data[9:])),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.tar"])
def test_compressed_files_read_like_plain_ones(tmp_path, name, ending, pack):
    plain = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": ["один", "two\nlines"]}), plain)
    elif name == "a.tar":
        write_tar(plain, {"1.txt": "один", "2.txt": "two\nlines"})
    else:
        plain.write_text(lines("один", "two\nlines") if name == "a.jsonl" else "один\n\ntwo\nlines\n")
    packed = tmp_path / f"{name}.{ending}"
    packed.write_bytes(pack(plain.read_bytes()))
    assert texts(packed) == texts(plain) == ["один", "two\nlines"]
    assert pieces_of(packed)[0] == [Piece(0, 0, 1, packed.stat().st_size)]


@pytest.mark.parametrize("tool", [["gzip"], ["xz", "-T2"], ["zstd", "-q", "--long=31"]])
def test_what_the_command_line_tools_pack_is_read(tmp_path, tool):
    if not shutil.which(tool[0]):
        pytest.skip(f"{tool[0]} is not installed")
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*map(str, range(50_000))))
    subprocess.run([*tool, str(path)], check=True)
    packed = next(file for file in tmp_path.iterdir() if file != path)
    assert texts(packed) == [str(number) for number in range(50_000)]


def test_archives_packed_with_a_long_window_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(packer.compress(b"text") + packer.flush())
    assert texts(tmp_path / "a.txt.zst") == ["text"]


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


def write_parquet(path, groups, **columns):
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=-(-len(table) // groups))


def test_parquet_rows_are_documents_and_row_groups_are_pieces(tmp_path):
    path = tmp_path / "a.parquet"
    bodies = [f"text {number} 中" for number in range(10)]
    write_parquet(path, 5, url=list("abcdefghij"), text=bodies)
    pieces, parts = pieces_of(path, metadata_fields=("url",))
    assert [(piece.begin, piece.end) for piece in pieces] == [(group, group + 1) for group in range(5)]
    assert [document for part in parts for document in part] == [
        Document(f"{path}@{row}", text, {"url": "abcdefghij"[row]}) for row, text in enumerate(bodies)
    ]
    assert [(piece.begin, piece.end) for piece in pieces_of(path, pieces[0].weight + 1)[0]] == [(0, 2), (2, 4), (4, 5)]
    assert 0 < sum(piece.weight for piece in pieces) < path.stat().st_size


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    ids=["text", "large", "dictionary"],
)
def test_parquet_text_of_any_string_type_is_read_and_null_is_left_out(tmp_path, kind):
    values = pa.array(["one", None, " ", "two"], pa.string()).cast(kind)
    write_parquet(tmp_path / "a.parquet", 1, body=values, id=[1, 2, 3, 4])
    found = list(read_documents([str(tmp_path / "a.parquet")], SourceOptions(text_field="body")))
    assert found == [Document("1", "one"), Document("4", "two")]


def test_parquet_metadata_becomes_json(tmp_path):
    when = pa.array([0], pa.timestamp("s"))
    write_parquet(tmp_path / "a.parquet", 1, text=["x"], when=when, tags=[["a", "b"]], score=[0.5])
    options = SourceOptions(metadata_fields=("when", "tags", "score"))
    (document,) = read_documents([str(tmp_path / "a.parquet")], options)
    assert document.info == {"when": "1970-01-01 00:00:00", "tags": ["a", "b"], "score": 0.5}


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, 1, body=["x"], url=["y"], n=[1])
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text'; its columns are body, url, n"):
        texts(path)
    with pytest.raises(DataError, match=r"no column 'lang'; its columns are body, url, n"):
        texts(path, text_field="body", metadata_fields=("lang",))
    with pytest.raises(DataError, match="column 'n' holds int64, not text"):
        texts(path, text_field="n")


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))


def test_a_tar_is_read_as_webdataset_groups_it(tmp_path):
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "one", "txt": "first"})
        writer.write({"__key__": "sub.dir/two", "txt": "second", "json": {"id": 2, "url": "u"}, "cls": 3})
        writer.write({"__key__": "three", "json": {"text": "third", "url": "v"}, "jpg.bin": b"\xff"})
        writer.write({"__key__": "four", "txt": " \n"})
        writer.write({"__key__": "five", "cls": 1})
    peer = [
        (sample["__key__"], sample["txt"].decode() if "txt" in sample else json.loads(sample["json"])["text"])
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
        if "txt" in sample or "json" in sample
    ]
    found = list(read_documents([str(path)], SourceOptions(metadata_fields=("url",))))
    assert [document.text for document in found] == [text for _, text in peer if text.strip()]
    assert [document.key for document in found] == [f"{path}@one", "2", f"{path}@three"]
    assert [document.info for document in found] == [{}, {"url": "u"}, {"url": "v"}]


def test_a_large_tar_is_read_in_little_memory(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.txt": "word " * 10 for number in range(8_000)})
    tracemalloc.start()
    assert sum(1 for _ in read_documents([str(path)])) == 8_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_tar_members_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "a.tar"
    for members, message in [
        ({"a.txt": "x", "b.json": "{"}, r"member b\.json: not valid JSON"),
        ({"a.txt": "x", "b.json": '{"id": 1}'}, "member b: no string field 'text'; its fields are id"),
    ]:
        write_tar(path, members)
        with pytest.raises(DataError, match=message):
            texts(path)
    write_tar(path, {"a.txt": "x"})
    write_tar(path, {"a.txt": "y"}, "a")
    with pytest.raises(DataError, match=r"member a: more than one \.txt"):
        texts(path)


@pytest.mark.parametrize("cut", [512 * 3, 512 * 2, 512 * 2 + 100, 700])
def test_a_tar_that_ends_early_or_is_damaged_is_refused(tmp_path, cut):
    path = tmp_path / "a.tar"
    write_tar(path, {"1.txt": "one", "2.txt": "two", "3.txt": "three"})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"a\.tar.*damaged or unreadable"):
        texts(path)
    path.write_bytes(whole[:1024] + b"rubbish" + whole[1031:])
    with pytest.raises(DataError, match=r"a\.tar.*damaged or unreadable .*header"):
        texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\nnot json\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1: no string field 'text'; its fields are body"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: no string field 'text'"),
        ("a.jsonl", b'{"text": "ab\\ud83d"}\n', "a.jsonl:1: character 2 of 'text' is half of a surrogate pair"),
        ("a.jsonl", b'{"n": ' + b"1" * 5_000 + b"}\n", "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1: not valid JSON"),
        ("a.txt", b"fine\n\xff\xfe\n", "a.txt:2: not UTF-8"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: damaged or unreadable"),
        ("a.txt.gz", gzip.compress(b"long enough " * 9)[:-12], "a.txt.gz: damaged or unreadable"),
        ("a.txt.zst", b"no zstandard", "a.txt.zst: damaged or unreadable"),
        ("a.txt.zst", zstandard.compress(b"long enough " * 9)[:-3], "a.txt.zst:1: damaged or unreadable"),
        ("a.txt.xz", lzma.compress(b"long enough " * 9)[:-12], "a.txt.xz:1: damaged or unreadable"),
        ("a.parquet", b"PAR1 but not really PAR1", "a.parquet: damaged or unreadable"),
        ("a.parquet.gz", gzip.compress(b"PAR1" * 9)[:-12], "a.parquet.gz: damaged or unreadable"),
        ("a.csv", b"x", "a.csv: unknown file type"),
        ("a.csv.gz", b"x", "a.csv.gz: unknown file type"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    pattern = re.escape(str(tmp_path / message)).replace(":1:", "(:1)?:")
    with pytest.raises(DataError, match=pattern):
        texts(tmp_path / name)


def test_a_piece_from_the_middle_names_the_byte_where_reading_failed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines("a" * 50) + "not json\n" + lines("b" * 50))
    files = find_sources([str(path)])
    with pytest.raises(DataError, match=r"a\.jsonl at byte 63: not valid JSON"):
        list(read_piece(files, Piece(0, 5, 100, 95), SourceOptions()))


def test_missing_input_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*nothing\.jsonl"):
        texts(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"no file matches '.*\*.jsonl'"):
        texts(tmp_path / "*.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        texts(tmp_path)
    with pytest.raises(DataError, match="no input given"):
        texts()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz", "a.txt.zst", "a.txt.xz", "a.parquet", "a.tar"])
def test_an_empty_file_has_no_documents(tmp_path, name):
    (tmp_path / name).touch()
    assert texts(tmp_path / name) == []
    assert pieces_of(tmp_path / name) == ([], [])


@pytest.mark.parametrize("keep", [0.5, 1.5])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tar"])
def test_a_file_that_changes_between_listing_and_reading_is_an_error_that_says_so(tmp_path, name, keep):
    path = tmp_path / name
    if name == "a.tar":
        write_tar(path, {f"{number}.txt": "text" for number in range(20)})
    else:
        content = lines(*map(str, range(1_000))).encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    files = find_sources([str(path)])
    size = path.stat().st_size
    os.truncate(path, int(size * keep))
    (piece,) = cut_sources(files, SourceOptions(), 1 << 30)
    with pytest.raises(DataError, match=f"changed while it was read: {size} bytes when it was listed, now"):
        next(read_piece(files, piece, SourceOptions()))


@pytest.mark.parametrize("count", [2_000, 2_000.5, 7_000, 7_000.5])
def test_a_file_that_changes_under_the_reader_is_an_error_that_says_so(tmp_path, count):
    path = tmp_path / "a.jsonl"
    line = lines("x" * 1_000)
    path.write_text(line * 5_000)
    documents = read_documents([str(path)])
    next(documents)
    with path.open("r+") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(line * 3_000)
        stream.truncate(int(len(line) * count))
    with pytest.raises(DataError, match="changed while it was read"):
        list(documents)


def test_a_key_in_the_query_of_a_url_is_not_shown():
    assert without_query("https://host/a.jsonl?token=secret#part") == "https://host/a.jsonl"
    assert without_query("data/what?.jsonl") == "data/what?.jsonl"
