"""Files that the other programs themselves wrote are read, and ours are read by them.

The peers are no dependencies: ``PTM_PEERS_PYTHON`` names an interpreter that has them, for example in an environment
made with ``pip install torch megatron-core==0.16.1 mosaicml-streaming datasets``. Each script below runs there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.interop import ExportOptions, ImportOptions, export_shards, import_tokens
from data_pipeline.shards import ShardSet, TokenizerIdentity
from tests.data_pipeline.foreign_files import documents_in, random_documents

END = 2
VOCABULARY = 5000
MEGATRON = "megatron.core.datasets.gpt_dataset"


class Ids:
    """A tokenizer as far as importing needs one; every token is a word."""

    vocab_size = VOCABULARY
    special_ids = {"end_of_document": END}  # noqa: RUF012
    identity = TokenizerIdentity("ab" * 32, VOCABULARY, {"end_of_document": END})

    def word_starts(self, ids):
        return np.ones(ids.size, dtype=np.bool_)


SERVER = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr
__import__(sys.argv[1])
print("ready", file=answers, flush=True)
for line in sys.stdin:
    script, arguments = json.loads(line)
    names = {"arguments": arguments, "result": None}
    exec(script, names)
    print(json.dumps(names["result"]), file=answers, flush=True)
"""


class Peer:
    """A process in which another program is imported once, and which runs scripts."""

    def __init__(self, python, module, folder):
        self._errors = (folder / f"{module}.err").open("w+")
        self._process = subprocess.Popen(
            [python, "-c", SERVER, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""},
        )
        self.is_ready = self._process.stdout.readline() == "ready\n"

    def run(self, script, *arguments):
        """What the script leaves in `result`."""
        self._process.stdin.write(json.dumps([script, [*map(str, arguments)]]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            pytest.fail(self._errors.read()[-3000:])
        return json.loads(answer)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Starts the process of a module, in the first interpreter that has it."""
    folder = tmp_path_factory.mktemp("peers")
    started = {}

    def peer(module):
        for python in filter(None, [os.environ.get("PTM_PEERS_PYTHON"), sys.executable]):
            if module not in started or not started[module].is_ready:
                started[module] = Peer(python, module, folder)
        if not started[module].is_ready:
            pytest.skip(f"no interpreter has {module}; name one with PTM_PEERS_PYTHON")
        return started[module]

    yield peer
    for process in started.values():
        process.close()


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Documents of ids, and the same in a file that the peers' scripts read."""
    found = random_documents(500, seed=11, vocab_size=VOCABULARY, end=END, mean=150)
    path = tmp_path_factory.mktemp("documents") / "documents.json"
    path.write_text(json.dumps(found))
    return found, path


@pytest.fixture(scope="module")
def ours(documents, tmp_path_factory):
    """The documents in three of our shards."""
    folder = tmp_path_factory.mktemp("ours")
    found, _ = documents
    np.concatenate(found).astype("<u2").tofile(folder / "x.npy")
    options = ImportOptions(validation_fraction=0, shard_tokens=30_000)
    import_tokens([folder / "x.npy"], "olmo", Ids(), folder / "data", options)
    assert len(ShardSet.open(folder / "data" / "train").manifest.shards) == 3
    return folder / "data"


BUILD_MEGATRON = """
import json, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
path, prefix, dtype, sequences = arguments
builder = IndexedDatasetBuilder(prefix + ".bin", dtype=getattr(numpy, dtype))
for document in json.load(open(path)):
    first = len(document) // 3
    if sequences == "sentence" and first:
        builder.add_document(torch.tensor(document), [first, len(document) - first])
    else:
        builder.add_item(torch.tensor(document))
        builder.end_document()
builder.finalize(prefix + ".idx")
"""


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("sequences", ["document", "sentence"])
def test_what_megatron_built_comes_back_byte_for_byte(peer, documents, tmp_path, dtype, sequences):
    found, path = documents
    peer(MEGATRON).run(BUILD_MEGATRON, path, tmp_path / "x", dtype, sequences)
    import_tokens([tmp_path / "x"], "megatron", Ids(), tmp_path / "ours", ImportOptions(0, shard_tokens=20_000))
    assert documents_in(ShardSet.open(tmp_path / "ours" / "train")) == found
    export_shards(tmp_path / "ours", "megatron", tmp_path / "out", ExportOptions(dtype=dtype, sequences=sequences))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"out/train.{ending}").read_bytes() == (tmp_path / f"x.{ending}").read_bytes()


READ_MEGATRON = """
from megatron.core.datasets.indexed_dataset import IndexedDataset
found = IndexedDataset(arguments[0])
result = [found[i].tolist() for i in range(len(found))]
"""


def test_megatron_reads_what_we_export(peer, documents, ours, tmp_path):
    export_shards(ours, "megatron", tmp_path / "out")
    assert peer(MEGATRON).run(READ_MEGATRON, tmp_path / "out" / "train") == documents[0]


GPT_DATASET = """
import json, numpy
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
class Tokenizer:
    eod, vocab_size, unique_identifiers = 2, 5000, {"class": "test"}
prefix, samples, length = arguments[0], int(arguments[1]), int(arguments[2])
config = GPTDatasetConfig(
    random_seed=1234, sequence_length=length, blend=([prefix], None), split="1", path_to_cache=prefix + "-cache",
    reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    tokenizer=Tokenizer(),
)
documents = IndexedDataset(prefix)
found = GPTDataset(documents, prefix, numpy.arange(len(documents), dtype=numpy.int32), samples, Split.train, config)
result = {
    "documents": found.document_index.tolist(), "samples": found.sample_index.tolist(),
    "shuffle": found.shuffle_index.tolist(),
    "tokens": [found[i]["tokens"].tolist() for i in range(samples)],
    "labels": [found[i]["labels"].tolist() for i in range(samples)],
}
"""


def test_megatrons_gpt_dataset_on_our_export_cuts_the_samples_that_its_indexes_say(peer, ours, tmp_path):
    export_shards(ours, "megatron", tmp_path / "out")
    samples, length = 900, 128  # more than one epoch
    found = peer(MEGATRON).run(GPT_DATASET, tmp_path / "out" / "train", samples, length)
    shards = ShardSet.open(ours / "train")
    starts = [*shards.document_starts(0, shards.num_tokens).tolist(), shards.num_tokens]
    order = found["documents"]
    assert len(order) == 2 * shards.num_documents
    lengths = [starts[document + 1] - starts[document] for document in order]
    row = np.concatenate([shards.tokens(starts[document], starts[document + 1]) for document in order])
    begins = np.cumsum([0, *lengths])
    for number in range(samples):
        document, offset = found["samples"][found["shuffle"][number]]
        begin = int(begins[document]) + offset
        assert found["tokens"][number] == row[begin : begin + length].tolist()
        assert found["labels"][number] == row[begin + 1 : begin + length + 1].tolist()


WRITE_MDS = """
import json, numpy
from streaming import MDSWriter
documents, out, encoding, column, compression, hashes, limit = json.load(open(arguments[0])), *arguments[1:]
columns = {column: encoding} if column == "tokens" else {column: encoding, "text": "str", "number": "int"}
dtype = encoding.partition(":")[2] or ("int64" if encoding == "bytes" else "int32")
with MDSWriter(out=out, columns=columns, compression=compression or None, hashes=hashes.split(","),
               size_limit=int(limit)) as writer:
    for number, document in enumerate(documents):
        ids = numpy.array(document, dtype=dtype)
        value = ids.tobytes() if encoding == "bytes" else document if encoding == "json" else ids
        writer.write({column: value, "text": "x" * (number % 7), "number": number})
"""


@pytest.mark.parametrize(
    ("encoding", "column", "compression"),
    [
        ("ndarray:int32", "tokens", ""),
        ("ndarray:uint16", "input_ids", "zstd:3"),
        ("ndarray", "ids", "gz"),
        ("bytes", "tokens", "bz2"),
        ("json", "ids", ""),
    ],
)
def test_what_mds_writer_wrote_is_read(peer, documents, tmp_path, encoding, column, compression):
    found, path = documents
    arguments = [path, tmp_path / "mds", encoding, column, compression, "sha1,xxh64", 40_000]
    peer("streaming").run(WRITE_MDS, *arguments)
    assert len(list((tmp_path / "mds").iterdir())) > 5
    options = ImportOptions(validation_fraction=0, column="ids" if column == "ids" else None)
    import_tokens([tmp_path / "mds"], "mds", Ids(), tmp_path / "ours", options)
    assert documents_in(ShardSet.open(tmp_path / "ours" / "train")) == found


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
def test_our_mds_is_byte_for_byte_that_of_mds_writer(peer, documents, ours, tmp_path, dtype):
    limit = 50_000
    peer("streaming").run(WRITE_MDS, documents[1], tmp_path / "mds", f"ndarray:{dtype}", "tokens", "", "xxh3_64", limit)
    export_shards(ours, "mds", tmp_path / "out", ExportOptions(dtype=dtype, file_bytes=limit))
    expected = {path.name: path.read_bytes() for path in (tmp_path / "mds").iterdir()}
    assert len(expected) > 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "train").iterdir()} == expected


