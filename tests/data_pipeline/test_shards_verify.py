from __future__ import annotations

import os
import tarfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards import (
    TokenizedDocument,
    TokenizerIdentity,
    token_dtype,
    verify,
    write_manifest,
    write_shard,
)
from data_pipeline.shards.verify import parts_of, surplus
from tests.data_pipeline.shard_files import document, documents_of, write_shards

BLOCK = 1 << 16


def large_documents(seed, tokens=50_000):
    rng = np.random.default_rng(seed)
    for origin in range(3):
        ids = rng.integers(0, 512, tokens)
        starts = np.arange(0, tokens, 2, dtype=np.int32)
        yield TokenizedDocument(ids, starts, ids % 2 == 0, origin, {"url": f"http://{origin}"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards whose members have several blocks."""
    directory = tmp_path_factory.mktemp("shards")
    entries = [write_shard(directory / f"{n}.tar", f"{n}", large_documents(n), token_dtype(512)) for n in range(2)]
    build = {"sources": ["a.jsonl", "b.jsonl", "c.jsonl"], "note": "\u00fc"}
    write_manifest(directory, entries, TokenizerIdentity("ab" * 32, 512, {"end_of_document": 0}), build)
    return directory


@contextmanager
def flipped(path, position, bit):
    """The file with one bit flipped, and as it was again."""
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        os.pwrite(stream.fileno(), bytes([byte ^ 1 << bit]), position)
        try:
            yield
        finally:
            os.pwrite(stream.fileno(), bytes([byte]), position)


@dataclass(frozen=True)
class Files:
    """The files of a folder with their bytes, and where Python's own tar reader sees the members of shards."""

    directory: Path
    contents: dict[Path, bytes]
    members: dict[Path, list[tarfile.TarInfo]]

    @classmethod
    def of(cls, directory):
        contents = {path: path.read_bytes() for path in sorted(directory.iterdir())}
        return cls(directory, contents, {path: tarfile.open(path).getmembers() for path in directory.glob("*.tar")})

    def place(self, path, position):
        """The member and the stretch of bytes that a flipped bit at a position must be found in."""
        for member in self.members[path]:
            name = member.name.split(".", 1)[1]
            first, end = member.offset_data, member.offset_data + member.size
            if first <= position < end and name != "hashes.bin":
                block = first + (position - first) // BLOCK * BLOCK
                return name, block, min(block + BLOCK, end)
            if member.offset <= position < end + -end % 512:
                return name, position, position + 1
        return None, position, position + 1

    def check_flipped_bit(self, path, position, bit):
        with flipped(path, position, bit):
            (damage,) = verify(self.directory)
        assert damage.file == str(path)
        assert str(path) in str(damage)
        if path in self.members:
            assert (damage.member, damage.begin, damage.end) == self.place(path, position)


@pytest.fixture(scope="module")
def files(folder):
    return Files.of(folder)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_flipped_bit_of_a_folder_is_found_and_its_place_named(files, data):
    path = data.draw(st.sampled_from(sorted(files.contents)))
    bounds = [m.offset_data + d for m in files.members.get(path, []) for d in (-1, 0, BLOCK - 1, BLOCK, m.size)]
    last = len(files.contents[path]) - 1
    position = data.draw(st.integers(0, last) | st.sampled_from([0, last, *(min(bound, last) for bound in bounds)]))
    files.check_flipped_bit(path, position, data.draw(st.integers(0, 7)))


def test_every_byte_of_a_small_folder_counts(tmp_path):
    write_shards(tmp_path, [[replace(document([7, 8, 0]), info={"a": 1})]])
    files = Files.of(tmp_path)
    for path, content in files.contents.items():
        for position, byte in enumerate(content):
            if (byte and path in files.members) or position % 11 == 0:  # of the zeros and the manifest, some
                files.check_flipped_bit(path, position, position % 8)
    assert verify(tmp_path) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_several_kinds_of_damage_are_all_found_on_any_number_of_processes(folder, files, workers):
    first, second = (folder / f"{number}.tar" for number in range(2))
    tokens, sentences = (files.place(first, m.offset_data)[1] for m in files.members[first][1:4:2])
    read = []
    with ExitStack() as stack:
        for path, position in ((first, tokens + 3), (first, tokens + BLOCK), (first, sentences - 7), (second, 5)):
            stack.enter_context(flipped(path, position, 1))
        damages = verify(folder, workers=workers, on_progress=read.append)
    assert [(damage.file, damage.member, damage.begin) for damage in damages] == [
        (str(first), "sents.bin", sentences - 7),
        (str(first), "tokens.bin", tokens),
        (str(first), "tokens.bin", tokens + BLOCK),
        (str(second), "meta.json", 5),
    ]
    assert read == [len(files.contents[path]) for path in (first, second)]


def test_damage_of_the_hashes_and_of_data_at_once_is_named(folder, files):
    path = folder / "0.tar"
    hashes, tokens = (files.members[path][number] for number in (-1, 1))
    with flipped(path, hashes.offset_data + hashes.size - 1, 0), flipped(path, tokens.offset_data, 0):
        damages = verify(folder)
    assert {damage.member for damage in damages} == {"hashes.bin", "tokens.bin"}


def test_missing_cut_and_surplus_files_are_named(tmp_path):
    shards = write_shards(tmp_path, [documents_of([5, 6], 99, seed) for seed in range(4)])
    entries = shards.manifest.shards
    (tmp_path / entries[0].name).unlink()
    for number, change in ((1, -1), (2, 1)):
        path = tmp_path / entries[number].name
        path.write_bytes((path.read_bytes() + b"\0")[: entries[number].bytes + change])
    (tmp_path / "shard-00009.tar").write_bytes(b"left over")
    (tmp_path / "empty").mkdir()
    damages = verify(tmp_path)
    assert [Path(damage.file).name for damage in damages] == [
        "empty",
        "shard-00009.tar",
        *(entry.name for entry in entries[:3]),
    ]
    for damage, words in zip(damages, ("not listed", "not listed", "missing", "bytes, ", "bytes, "), strict=True):
        assert words in str(damage)


def test_a_file_that_does_not_belong_beside_the_parts_is_named(tmp_path):
    for part in ("train", "validation"):
        write_shards(tmp_path / part, [documents_of([5], 99)])
    (tmp_path / "plan.json").write_text("{}")
    assert parts_of(tmp_path) == [tmp_path / "train", tmp_path / "validation"]
    assert surplus(tmp_path) == []
    (tmp_path / "notes.txt").write_text("mine")
    (damage,) = surplus(tmp_path)
    assert damage.file == str(tmp_path / "notes.txt")
    assert surplus(tmp_path / "train") == []


def test_a_disk_that_cannot_be_read_is_reported(tmp_path):
    write_shards(tmp_path, [documents_of([5], 99)])
    path = tmp_path / "shard-00000.tar"
    path.unlink()
    path.mkdir()
    (damage,) = verify(tmp_path)
    assert damage.file == str(path)


@pytest.mark.parametrize(
    ("member", "position", "value", "words"),
    [
        ("tokens.bin", 2, 600, "token id 600 in a vocabulary of 512"),
        ("docs.bin", 8, 0, "document offsets"),
        ("docs.bin", 0, 1, "document offsets"),
        ("sents.bin", 4, 0, "sentence offsets"),
        ("origin.bin", 0, 2, "source file number 2 of 2"),
        ("info.jsonl", 8, ord(" "), "0 lines for 1 documents"),
        ("meta.json", 11, ord(" "), "does not say"),
    ],
)
def test_nonsense_under_right_hashes_is_named(tmp_path, member, position, value, words):
    identity = TokenizerIdentity("ab" * 32, 512, {})
    path = tmp_path / "a.tar"
    tokens = TokenizedDocument(np.arange(4), np.array([0, 2], np.int32), np.ones(4, bool), 1, {"a": 1})
    entry = write_shard(path, "a", [tokens], token_dtype(512))
    data = bytearray(path.read_bytes())
    place = entry.members[member]
    width = {"tokens.bin": 2, "docs.bin": 8, "sents.bin": 4, "origin.bin": 4}.get(member, 1)
    data[place.offset + position : place.offset + position + width] = value.to_bytes(width, "little")
    path.write_bytes(rehashed(data, entry))
    write_manifest(tmp_path, [with_hashes(data, entry)], identity, {"sources": ["x", "y"]})
    (damage,) = verify(tmp_path)
    assert damage.member == member
    assert words in str(damage)


def rehashed(data, entry):
    """The bytes of a shard of small members with the hashes that belong to its data."""
    digests = [xxhash.xxh3_64_intdigest(bytes(data[m.offset : m.offset + m.size])) for m in entry.members.values()]
    hashes = entry.members["hashes.bin"]
    data[hashes.offset : hashes.offset + hashes.size] = np.array(digests[:-1], "<u8").tobytes()
    return bytes(data)


def with_hashes(data, entry):
    members = {
        name: replace(m, xxh3=xxhash.xxh3_64_hexdigest(bytes(data[m.offset : m.offset + m.size])))
        for name, m in entry.members.items()
    }
    return replace(entry, members=members)
