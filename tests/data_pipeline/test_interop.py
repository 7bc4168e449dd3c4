from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.interop import ExportOptions, ImportOptions, export_shards, import_tokens
from data_pipeline.interop import block as blocks
from data_pipeline.interop.block import TokenBlock, cut, offsets_of
from data_pipeline.shards import ShardSet, verify
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from tests.data_pipeline.corpus_slice import write_slice
from tests.data_pipeline.foreign_files import documents_in, random_documents, write_mds, write_megatron

END = 2
VOCABULARY = 512
FORMATS = ["megatron", "mds", "olmo", "parquet", "jsonl"]
ALL = ImportOptions(validation_fraction=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer([str(corpus)], kind="sentencepiece-bpe", vocab_size=VOCABULARY, out=folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def texts(corpus):
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


@pytest.fixture(scope="module")
def imported(tokenizer, texts, tmp_path_factory):
    """Real text with its sentences, in shards of train and validation."""
    folder = tmp_path_factory.mktemp("imported")
    lines = [json.dumps({"input_ids": tokenizer.encode(text).tolist()}) for text in texts]
    (folder / "x.jsonl").write_text("\n".join(lines))
    options = ImportOptions(validation_fraction=0.2, sentences=True)
    import_tokens([folder / "x.jsonl"], "jsonl", tokenizer, folder / "data", options)
    return folder / "data"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(cut, "__defaults__", (50,))
    monkeypatch.setattr("data_pipeline.interop.olmo.BLOCK_TOKENS", 50)
    monkeypatch.setattr("data_pipeline.interop.jsonl.BLOCK_TOKENS", 50)
    assert blocks.cut.__defaults__ == (50,)


def train_of(folder):
    assert verify(folder / "train") == []
    return ShardSet.open(folder / "train")


def write_olmo(path, documents, dtype="<u2"):
    np.concatenate(documents).astype(dtype).tofile(path)
    return path


# --- what is in the files, byte for byte ---


def test_a_megatron_pair_has_the_bytes_of_its_description(tokenizer, tmp_path):
    documents = [[10, 11, END], [12, END]]
    write_olmo(tmp_path / "x.npy", documents)
    import_tokens([tmp_path / "x.npy"], "olmo", tokenizer, tmp_path / "ours", ALL)
    export_shards(tmp_path / "ours", "megatron", tmp_path / "out")
    assert (tmp_path / "out" / "train.bin").read_bytes() == struct.pack("<5H", 10, 11, 2, 12, 2)
    assert (tmp_path / "out" / "train.idx").read_bytes() == (
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i2q3q", 3, 2, 0, 6, 0, 1, 2)
    )


def test_an_mds_shard_has_the_bytes_of_its_description(tokenizer, tmp_path):
    write_olmo(tmp_path / "x.npy", [[10, 11, END], [12] * 299 + [END]])
    import_tokens([tmp_path / "x.npy"], "olmo", tokenizer, tmp_path / "ours", ALL)
    export_shards(tmp_path / "ours", "mds", tmp_path / "out", ExportOptions(dtype="uint16"))
    data = (tmp_path / "out" / "train" / "shard.00000.mds").read_bytes()
    first = struct.pack("<IBB3H", 8, 4, 3, 10, 11, 2)
    second = struct.pack("<IBH", 603, 5, 300) + struct.pack("<300H", *[12] * 299, 2)
    count, begin, middle, end = struct.unpack("<4I", data[:16])
    assert (count, middle - begin, end - middle, end) == (2, len(first), len(second), len(data))
    assert data[begin:] == first + second
    config = json.loads(data[16:begin])
    assert (config["column_names"], config["column_encodings"]) == (["tokens"], ["ndarray:uint16"])
    (shard,) = json.loads((tmp_path / "out" / "train" / "index.json").read_text())["shards"]
    assert (shard["samples"], shard["raw_data"]["bytes"]) == (2, len(data))


def test_olmo_files_are_the_ids_and_nothing_else(tokenizer, tmp_path):
    documents = random_documents(50, seed=1, vocab_size=VOCABULARY, end=END)
    write_megatron(tmp_path / "x", [[document] for document in documents])
    import_tokens([tmp_path / "x"], "megatron", tokenizer, tmp_path / "ours", ALL)
    export_shards(tmp_path / "ours", "olmo", tmp_path / "out")
    data = (tmp_path / "out" / "train-00000.npy").read_bytes()
    assert data == np.concatenate(documents).astype("<u2").tobytes()


# --- round trips ---


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_megatron_files_come_back_byte_for_byte(tokenizer, tmp_path, dtype, small_blocks):
    documents = random_documents(300, seed=2, vocab_size=VOCABULARY, end=END)
    index = write_megatron(tmp_path / "x", [[document] for document in documents], dtype)
    import_tokens([index], "megatron", tokenizer, tmp_path / "ours", ImportOptions(0, shard_tokens=3000))
    export_shards(tmp_path / "ours", "megatron", tmp_path / "out", ExportOptions(dtype=dtype))
    assert len(train_of(tmp_path / "ours").manifest.shards) > 2
    for ending in ("bin", "idx"):
        assert (tmp_path / f"out/train.{ending}").read_bytes() == (tmp_path / f"x.{ending}").read_bytes()


def test_megatron_sequences_are_sentences_and_come_back_byte_for_byte(tokenizer, tmp_path, small_blocks):
    rng = np.random.default_rng(3)
    flat = random_documents(100, seed=3, vocab_size=VOCABULARY, end=END)
    documents = [
        [part.tolist() for part in np.split(document, np.unique(rng.integers(0, len(document), 3))) if part.size]
        for document in flat
    ]
    write_megatron(tmp_path / "x", documents)
    import_tokens([tmp_path / "x.bin"], "megatron", tokenizer, tmp_path / "ours", ImportOptions(0, shard_tokens=1000))
    shards = train_of(tmp_path / "ours")
    lengths = [len(sentence) for document in documents for sentence in document]
    assert shards.sentence_starts(0, shards.num_tokens).tolist() == np.cumsum([0, *lengths[:-1]]).tolist()
    assert documents_in(shards) == flat
    export_shards(tmp_path / "ours", "megatron", tmp_path / "out", ExportOptions(sequences="sentence"))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"out/train.{ending}").read_bytes() == (tmp_path / f"x.{ending}").read_bytes()


def test_sentences_survive_megatron_so_that_the_shards_are_the_same(imported, tokenizer, tmp_path):
    export_shards(imported, "megatron", tmp_path / "meg", ExportOptions(sequences="sentence"))
    options = ImportOptions(validation=[tmp_path / "meg/validation"])
    import_tokens([tmp_path / "meg/train"], "megatron", tokenizer, tmp_path / "ours", options)
    for part in ("train", "validation"):
        before, after = ShardSet.open(imported / part), ShardSet.open(tmp_path / "ours" / part)
        assert before.num_sentences > before.num_documents
        for member in ("tokens.bin", "docs.bin", "sents.bin", "wstart.bin"):
            assert [shard.members[member].xxh3 for shard in before.manifest.shards] == [
                shard.members[member].xxh3 for shard in after.manifest.shards
            ]


@pytest.mark.parametrize(
    ("format", "keep_ends"),
    [(format, True) for format in FORMATS] + [(format, False) for format in FORMATS if format != "olmo"],
)
def test_every_format_gives_back_the_same_documents(imported, tokenizer, tmp_path, format, keep_ends, small_blocks):
    export_shards(imported, format, tmp_path / "out", ExportOptions(keep_ends=keep_ends))
    names = {"megatron": "{}", "mds": "{}", "olmo": "{}-00000.npy"}.get(format, "{}-00000." + format)
    paths = {part: tmp_path / "out" / names.format(part) for part in ("train", "validation")}
    options = ImportOptions(validation=[paths["validation"]])
    summary = import_tokens([paths["train"]], format, tokenizer, tmp_path / "again", options)
    for part in paths:
        before, after = ShardSet.open(imported / part), ShardSet.open(tmp_path / "again" / part)
        assert documents_in(after) == documents_in(before)
        everything = (0, before.num_tokens)
        assert np.array_equal(after.word_starts(*everything), before.word_starts(*everything))
    assert summary.counts.ends_added == (0 if keep_ends else summary.counts.documents)


@pytest.mark.parametrize("format", ["mds", "olmo", "parquet", "jsonl"])
def test_files_of_limited_size_hold_all_documents_in_order(
    imported, tokenizer, tmp_path, format, small_blocks, monkeypatch
):
    monkeypatch.setattr("data_pipeline.interop.parquet._GROUP_TOKENS", 500)
    export_shards(imported / "train", format, tmp_path / "out", ExportOptions(file_bytes=5000))
    folder = tmp_path / "out" / "train" if format == "mds" else tmp_path / "out"
    assert len(list(folder.iterdir())) > 3
    import_tokens([folder], format, tokenizer, tmp_path / "again", ALL)
    assert documents_in(train_of(tmp_path / "again")) == documents_in(ShardSet.open(imported / "train"))


def test_origins_name_the_file_of_each_document(tokenizer, tmp_path):
    for number in range(3):
        write_olmo(tmp_path / f"{number}.npy", [[10 + number, END]] * (number + 1))
    import_tokens([tmp_path], "olmo", tokenizer, tmp_path / "ours", ALL)
    shards = train_of(tmp_path / "ours")
    assert shards.origins(0).tolist() == [0, 1, 1, 2, 2, 2]
    assert [source["name"] for source in shards.manifest.build["sources"]] == ["0.npy", "1.npy", "2.npy"]


# --- rules of importing ---


def test_documents_are_ended_and_empty_ones_left_out(tokenizer, tmp_path):
    write_megatron(tmp_path / "x", [[[10, 11]], [[]], [], [[12, END]], [[13], [14, 15]]])
    summary = import_tokens([tmp_path / "x"], "megatron", tokenizer, tmp_path / "ours", ALL)
    shards = train_of(tmp_path / "ours")
    assert documents_in(shards) == [[10, 11, END], [12, END], [13, 14, 15, END]]
    assert shards.sentence_starts(0, 9).tolist() == [0, 3, 5, 6]
    assert (summary.counts.ends_added, summary.counts.empty) == (2, 2)


def test_every_document_is_on_one_side_and_the_side_follows_from_its_ids(tokenizer, tmp_path, small_blocks):
    documents = random_documents(400, seed=4, vocab_size=VOCABULARY, end=END)
    write_olmo(tmp_path / "x.npy", documents)
    write_megatron(tmp_path / "x", [[document[:-1]] for document in reversed(documents)], "int32")
    options = ImportOptions(validation_fraction=0.2)
    import_tokens([tmp_path / "x.npy"], "olmo", tokenizer, tmp_path / "a", options)
    import_tokens([tmp_path / "x"], "megatron", tokenizer, tmp_path / "b", options)
    sides = {}
    for name in "ab":
        train, validation = (documents_in(ShardSet.open(tmp_path / name / part)) for part in ("train", "validation"))
        assert sorted(train + validation) == sorted(documents)
        sides[name] = sorted(validation)
    assert sides["a"] == sides["b"]
    assert 40 < len(sides["a"]) < 130


@pytest.mark.parametrize("fraction", [0.0001, 0.4999])
def test_a_split_leaves_a_document_on_each_side(tokenizer, tmp_path, fraction):
    write_olmo(tmp_path / "x.npy", [[10, END], [11, END]])
    import_tokens([tmp_path / "x.npy"], "olmo", tokenizer, tmp_path / "ours", ImportOptions(fraction))
    assert [ShardSet.open(tmp_path / "ours" / part).num_documents for part in ("train", "validation")] == [1, 1]


def test_sentences_are_found_in_the_text_where_it_gives_the_same_ids(tokenizer, tmp_path):
    text = "One sentence. Another one! And a third?"
    ids = tokenizer.encode(text).tolist()
    broken = [token for letter in text for token in tokenizer.encode(letter).tolist()]  # no text encodes like this
    assert not np.array_equal(tokenizer.encode(tokenizer.decode(broken)), broken)
    rows = (ids, broken, [END])
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    options = ImportOptions(validation_fraction=0, sentences=True)
    summary = import_tokens([tmp_path / "x.jsonl"], "jsonl", tokenizer, tmp_path / "ours", options)
    shards = train_of(tmp_path / "ours")
    starts = shards.sentence_starts(0, len(ids) + 1).tolist()
    pieces = [tokenizer.decode(ids[begin:end]) for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
    assert pieces == ["One sentence.", " Another one!", " And a third?"]
    assert summary.counts.unsplit == 1
    assert shards.num_sentences == 3 + 1 + 1


def test_shards_close_with_the_document_that_fills_them_however_blocks_are_cut(tokenizer, tmp_path, monkeypatch):
    documents = random_documents(200, seed=5, vocab_size=VOCABULARY, end=END)  # they end within characters, too
    write_megatron(tmp_path / "x", [[document] for document in documents])
    fingerprints = set()
    for size in (1, 77, 1 << 18):
        monkeypatch.setattr(cut, "__defaults__", (size,))
        out = tmp_path / f"ours-{size}"
        import_tokens([tmp_path / "x"], "megatron", tokenizer, out, ImportOptions(0.1, shard_tokens=500))
        fingerprints.add(tuple(ShardSet.open(out / part).fingerprint for part in ("train", "validation")))
    assert len(fingerprints) == 1
    shards = train_of(out)
    for entry, structure in zip(shards.manifest.shards[:-1], shards.structures(), strict=False):
        assert structure.documents[-2] < 500 <= entry.tokens


# --- other people's MDS, parquet and JSON ---


def row(ids, dtype):
    return np.array(ids, dtype).tobytes()


@pytest.mark.parametrize(
    ("encoding", "size", "encode"),
    [
        ("ndarray:int32", None, lambda ids: bytes([4, len(ids)]) + row(ids, "<i4")),
        ("ndarray:uint16", None, lambda ids: bytes([5]) + struct.pack("<H", len(ids)) + row(ids, "<u2")),
        ("ndarray", None, lambda ids: bytes([17, 4, len(ids)]) + row(ids, "<i2")),
        ("ndarray:uint32:3", 12, lambda ids: row(ids, "<u4")),
        ("bytes", None, lambda ids: row(ids, "<i8")),
        ("json", None, lambda ids: json.dumps(ids).encode()),
    ],
)
def test_ids_are_found_in_every_encoding_of_mds_beside_other_columns(tokenizer, tmp_path, encoding, size, encode):
    documents = [[10, 11, END], [12, 13, END]]
    samples = []
    for number, document in enumerate(documents):
        value, text = encode(document), b"some text" * number
        heads = [len(text)] if size else [len(text), len(value)]
        samples.append(struct.pack(f"<{len(heads)}I", *heads) + text + struct.pack("<q", number) + value)
    columns = {"id": ("str", None), "length": ("int", 8), "tokens": (encoding, size)}
    folder = write_mds(tmp_path / "mds", samples, columns)
    import_tokens([folder], "mds", tokenizer, tmp_path / "ours", ALL)
    assert documents_in(train_of(tmp_path / "ours")) == documents


def packed_mds(tmp_path, ending, pack):
    folder = write_mds(tmp_path / "mds", [struct.pack("<I2H", 4, 10, END)], {"x": ("bytes", None)})
    raw = folder / "shard.00000.mds"
    data = pack(raw.read_bytes())
    (folder / f"{raw.name}.{ending}").write_bytes(data)
    raw.unlink()
    index = json.loads((folder / "index.json").read_text())
    hashes = {"sha1": hashlib.sha1(data).hexdigest()}
    index["shards"][0]["zip_data"] = {"basename": f"{raw.name}.{ending}", "bytes": len(data), "hashes": hashes}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zstd", zstandard.compress)])
def test_packed_mds_is_unpacked_and_its_hashes_are_checked(tokenizer, tmp_path, ending, pack):
    folder = packed_mds(tmp_path, ending, pack)
    options = ImportOptions(validation_fraction=0, column="x", dtype="uint16")
    import_tokens([folder], "mds", tokenizer, tmp_path / "ours", options)
    assert documents_in(train_of(tmp_path / "ours")) == [[10, END]]
    path = folder / f"shard.00000.mds.{ending}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged: its sha1 is"):
        import_tokens([folder], "mds", tokenizer, tmp_path / "other", options)


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zstd", zstandard.compress)]
)
def test_packed_mds_that_is_cut_short_is_refused_even_without_hashes(tokenizer, tmp_path, ending, pack):
    folder = packed_mds(tmp_path, ending, lambda data: pack(data)[:-3])
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["zip_data"]["hashes"] = {}
    (folder / "index.json").write_text(json.dumps(index))
    options = ImportOptions(validation_fraction=0, column="x", dtype="uint16")
    with pytest.raises(DataError, match=rf"shard.00000.mds.{ending}.* damaged"):
        import_tokens([folder], "mds", tokenizer, tmp_path / "ours", options)


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)]
)
def test_packed_json_that_is_cut_short_is_refused(tokenizer, tmp_path, ending, pack):
    data = pack(b'{"input_ids": [10, 11]}\n' * 1000)
    (tmp_path / f"x.jsonl{ending}").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"x.jsonl{ending}.* damaged"):
        import_tokens([tmp_path / f"x.jsonl{ending}"], "jsonl", tokenizer, tmp_path / "ours", ALL)


