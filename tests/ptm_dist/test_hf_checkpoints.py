"""Folders of transformers to checkpoints and back, in every form they come in."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptm_dist.checkpoint import find_checkpoint, load_model, verify
from ptm_dist.checkpoint.convert import export_checkpoint, import_checkpoint
from ptm_dist.errors import CheckpointError
from ptm_dist.models import parameter_shapes
from ptm_dist.models.hf import hf_config, model_section, to_hf
from ptm_dist.recipe.schema import Family, ModelSection
from tests.ptm_dist.hf_models import (
    ONE_PER_CLASS,
    SECTIONS,
    SPECIAL_IDS,
    Problem,
    our_model,
    relative_error,
    their_model,
)
from tests.ptm_dist.runs import make_recipe, run_alone, run_processes, weights, write_data

transformers = pytest.importorskip("transformers")


@contextmanager
def no_leftovers(folder: Path):
    """Nothing appears in a folder, hidden or not."""
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def saved(case: str, folder: Path, **options):
    ours = our_model(SECTIONS[case])
    theirs = their_model(ours, SECTIONS[case])
    theirs.save_pretrained(folder, **options)
    return ours, theirs


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    other = dict(second.named_parameters())
    return all(torch.equal(parameter, other[name]) for name, parameter in first.named_parameters())


@pytest.mark.parametrize("case", SECTIONS)
def test_a_model_goes_there_and_back_bitwise_and_transformers_misses_nothing(case, tmp_path):
    ours, theirs = saved(case, tmp_path / "theirs")
    done = import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert (done.initial, done.unused, done.tokenizer) == ((), (), None)
    model, recipe = load_model(tmp_path / "ours")
    assert same_weights(model, ours)
    assert recipe.model == done.section
    assert not verify(find_checkpoint(tmp_path / "ours").path)

    written = export_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert written.parameters == sum(p.numel() for p in ours.parameters())
    loaded, info = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "back")) is type(theirs.config)
    assert same_weights(loaded, theirs)
    problem = Problem.of(SECTIONS[case])
    for our_logits, their_logits in zip(problem.ours(model), problem.theirs(loaded.eval()), strict=True):
        assert our_logits is None or relative_error(our_logits, their_logits) < 2e-6


def test_a_file_is_never_larger_than_asked_unless_one_tensor_is(tmp_path):
    _, theirs = saved("bert-tanh", tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    done = export_checkpoint(tmp_path / "ours", tmp_path / "back", max_shard_bytes=20_000)
    assert len(done.files) > 3
    assert sorted(path.name for path in (tmp_path / "back").glob("model*")) == sorted(done.files)
    whole = sum(p.numel() for p in theirs.parameters()) * 4
    assert json.loads((tmp_path / "back" / done.files[-1]).read_text())["metadata"]["total_size"] == whole
    header = 4096
    assert max((tmp_path / "back" / name).stat().st_size for name in done.files[:-1]) < 20_000 + header
    loaded, info = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert same_weights(loaded, theirs)


RELATIVES = {
    "OpenAIGPTModel": ("gpt1", 0),
    "GPT2Model": ("gpt2", 0),
    "BertModel": ("bert-tanh", 7),
    "BertForMaskedLM": ("bert-tanh", 4),
    "BertForNextSentencePrediction": ("bert-tanh", 5),
    "RobertaModel": ("roberta", 5),
    "AlbertModel": ("albert-erf-2-groups", 8),
    "AlbertForMaskedLM": ("albert-tanh", 4),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_with_fewer_heads_is_imported_and_what_it_lacks_is_listed(name, tmp_path):
    case, lacking = RELATIVES[name]
    section = SECTIONS[case]
    model_class = getattr(transformers, name)
    config = model_class.config_class(**hf_config(section, SPECIAL_IDS) | {"architectures": [name]})
    torch.manual_seed(5)
    theirs = model_class(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    done = import_checkpoint(tmp_path / "theirs", tmp_path / "ours", seed=3)
    assert len(done.initial) == lacking
    assert all(part.startswith(("head.", "pair_head.")) for part in done.initial)
    assert done.unused == (("pooler.dense.bias", "pooler.dense.weight") if name == "RobertaModel" else ())

    model, _ = load_model(tmp_path / "ours")
    problem = Problem.of(section)
    base = getattr(theirs, theirs.base_model_prefix, theirs)
    expected = problem.their_output(base).last_hidden_state
    segments = problem.segments if model.spec.embedding.segments > 1 else None
    found = model.encode(problem.ids, segments, None if model.spec.block.causal else problem.valid)
    # ln_f is a part of their trunk and of our head.
    found = model.head.norm(found) if name == "GPT2Model" else found
    assert relative_error(found[problem.valid], expected[problem.valid]) < 2e-6

    import_checkpoint(tmp_path / "theirs", tmp_path / "again", seed=3)
    import_checkpoint(tmp_path / "theirs", tmp_path / "other", seed=4)
    assert same_weights(load_model(tmp_path / "again")[0], model)
    assert same_weights(load_model(tmp_path / "other")[0], model) is not any(
        part.endswith("weight") and "norm" not in part for part in done.initial
    )


def as_torch_file(folder: Path, theirs, **options) -> None:
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin", **options)


def as_old_torch_file(folder: Path, theirs) -> None:
    as_torch_file(folder, theirs, _use_new_zipfile_serialization=False)


def as_numbered_torch_files(folder: Path, theirs) -> None:
    items = list(theirs.state_dict().items())
    places = {}
    for number, part in enumerate((items[::2], items[1::2]), start=1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(dict(part), folder / name)
        places |= dict.fromkeys((key for key, _ in part), name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def as_numbered_safetensors(folder: Path, theirs) -> None:
    theirs.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def as_file_with_buffers_and_tensorflow_names(folder: Path, theirs) -> None:
    renamed = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in theirs.state_dict().items()
    }
    torch.save(renamed | {"bert.embeddings.position_ids": torch.arange(17)[None]}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "write",
    [
        as_torch_file,
        as_old_torch_file,
        as_numbered_torch_files,
        as_numbered_safetensors,
        as_file_with_buffers_and_tensorflow_names,
    ],
    ids=lambda write: write.__name__,
)
def test_every_kind_of_weight_file_is_read(write, tmp_path):
    ours, theirs = saved("bert-tanh", tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    write(tmp_path / "theirs", theirs)
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "ours").initial == ()
    assert same_weights(load_model(tmp_path / "ours")[0], ours)


def test_masks_that_old_gpt2_files_hold_are_passed_over(tmp_path):
    ours, theirs = saved("gpt2", tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    state = {key.removeprefix("transformer."): value for key, value in theirs.state_dict().items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 17, 17), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    torch.save(state | masks, tmp_path / "theirs" / "pytorch_model.bin")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert same_weights(load_model(tmp_path / "ours")[0], ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(dtype, tmp_path):
    ours = our_model(SECTIONS["roberta"])
    their_model(ours, SECTIONS["roberta"]).to(dtype).save_pretrained(tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    model, _ = load_model(tmp_path / "ours")
    assert all(torch.equal(p, q.to(dtype).float()) for p, q in zip(model.parameters(), ours.parameters(), strict=True))


def test_an_untied_bias_that_is_saved_under_one_name_only_is_found(tmp_path):
    ours, theirs = saved("bert-erf-untied", tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    state = {key: value for key, value in theirs.state_dict().items() if key != "cls.predictions.decoder.bias"}
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin")
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "ours").initial == ()
    assert same_weights(load_model(tmp_path / "ours")[0], ours)


def drop(state: dict, key: str) -> None:
    del state[key]


def damage(folder: Path, change) -> None:
    """Write the weights again after `change`."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def of_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weights": print}, folder / "pytorch_model.bin")


