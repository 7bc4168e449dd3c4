from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shards import (
    BrokenShard,
    LocalFiles,
    Manifest,
    ShardSet,
    TokenizedDocument,
    TokenizedDocuments,
    TokenizerIdentity,
    token_dtype,
    verify,
    write_manifest,
    write_shard,
)
from tests.data_pipeline.shard_files import document, documents_of, write_shards

BLOCK = 1 << 16
LENGTHS = [[5, 1, 9], [1], [40, 2]]


def build(directory, vocab_size=512):
    shards = [documents_of(lengths, vocab_size, seed) for seed, lengths in enumerate(LENGTHS)]
    stream = np.concatenate([document.tokens for documents in shards for document in documents])
    return write_shards(directory, shards, vocab_size), stream


def flip_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2, "<u2"), (65535, "<u2"), (65536, "<u4"), (250_000, "<u4")])
def test_tokens_are_stored_in_the_smallest_type_and_read_back(tmp_path, vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)
    shards, stream = build(tmp_path, vocab_size)
    with tarfile.open(tmp_path / "shard-00000.tar") as archive:
        stored = np.frombuffer(archive.extractfile("00000.tokens.bin").read(), dtype)
    np.testing.assert_array_equal(stored, stream[:15])
    np.testing.assert_array_equal(shards.tokens(0, shards.num_tokens), stream)


def test_every_window_equals_the_joined_documents_also_across_shards(tmp_path):
    shards, stream = build(tmp_path)
    starts = np.cumsum([0, 5, 1, 9, 1, 40])
    assert (shards.num_tokens, shards.num_documents) == (stream.size, 6)
    for begin in range(stream.size + 1):
        for end in range(begin, stream.size + 1):
            window = shards.tokens(begin, end)
            assert window.dtype == np.int64
            np.testing.assert_array_equal(window, stream[begin:end])
            inside = starts[(starts >= begin) & (starts < end)]
            np.testing.assert_array_equal(shards.document_starts(begin, end), inside)


def test_sentences_and_words_of_every_window_are_those_of_the_joined_documents(tmp_path):
    shards, stream = build(tmp_path)
    documents = np.cumsum([0, 5, 1, 9, 1, 40, 2])
    sentences = np.concatenate([np.arange(begin, end, 3) for begin, end in pairwise(documents.tolist())])
    assert shards.num_sentences == sentences.size
    for begin in range(stream.size + 1):
        for end in range(begin, stream.size + 1):
            inside = sentences[(sentences >= begin) & (sentences < end)]
            np.testing.assert_array_equal(shards.sentence_starts(begin, end), inside)
            words = shards.word_starts(begin, end)
            assert words.dtype == np.bool_
            np.testing.assert_array_equal(words, stream[begin:end] % 2 == 0)


def test_the_structure_of_every_shard_is_found_without_its_text(tmp_path):
    shards, stream = build(tmp_path)
    flip_bit(tmp_path / "shard-00001.tar", shards.manifest.shards[1].members["tokens.bin"].offset)
    structures = list(shards.structures())
    assert [structure.first_token for structure in structures] == [0, 15, 16]
    assert [structure.documents.tolist() for structure in structures] == [[0, 5, 6, 15], [0, 1], [0, 40, 42]]
    assert structures[0].sentences.tolist() == [0, 3, 5, 6, 9, 12, 15]
    np.testing.assert_array_equal(structures[2].starts_word(np.arange(5, 23)), stream[21:39] % 2 == 0)
    with pytest.raises(BrokenShard, match=r"tokens\.bin, bytes \d+ to \d+ of the file: not the data"):
        shards.tokens(15, 16)


@pytest.mark.parametrize("member", ["docs.bin", "sents.bin", "wstart.bin"])
def test_a_flipped_bit_in_the_structure_is_found_when_it_is_read(tmp_path, member):
    shards, _ = build(tmp_path)
    flip_bit(tmp_path / "shard-00002.tar", shards.manifest.shards[2].members[member].offset)
    with pytest.raises(BrokenShard, match=rf"shard-00002.tar is damaged: member 00002.{member}, bytes"):
        list(shards.structures())