def test_parquet_is_read_by_pyarrow_with_the_text_of_each_document(imported, tokenizer, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_shards(imported, "parquet", tmp_path / "out", tokenizer=tokenizer)
    table = parquet.read_table(tmp_path / "out" / "validation-00000.parquet")
    documents = documents_in(ShardSet.open(imported / "validation"))
    assert table["input_ids"].to_pylist() == documents
    assert table["text"].to_pylist() == [tokenizer.decode(document) for document in documents]


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
def test_lists_of_any_kind_with_missing_rows_are_read_from_parquet(tokenizer, tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [[10, 11, END], None, [12, 13, END]]
    types = {"list": pa.list_(pa.uint16()), "large_list": pa.large_list(pa.int64()), "fixed": pa.list_(pa.int32(), 3)}
    pyarrow.parquet.write_table(pa.table({"ids": pa.array(rows, types[kind])}), tmp_path / "x.parquet")
    options = ImportOptions(validation_fraction=0, column="ids")
    summary = import_tokens([tmp_path / "x.parquet"], "parquet", tokenizer, tmp_path / "ours", options)
    assert documents_in(train_of(tmp_path / "ours")) == [rows[0], rows[2]]
    assert summary.counts.empty == 1


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines_hold_ids_and_text(imported, tokenizer, tmp_path, ending):
    export_shards(imported, "jsonl", tmp_path / "out", ExportOptions(part="validation"), tokenizer=tokenizer)
    data = (tmp_path / "out" / "validation-00000.jsonl").read_bytes()
    documents = documents_in(ShardSet.open(imported / "validation"))
    assert [json.loads(line) for line in data.splitlines()] == [
        {"input_ids": document, "text": tokenizer.decode(document)} for document in documents
    ]
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending](data)
    (tmp_path / f"x.jsonl{ending}").write_bytes(packed)
    import_tokens([tmp_path / f"x.jsonl{ending}"], "jsonl", tokenizer, tmp_path / "ours", ALL)
    assert documents_in(train_of(tmp_path / "ours")) == documents


# --- mistakes ---


def test_an_unknown_id_is_named_with_its_file_and_document_and_nothing_is_left(tokenizer, tmp_path, small_blocks):
    documents = random_documents(100, seed=6, vocab_size=VOCABULARY, end=END)
    documents[71][1] = 600
    for name, dtype in (("olmo", "<u2"), ("megatron", "int32")):
        place = tmp_path / name
        place.mkdir()
        if name == "olmo":
            path = write_olmo(place / "x.npy", documents, dtype)
        else:
            path = write_megatron(place / "x", [[document] for document in documents], dtype)
        with pytest.raises(DataError, match=rf"{path}, document 71: id 600 in a vocabulary of 512 ids"):
            import_tokens([path], name, tokenizer, place / "ours", ALL)
        assert {file.suffix for file in place.iterdir()} <= {".npy", ".bin", ".idx"}


def test_a_negative_id_is_refused(tokenizer, tmp_path):
    index = write_megatron(tmp_path / "x", [[[10, -1, END]]], "int32")
    with pytest.raises(DataError, match="document 0: id -1 in a vocabulary"):
        import_tokens([index], "megatron", tokenizer, tmp_path / "ours", ALL)


def damaged_megatron(tmp_path, kind):
    index = write_megatron(tmp_path / "x", [[[10, END]], [[11, 12, END]]])
    data = bytearray(index.read_bytes())
    if kind == "short ids":
        (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-2])
    elif kind == "no ids":
        (tmp_path / "x.bin").unlink()
    elif kind == "short index":
        data = data[:-1]
    elif kind == "modes":
        data += bytes(2)
    elif kind == "floats":
        data[17] = 7
    elif kind == "places":
        data[42 + 8] ^= 1
    elif kind == "bounds":
        data[-24] ^= 1
    elif kind == "no index":
        data = bytearray(b"something else entirely, and long enough to be an index")
    index.write_bytes(data)
    return index


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short ids", r"x.bin is damaged: it has 8 bytes, x.idx expects 10"),
        ("no ids", r"cannot read .*x.bin: No such file"),
        ("short index", r"x.idx is damaged: it has 81 bytes, 82 expected"),
        ("modes", r"x.idx is multimodal"),
        ("floats", r"type code 7 holds no token ids"),
        ("places", r"sequences do not follow each other"),
        ("bounds", r"documents do not cover its 2 sequences"),
        ("no index", r"x.idx is no index of Megatron"),
    ],
)
def test_damage_of_megatron_files_is_named(tokenizer, tmp_path, kind, message):
    index = damaged_megatron(tmp_path, kind)
    with pytest.raises(DataError, match=message):
        import_tokens([index], "megatron", tokenizer, tmp_path / "ours", ALL)
    assert not (tmp_path / "ours").exists()