READ_MDS = """
from streaming import LocalDataset, StreamingDataset
local = LocalDataset(arguments[0], split="train")
stream = StreamingDataset(local=arguments[0], split="train", shuffle=False, batch_size=1, validate_hash="xxh3_64")
result = [[row["tokens"].tolist() for row in found] for found in (local, stream)]
"""


def test_streaming_reads_what_we_export(peer, documents, ours, tmp_path):
    export_shards(ours, "mds", tmp_path / "out", ExportOptions(file_bytes=50_000))
    assert peer("streaming").run(READ_MDS, tmp_path / "out") == [documents[0], documents[0]]


LOAD_DATASET = """
import datasets
found = datasets.load_dataset(arguments[0], data_dir=arguments[1], cache_dir=arguments[1] + "-cache")
result = {name: [row["input_ids"] for row in part] for name, part in found.items()}
"""


@pytest.mark.parametrize(("format", "builder"), [("parquet", "parquet"), ("jsonl", "json")])
def test_hugging_face_datasets_loads_both_parts(peer, documents, tmp_path, format, builder):
    np.concatenate(documents[0]).astype("<u2").tofile(tmp_path / "x.npy")
    import_tokens([tmp_path / "x.npy"], "olmo", Ids(), tmp_path / "ours", ImportOptions(validation_fraction=0.2))
    export_shards(tmp_path / "ours", format, tmp_path / "out")
    found = peer("datasets").run(LOAD_DATASET, builder, tmp_path / "out")
    parts = ("train", "validation")
    assert found == {part: documents_in(ShardSet.open(tmp_path / "ours" / part)) for part in parts}