def rename_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BartModel"]}))


MISTAKES = {
    "another class": (rename_class, "BartModel, which cannot be imported"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "cannot read .*config.json"),
    "half a configuration": (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
    "half a file": (truncate, "model.safetensors is missing, damaged"),
    "a file of code": (of_code, "pytorch_model.bin is missing, damaged, or not of tensors alone"),
    "a lost layer": (
        lambda folder: damage(folder, lambda state: drop(state, "bert.encoder.layer.1.output.dense.weight")),
        "lacks bert.encoder.layer.1.output.dense.weight",
    ),
    "half a projection": (
        lambda folder: damage(folder, lambda state: drop(state, "bert.encoder.layer.1.attention.self.key.bias")),
        "lacks bert.encoder.layer.1.attention.self.key.bias",
    ),
    "a name that means nothing": (
        lambda folder: damage(folder, lambda state: state.update({"bert.adapter.weight": torch.ones(2)})),
        "does not have: bert.adapter.weight",
    ),
    "a wrong shape": (
        lambda folder: damage(folder, lambda state: state.update({"cls.predictions.bias": torch.ones(7)})),
        r"cls.predictions.bias is \(7,\), and config.json means \(101,\)",
    ),
    "tied weights that differ": (
        lambda folder: damage(
            folder, lambda state: state.update({"cls.predictions.decoder.weight": torch.ones(101, 36)})
        ),
        "differ, and config.json says they are one",
    ),
    "whole numbers": (
        lambda folder: damage(
            folder, lambda state: state.update({"cls.predictions.bias": torch.ones(101, dtype=torch.int8)})
        ),
        "cls.predictions.bias is of torch.int8",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_folder_that_cannot_be_imported_is_refused_in_one_message_and_leaves_nothing(mistake, tmp_path):
    change, message = MISTAKES[mistake]
    saved("bert-tanh", tmp_path / "theirs")
    change(tmp_path / "theirs")
    with no_leftovers(tmp_path), pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")


def test_a_numbered_file_that_is_lost_is_named(tmp_path):
    saved("bert-tanh", tmp_path / "theirs", max_shard_size="20KB")
    next((tmp_path / "theirs").glob("model-00002-*")).unlink()
    with no_leftovers(tmp_path), pytest.raises(CheckpointError, match=r"model-00002-of.*is missing"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")


def test_nothing_is_overwritten(tmp_path):
    saved("gpt2", tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    with no_leftovers(tmp_path), pytest.raises(CheckpointError, match="exists already"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    with no_leftovers(tmp_path), pytest.raises(CheckpointError, match="exists already"):
        export_checkpoint(tmp_path / "ours", tmp_path / "theirs")


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    saved("gpt2", tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    path = next((tmp_path / "ours").rglob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with no_leftovers(tmp_path), pytest.raises(CheckpointError, match="damaged"):
        export_checkpoint(tmp_path / "ours", tmp_path / "back")


def tiny(folder: Path, run: str, imported: Path, **layout):
    """One step at a learning rate that changes no bit, from an imported checkpoint."""
    return make_recipe(
        folder,
        run,
        optimizer={"learning_rate": 1e-300},
        schedule={"kind": "constant", "warmup_steps": 0},
        training={"steps": 1},
        layout=layout,
        evaluation={"every": 0},
        checkpoint={"load_from": str(imported)},
    )


def test_a_run_at_any_layout_starts_at_step_0_with_the_imported_weights_and_exports_them(tmp_path):
    section = make_recipe(tmp_path, "any").model
    ours = our_model(section)
    theirs = their_model(ours, section)
    theirs.save_pretrained(tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    write_data(tmp_path / "data")

    alone = tiny(tmp_path, "alone", tmp_path / "ours")
    summary = run_alone(alone)
    assert (summary.start_step, summary.step) == (0, 1)
    parallel = tiny(tmp_path, "parallel", tmp_path / "ours", tensor_parallel=2, zero_stage=3)
    assert run_processes(parallel, 2) == [0, 0]
    for recipe in (alone, parallel):
        found = weights(recipe)
        assert all(torch.equal(found[name], parameter) for name, parameter in ours.named_parameters())
        done = export_checkpoint(recipe.directory, tmp_path / f"{recipe.name}-back")
        loaded = type(theirs).from_pretrained(done.path)
        assert same_weights(loaded, theirs)


class MemoryWatch:
    """The most memory that belongs to this process alone, file pages not counted, seen while the body runs."""

    def __enter__(self):
        gc.collect()
        # What was freed before goes back to the system, or its reuse would look like no growth.
        ctypes.CDLL(None).malloc_trim(0)
        self._before = self.peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.peak - self._before

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.peak = max(self.peak, self._now())
            time.sleep(0.0005)

    @staticmethod
    def _now() -> int:
        lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_both_ways_hold_a_few_tensors_and_never_the_model(tmp_path):
    section = ModelSection(family=Family.BERT, vocab_size=4096, hidden_size=512, num_layers=8, num_heads=8)
    shapes = parameter_shapes(section)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    # In half precision, so that what is imported cannot just point into the file.
    ours = {name: torch.ones(shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(to_hf(ours, section), theirs / "model.safetensors", metadata={"format": "pt"})
    del ours
    (theirs / "config.json").write_text(json.dumps(hf_config(section, {})))
    model = 4 * sum(math.prod(shape) for shape in shapes.values())
    largest = 4 * 4096 * 512
    assert model > 13 * largest

    import_checkpoint(theirs, tmp_path / "warm-up")
    shutil.rmtree(tmp_path / "warm-up")
    with MemoryWatch() as importing:
        import_checkpoint(theirs, tmp_path / "ours")
    with MemoryWatch() as exporting:
        export_checkpoint(tmp_path / "ours", tmp_path / "back")
    # A tensor as it was read, as it is laid out, and what the library copies to write it.
    assert importing.growth < 5 * largest
    assert exporting.growth < 5 * largest
    with MemoryWatch() as whole:
        kept = load_model(tmp_path / "ours")
    # Less than all of it: what earlier work has freed is used again.
    assert whole.growth > 0.6 * model, "the watch itself sees nothing"
    del kept


@pytest.mark.parametrize("case", ONE_PER_CLASS)
def test_special_ids_of_the_tokenizer_stand_in_the_configuration(case):
    config = hf_config(SECTIONS[case], SPECIAL_IDS)
    expected = {
        "gpt1": (2, 2, 1),
        "gpt2": (2, 2, 1),
        "bert-tanh": (None, None, 1),
        "roberta": (0, 2, 1),
        "albert-erf-2-groups": (0, 2, 1),
    }
    found = tuple(config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id"))
    assert found == expected[case]
    assert model_section(config) == SECTIONS[case]