def test_what_is_no_file_of_the_format_is_named(tokenizer, tmp_path):
    np.save(tmp_path / "real.npy", np.arange(4, dtype=np.uint16))
    (tmp_path / "odd.npy").write_bytes(bytes(3))
    (tmp_path / "text.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "words.jsonl").write_text('{"input_ids": ["x"]}\n')
    (tmp_path / "mds").mkdir()
    (tmp_path / "mds" / "index.json").write_text('{"version": 1, "shards": []}')
    for path, format, message in [
        ("real.npy", "olmo", "NumPy file with a header"),
        ("odd.npy", "olmo", "no whole number of uint16 ids"),
        ("text.jsonl", "jsonl", r"text.jsonl:1: no field 'input_ids' among text.*ptm data build"),
        ("words.jsonl", "jsonl", r"words.jsonl:1: 'input_ids' must be a list of integers"),
        ("mds", "mds", "no index of MDS, version 2"),
        ("text.jsonl", "parquet", "cannot read .*text.jsonl as parquet"),
        ("absent", "megatron", "no file .*absent, nor absent.idx"),
        ("mds", "olmo", "no .npy file in"),
        ("odd.npy", "tar", "format 'tar' is not known; use megatron, mds"),
    ]:
        with pytest.raises(DataError, match=message):
            import_tokens([tmp_path / path], format, tokenizer, tmp_path / "ours", ALL)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("olmo", {"keep_ends": False}, "by their end ids alone"),
        ("olmo", {"dtype": "int32"}, "no type of format olmo; use uint16, uint32"),
        ("jsonl", {"dtype": "int32"}, "leave --dtype out"),
        ("mds", {"sequences": "sentence"}, "is for megatron"),
        ("megatron", {"sequences": "word"}, "use document or sentence"),
        ("megatron", {"part": "test"}, "use train or validation"),
        ("megatron", {"file_bytes": 9}, "one pair of files"),
    ],
)
def test_options_that_a_format_does_not_know_are_refused(imported, tmp_path, format, options, message):
    with pytest.raises(DataError, match=message):
        export_shards(imported, format, tmp_path / "out", ExportOptions(**options))
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_than_the_shards_own_adds_no_text(imported, corpus, tmp_path):
    other = train_tokenizer([str(corpus)], kind="sentencepiece-bpe", vocab_size=400, out=tmp_path / "t")
    with pytest.raises(DataError, match="made by another tokenizer"):
        export_shards(imported, "jsonl", tmp_path / "out", tokenizer=other)