@pytest.mark.parametrize(("begin", "end"), [(-1, 3), (3, 2), (0, 59)])
def test_positions_outside_the_set_are_refused(tmp_path, begin, end):
    shards, _ = build(tmp_path)
    with pytest.raises(IndexError):
        shards.tokens(begin, end)
    for read in (shards.document_starts, shards.sentence_starts, shards.word_starts):
        with pytest.raises(IndexError):
            read(begin, end)


def test_plain_webdataset_reads_each_shard_as_one_sample(tmp_path):
    shards, stream = build(tmp_path)
    paths = [str(tmp_path / entry.name) for entry in shards.manifest.shards]
    found = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["00000", "00001", "00002"]
    tokens = [np.frombuffer(sample["tokens.bin"], "<u2") for sample in found]
    np.testing.assert_array_equal(np.concatenate(tokens), stream)
    meta = json.loads(found[0]["meta.json"])
    assert meta == {"format": 2, "dtype": "<u2", "tokens": 15, "documents": 3, "sentences": 6}
    assert np.frombuffer(found[0]["docs.bin"], "<i8").tolist() == [0, 5, 6, 15]
    assert np.frombuffer(found[0]["sents.bin"], "<i4").tolist() == [0, 3, 5, 6, 9, 12, 15]
    bits = np.unpackbits(np.frombuffer(found[0]["wstart.bin"], np.uint8), bitorder="little")[:15]
    np.testing.assert_array_equal(bits.astype(bool), stream[:15] % 2 == 0)
    assert np.frombuffer(found[0]["origin.bin"], "<u4").tolist() == [0, 0, 0]
    assert set(found[0]) - {"__key__", "__url__", "__local_path__"} == set(shards.manifest.shards[0].members)