def test_damaged_shards_are_not_exported(imported, tmp_path):
    import shutil

    shutil.copytree(imported, tmp_path / "data")
    shard = next((tmp_path / "data" / "train").glob("*.tar"))
    place = ShardSet.open(imported / "train").manifest.shards[0].members["tokens.bin"].offset
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        export_shards(tmp_path / "data", "megatron", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- blocks ---

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=20)


@given(lengths=st.lists(st.integers(1, 30), max_size=40), tokens=st.integers(1, 60))
def test_cuts_cover_all_documents_and_hold_no_more_than_they_may(lengths, tokens):
    offsets = offsets_of(np.array(lengths, dtype=np.int64))
    runs = list(cut(offsets, tokens))
    assert [number for first, last in runs for number in range(first, last)] == list(range(len(lengths)))
    for first, last in runs:
        assert last - first == 1 or offsets[last] - offsets[first] <= tokens


@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=200)
def test_blocks_do_what_lists_of_documents_do(lengths, data):
    documents = [data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for n in lengths]
    flat = np.array([token for document in documents for token in document], dtype=np.uint16)
    block = TokenBlock(flat, offsets_of(np.array(lengths)), offsets_of(np.array(lengths)))

    def lists(block):
        return [row.tolist() for row in block.rows()]

    full = [document for document in documents if document]
    assert lists(block.without_empty()) == full
    if not full:
        return
    whole = block.without_empty()
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full))))
    some = whole.select(chosen)
    assert lists(some) == [document for document, take in zip(full, chosen, strict=True) if take]
    assert np.array_equal(some.sentences, some.offsets)
    ended = whole.ended_by(3)
    assert lists(ended) == [document if document[-1] == 3 else [*document, 3] for document in full]
    assert np.array_equal(ended.sentences, ended.offsets)
    assert lists(ended.without_end(3)) == [document[:-1] if document[-1] == 3 else document for document in full]
    first = data.draw(st.integers(0, len(full) - 1))
    part = ended.slice(first, len(full))
    assert lists(part) == lists(ended)[first:]
    assert np.array_equal(part.sentences, part.offsets)