def test_plain_webdataset_finds_the_hashes_of_every_block_and_the_information_line_by_line(tmp_path):
    documents = [
        replace(document(np.arange(count) % 512), info={"number": count}) for count in (70_000, 3, BLOCK // 2 - 3, 1)
    ]
    write_shards(tmp_path, [documents])
    (sample,) = webdataset.WebDataset(str(tmp_path / "shard-00000.tar"), shardshuffle=False)
    assert [json.loads(line)["number"] for line in sample["info.jsonl"].splitlines()] == [70_000, 3, BLOCK // 2 - 3, 1]
    members = ["meta.json", "tokens.bin", "docs.bin", "sents.bin", "wstart.bin", "origin.bin", "info.jsonl"]
    blocks = [sample[name][at : at + BLOCK] for name in members for at in range(0, len(sample[name]), BLOCK)]
    assert len(blocks) == 12
    hashes = np.frombuffer(sample["hashes.bin"], "<u8").tolist()
    assert hashes == [int(xxhash.xxh3_64(block).hexdigest(), 16) for block in blocks]


def test_opening_a_set_reads_no_shard(tmp_path):
    shards, _ = build(tmp_path)
    for entry in shards.manifest.shards:
        (tmp_path / entry.name).write_bytes(bytes(entry.bytes))
    assert ShardSet.open(tmp_path).num_tokens == 58


def test_only_the_blocks_that_are_read_are_checked_and_only_once(tmp_path):
    count = 5 * BLOCK // 2  # of two bytes each
    shards = write_shards(tmp_path, [[document(np.arange(count) % 512)]])
    path = tmp_path / "shard-00000.tar"
    begin = shards.manifest.shards[0].members["tokens.bin"].offset
    assert shards.tokens(0, 10).tolist() == list(range(10))
    flip_bit(path, begin + 2 * BLOCK + 8)
    reader = ShardSet.open(tmp_path)
    third = (2 * BLOCK // 2, 3 * BLOCK // 2)
    assert reader.tokens(0, third[0]).size == third[0]
    assert reader.rows(np.array([third[1], 0]), 1000).shape == (2, 1000)
    for read in (lambda: reader.tokens(third[0] - 1, third[0] + 1), lambda: reader.rows(np.array([third[1] - 1]), 1)):
        with pytest.raises(BrokenShard, match=f"bytes {begin + 2 * BLOCK} to {begin + 3 * BLOCK - 1} of the file"):
            read()
    with path.open("r+b") as stream:  # in place: the same file, whose checked block is not looked at again
        os.pwrite(stream.fileno(), b"\xff", begin)
    assert reader.tokens(0, 1).tolist() == [255]


class Fetched:
    """Files that are copied from another folder when they are asked for, and may go again."""

    def __init__(self, origin, cache):
        self.location = "somewhere://else"
        self._origin, self._cache = LocalFiles(origin), cache
        cache.mkdir()

    def manifest_text(self):
        return self._origin.manifest_text()

    def local_path(self, entry):
        return Path(shutil.copy(self._origin.local_path(entry), self._cache))

    def evict(self):
        for path in self._cache.iterdir():
            path.unlink()


def test_shards_from_elsewhere_are_asked_for_when_they_are_read(tmp_path):
    _, stream = build(tmp_path / "origin")
    files = Fetched(tmp_path / "origin", tmp_path / "cache")
    shards = ShardSet.open(files)
    assert shards.location == "somewhere://else"
    assert list((tmp_path / "cache").iterdir()) == []
    np.testing.assert_array_equal(shards.tokens(16, 20), stream[16:20])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["shard-00002.tar"]
    other = pickle.loads(pickle.dumps(shards))
    np.testing.assert_array_equal(other.rows(np.array([10, 0]), 9), [stream[10:19], stream[:9]])


def test_a_file_that_is_evicted_stays_readable_for_those_who_have_it_mapped(tmp_path):
    _, stream = build(tmp_path / "origin")
    files = Fetched(tmp_path / "origin", tmp_path / "cache")
    shards = ShardSet.open(files)
    shards.tokens(0, 1), shards.tokens(20, 21)
    files.evict()
    (tmp_path / "origin" / "shard-00002.tar").unlink()
    np.testing.assert_array_equal(shards.tokens(16, 58), stream[16:])


def test_a_file_that_comes_back_damaged_is_checked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.shards.open_shards._MAX_OPEN", 1)
    shards, stream = build(tmp_path / "origin")
    reader = ShardSet.open(Fetched(tmp_path / "origin", tmp_path / "cache"))
    np.testing.assert_array_equal(reader.tokens(0, 58), stream)
    flip_bit(tmp_path / "origin" / "shard-00000.tar", shards.manifest.shards[0].members["tokens.bin"].offset)
    with pytest.raises(BrokenShard, match=r"shard-00000\.tar is damaged"):
        reader.tokens(0, 3)


def test_members_start_on_tar_blocks_and_lie_where_the_manifest_says(tmp_path):
    shards, _ = build(tmp_path)
    for entry in shards.manifest.shards:
        with tarfile.open(tmp_path / entry.name) as archive:
            found = {member.name: (member.offset_data, member.size) for member in archive}
        assert found == {f"{entry.key}.{n}": (m.offset, m.size) for n, m in entry.members.items()}
        assert all(offset % 512 == 0 for offset, _ in found.values())
        assert entry.bytes == (tmp_path / entry.name).stat().st_size


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_writing_again_gives_the_same_bytes(tmp_path_factory, lengths, seed):
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for directory in (first, second):
        write_shards(directory, [documents_of(lengths, 300, seed)], 300)
    for name in ("shard-00000.tar", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_fingerprint_follows_content_and_order(tmp_path):
    one, two = documents_of([5, 6], 99, 1), documents_of([5, 6], 99, 2)
    sets = [[one, two], [two, one], [one], [one, one]]
    prints = [write_shards(tmp_path / str(i), shards, 99).fingerprint for i, shards in enumerate(sets)]
    assert len(set(prints)) == len(sets)
    assert prints[0] == write_shards(tmp_path / "again", [one, two], 99).fingerprint


def test_the_manifest_is_read_back_as_written(tmp_path):
    entry = write_shard(tmp_path / "a.tar", "a", documents_of([5], 99), token_dtype(99))
    identity = TokenizerIdentity("cd" * 32, 99, {"end_of_document": 0, "pad": 3})
    written = write_manifest(tmp_path, [entry], identity, {"source": ["x.jsonl"], "fraction": 0.02})
    assert Manifest.load(tmp_path) == written
    assert ShardSet.open(tmp_path).tokenizer == identity


def test_a_missing_shard_is_named_with_its_size(tmp_path):
    shards, _ = build(tmp_path)
    entry = shards.manifest.shards[1]
    (tmp_path / entry.name).unlink()
    with pytest.raises(DataError, match=rf"{entry.name} is missing \({entry.bytes} bytes expected\).*build"):
        ShardSet.open(tmp_path)
    assert len(verify(tmp_path)) == 1


@pytest.mark.parametrize("change", [-1, 1, -5000])
def test_a_shard_of_another_size_is_named_with_both_sizes(tmp_path, change):
    shards, _ = build(tmp_path)
    entry = shards.manifest.shards[2]
    path = tmp_path / entry.name
    path.write_bytes((path.read_bytes() + b"\0")[: entry.bytes + change])
    message = rf"{entry.name} is damaged: it has {entry.bytes + change} bytes, {entry.bytes} expected; copy"
    with pytest.raises(DataError, match=message):
        ShardSet.open(tmp_path)


def test_a_shard_cut_short_after_opening_is_reported_not_crashed_on(tmp_path):
    shards, _ = build(tmp_path)
    (tmp_path / "shard-00002.tar").write_bytes(b"short")
    assert shards.tokens(0, 16).size == 16
    with pytest.raises(DataError, match=r"shard-00002.tar is damaged: it has 5 bytes"):
        shards.tokens(16, 17)


READS = {
    "tokens.bin": ShardSet.tokens,
    "docs.bin": ShardSet.document_starts,
    "sents.bin": ShardSet.sentence_starts,
    "wstart.bin": ShardSet.word_starts,
    "hashes.bin": ShardSet.tokens,
}


@pytest.mark.parametrize("member", sorted(READS))
def test_a_flipped_bit_is_found_at_first_use_and_its_member_named(tmp_path, member):
    shards, _ = build(tmp_path)
    flip_bit(tmp_path / "shard-00002.tar", shards.manifest.shards[2].members[member].offset)
    reopened = ShardSet.open(tmp_path)
    assert reopened.tokens(0, 16).size == 16
    for _ in range(2):
        with pytest.raises(BrokenShard, match=rf"shard-00002.tar is damaged: member 00002.{member}, bytes") as caught:
            READS[member](reopened, 10, 20)
        assert caught.value.shard == "shard-00002.tar"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "not a manifest"),
        (lambda text: text[:200], "not a manifest"),
        (lambda text: "[1]", "not a manifest"),
        (
            lambda text: text.replace('"format": 2', '"format": 1'),
            "format version 1, this program reads 2; build the data again",
        ),
        (lambda text: text.replace('"tokens": 15', '"tokens": "many"'), r"shards\.0\.tokens"),
        (lambda text: text.replace('"tokens": 15', '"tokens": 16'), "tokens.bin of shard-00000.tar has 30 bytes"),
        (lambda text: text.replace('"xxh3": "', '"xxh3": "0', 1), "fingerprint"),
        (lambda text: text.replace('"vocab_size": 512', '"vocab_size": 70000'), "30 bytes instead of 60"),
        (lambda text: text.replace('"vocab_size": 512', '"vocab_size": 0'), "a vocabulary of 0 ids"),
        (lambda text: text.replace('"vocab_size": 512', '"vocab_size": 513'), "checksum"),
        (lambda text: text.replace('"made_by": "test"', '"made_by": "best"'), "checksum"),
        (lambda text: text + " ", "checksum"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, damage, message):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(DataError, match=message):
        ShardSet.open(tmp_path)
    assert len(verify(tmp_path)) == 1


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match=r"no token shards in .*ptm data build"):
        ShardSet.open(tmp_path / "nowhere")


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, "a", documents_of([5], 99), token_dtype(99))
    before = path.read_bytes()

    def broken():
        yield document([1, 2, 0])
        raise RuntimeError("tokenizer died")

    with pytest.raises(RuntimeError, match="tokenizer died"):
        write_shard(path, "a", broken(), token_dtype(99))
    assert [child.name for child in tmp_path.iterdir()] == ["a.tar"]
    assert path.read_bytes() == before


def test_an_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write"):
        write_shard(tmp_path / "file" / "a.tar", "a", documents_of([5], 99), token_dtype(99))


@pytest.mark.parametrize(
    ("tokens", "sentences", "words"),
    [
        ([], [], []),
        ([1, 0], [], [1, 0]),
        ([1, 0], [1], [1, 0]),
        ([1, 0], [0, 2], [1, 0]),
        ([1, 0], [0, 0], [1, 0]),
        ([1, 0], [0], [1]),
    ],
)
def test_documents_whose_arrays_do_not_fit_are_refused(tokens, sentences, words):
    with pytest.raises(ValueError):
        TokenizedDocument(np.array(tokens, int), np.array(sentences, np.int32), np.array(words, bool))


def test_what_a_shard_cannot_hold_is_refused(tmp_path):
    good = documents_of([5], 99)
    for key, documents, dtype in [
        ("a.b", good, "<u2"),
        ("", good, "<u2"),
        ("a", [], "<u2"),
        ("a", good, "<i4"),
        ("a", [document([65536, 0])], "<u2"),
        ("a", [document([-1, 0])], "<u4"),
    ]:
        with pytest.raises(ValueError):
            write_shard(tmp_path / "a.tar", key, documents, np.dtype(dtype))
    entry = write_shard(tmp_path / "a.tar", "a", good, token_dtype(99))
    identity = TokenizerIdentity("ab" * 32, 99, {})
    for shards, tokenizer in [
        ([], identity),
        ([entry, entry], identity),
        ([entry], replace(identity, vocab_size=70000)),
    ]:
        with pytest.raises(ValueError):
            write_manifest(tmp_path, shards, tokenizer, {})
    assert [child.name for child in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_set_in_use_can_be_handed_to_other_processes(tmp_path, method):
    shards, stream = build(tmp_path)
    assert shards.tokens(0, 58).size == 58
    with multiprocessing.get_context(method).Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(shards.tokens, (3, 50)), stream[3:50])


def test_a_pickled_set_holds_no_data(tmp_path):
    shards, _ = build(tmp_path)
    before = len(pickle.dumps(shards))
    shards.tokens(0, 58)
    assert len(pickle.dumps(shards)) == before


def test_more_shards_than_may_be_open_at_once_are_read(tmp_path):
    shards = write_shards(tmp_path, [[document([number, 0])] for number in range(400)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (350, hard))
    try:
        everything = shards.tokens(0, 800).reshape(400, 2)
        np.testing.assert_array_equal(everything[:, 0], np.arange(400))
        np.testing.assert_array_equal(shards.tokens(0, 800).reshape(400, 2), everything)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), length=st.integers(0, 30))
def test_rows_equal_windows_read_one_by_one(tmp_path_factory, data, length):
    shards, stream = build(tmp_path_factory.mktemp("set"))
    begins = data.draw(st.lists(st.integers(0, stream.size - length), max_size=20))
    rows = shards.rows(np.array(begins, np.int64), length)
    assert (rows.dtype, rows.shape) == (np.int64, (len(begins), length))
    for row, begin in zip(rows, begins, strict=True):
        np.testing.assert_array_equal(row, stream[begin : begin + length])


@pytest.mark.parametrize("begin", [-1, 50, 58])
def test_rows_outside_the_set_are_refused(tmp_path, begin):
    shards, _ = build(tmp_path)
    with pytest.raises(IndexError):
        shards.rows(np.array([3, begin]), 9)


def test_the_shards_of_a_window_are_those_that_reading_it_opens(tmp_path):
    shards, stream = build(tmp_path)
    bounds = [(begin, end) for begin in range(stream.size + 1) for end in range(begin, stream.size + 1)]
    begins, ends = np.array(bounds).T
    for (begin, end), found in zip(bounds, shards.shards_of(begins, ends), strict=True):
        reader, expected = pickle.loads(pickle.dumps(shards)), range(len(shards.manifest.shards))
        reader.tokens(begin, end)
        assert found == tuple(number for number in expected if number in reader._shards)


def test_a_shard_in_quarantine_is_not_read_even_if_it_is_sound_or_gone(tmp_path):
    shards, stream = build(tmp_path)
    shards.set_quarantined(["shard-00001.tar", "of-another-set.tar"])
    (tmp_path / "shard-00001.tar").unlink()
    for reader in (shards, pickle.loads(pickle.dumps(shards))):
        np.testing.assert_array_equal(reader.tokens(0, 15), stream[:15])
        np.testing.assert_array_equal(reader.rows(np.array([0, 16]), 9), [stream[:9], stream[16:25]])
        for read in (ShardSet.tokens, ShardSet.word_starts, ShardSet.document_starts):
            with pytest.raises(BrokenShard, match=r"shard-00001.tar of .* is in quarantine") as caught:
                read(reader, 10, 20)
            assert caught.value.shard == "shard-00001.tar"
        with pytest.raises(BrokenShard, match="quarantine"):
            reader.rows(np.array([0, 10]), 9)
    shards.set_quarantined([])
    with pytest.raises(BrokenShard, match="missing"):
        shards.tokens(10, 20)


def test_a_broken_shard_keeps_its_name_on_the_way_from_another_process():
    error = pickle.loads(pickle.dumps(BrokenShard("a.tar", "shard a.tar is damaged")))
    assert (type(error), error.shard, str(error)) == (BrokenShard, "a.tar", "shard a.tar is damaged")


def test_origins_and_information_of_documents_are_read_back(tmp_path):
    plain = document([1, 2, 0])
    infos = [{"url": "http://a/\ud800", "score": 0.5}, None, {"tags": ["\u03b1", None]}]
    told = [replace(plain, origin=origin, info=info) for origin, info in zip([7, 0, 2**32 - 1], infos, strict=True)]
    shards = write_shards(tmp_path, [told, [plain]])
    assert [shards.origins(number).tolist() for number in (0, 1)] == [[7, 0, 2**32 - 1], [0]]
    assert [list(shards.infos(number)) for number in (0, 1)] == [[info or {} for info in infos], [{}]]
    assert ["info.jsonl" in entry.members for entry in shards.manifest.shards] == [True, False]
    assert verify(tmp_path) == []
    for origin in (-1, 2**32):
        with pytest.raises(ValueError):
            replace(plain, origin=origin)


class Parted(Fetched):
    """Files of which members can be had alone, as from a server that knows ranges."""

    def members(self, entry, names):
        data = self._origin.local_path(entry).read_bytes()
        places = {name: entry.members[name] for name in names}
        return {name: data[place.offset : place.offset + place.size] for name, place in places.items()}


def test_the_structure_of_shards_from_elsewhere_is_had_without_their_text(tmp_path):
    local, _ = build(tmp_path / "origin")
    shards = ShardSet.open(Parted(tmp_path / "origin", tmp_path / "cache"))
    for found, expected in zip(shards.structures(), local.structures(), strict=True):
        for field in ("first_token", "documents", "sentences", "word_start_bits"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    assert list((tmp_path / "cache").iterdir()) == []
    flip_bit(tmp_path / "origin" / "shard-00001.tar", local.manifest.shards[1].members["sents.bin"].offset)
    with pytest.raises(BrokenShard, match=r"else/shard-00001\.tar is damaged: member 00001\.sents\.bin") as caught:
        list(shards.structures())
    assert caught.value.shard == "shard-00001.tar"


def test_documents_given_many_at_once_are_written_like_single_ones(tmp_path):
    documents = documents_of([3, 1, 8, 5, 2], 500)
    starts = np.cumsum([0, *(document.tokens.size for document in documents)])
    sentences = [document.sentence_starts + start for document, start in zip(documents, starts, strict=False)]

    def together(first, last):
        begin = starts[first]
        return TokenizedDocuments(
            np.concatenate([document.tokens for document in documents[first:last]]),
            starts[first:last] - begin,
            np.concatenate(sentences[first:last]) - begin,
            np.concatenate([document.word_starts for document in documents[first:last]]),
        )

    single = write_shard(tmp_path / "a.tar", "0", documents, np.dtype("<u2"))
    mixed = write_shard(tmp_path / "b.tar", "0", [together(0, 3), documents[3], together(4, 5)], np.dtype("<u2"))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert single.documents == mixed.documents == 5


@pytest.mark.parametrize(
    ("documents", "sentences", "message"),
    [
        ([1], [0], "start at 0"),
        ([0, 4], [0, 4], "start at 0 and later"),
        ([0, 0], [0], "ascend"),
        ([0, 2], [0, 1], "every document must start a sentence"),
        ([0, 2], [0, 1, 3], "every document must start a sentence"),
    ],
)
def test_many_documents_that_do_not_fit_together_are_refused(documents, sentences, message):
    with pytest.raises(ValueError, match=message):
        TokenizedDocuments(np.arange(4), np.array(documents), np.array(sentences), np.ones(4, dtype=bool))
