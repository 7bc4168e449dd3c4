"""`ptm checkpoint export` and `import`, and what the other commands make of their results."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

transformers = pytest.importorskip("transformers")


@pytest.fixture
def trained(ptm, workspace):
    """A folder with a short run."""
    result = ptm("train", workspace / "recipe.yaml", "launch.stop_at_step=3")
    assert result.code == 0, result.err
    return workspace


def check_mistake(result, *parts: str) -> None:
    assert result.code == 2, result
    assert result.err.count("error: ") == 1 or result.err.startswith("Usage: ")
    assert "Traceback" not in result.err + result.out
    for part in parts:
        assert part in result.err, result.err


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example(ptm, command):
    result = ptm("checkpoint", command, "--help")
    assert result.code == 0
    assert f"ptm checkpoint {command}" in result.out.partition("Example")[2]


def test_a_run_leaves_and_comes_back_and_every_command_works_on_what_came(ptm, trained):
    left = ptm("checkpoint", "export", trained / "run", "--format", "hf", "--out", trained / "hf", "--json")
    assert left.code == 0, left.err
    assert left.json["model_class"] == "GPT2LMHeadModel"
    assert left.json["tokenizer"] == str(trained / "tokenizer")

    came = ptm("checkpoint", "import", trained / "hf", "--format", "hf", "--out", trained / "back")
    assert came.code == 0, came.err
    assert "gpt2 model of 2 layers" in came.out
    assert "initial weights" not in came.out

    shown = ptm("checkpoint", "show", trained / "back", "--verify")
    assert (shown.code, "imported from hf" in shown.out, "all sound" in shown.out) == (0, True, True)
    arguments = ("--prompt", "Return", "--max-new-tokens", 5, "--temperature", 0, "--json")
    first, second = (ptm("generate", "--checkpoint", trained / name, *arguments) for name in ("run", "back"))
    assert second.code == 0, second.err
    # Imported tokenizers are of another library: the same ids, and the same text.
    assert first.json["texts"] == second.json["texts"]

    started = ptm(
        "train",
        trained / "recipe.yaml",
        f"run_dir={trained}/second",
        f"checkpoint.load_from={trained}/back",
        "training.steps=2",
        "--json",
    )
    assert started.code == 0, started.err
    assert (started.json["start_step"], started.json["step"]) == (0, 2)
    # Weights of another run's third step are better than initial ones.
    losses = [json.loads(line) for line in (trained / "second" / "metrics.jsonl").read_text().splitlines()]
    fresh = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    begin, scratch = (next(row for row in rows if row["kind"] == "train")["losses"][0] for rows in (losses, fresh))
    assert begin < scratch - 0.1


def test_the_size_of_files_is_an_option(ptm, trained):
    done = ptm("checkpoint", "export", trained / "run", "--out", trained / "hf", "--max-shard-size", "0.03MB", "--json")
    assert done.code == 0, done.err
    assert len(done.json["files"]) > 3
    assert (trained / "hf" / "model.safetensors.index.json").is_file()
    transformers.GPT2LMHeadModel.from_pretrained(trained / "hf")
    for text in ("many", "0", "1TB"):
        result = ptm("checkpoint", "export", trained / "run", "--out", trained / "no", "--max-shard-size", text)
        check_mistake(result, "KB, MB, GB, KiB, MiB or GiB")


@pytest.mark.parametrize(
    ("text", "count"), [("7", 7), ("2GB", 2 * 10**9), ("1.5 kb", 1500), ("3MiB", 3 << 20), ("1gib", 1 << 30)]
)
def test_sizes_are_read_as_people_write_them(text, count):
    from launcher.commands.checkpoint import parse_size

    assert parse_size(text) == count


def test_a_tokenizer_that_moved_is_named_or_left_out(ptm, trained):
    shutil.move(trained / "tokenizer", trained / "elsewhere")
    without = ptm("checkpoint", "export", trained / "run", "--out", trained / "without")
    assert without.code == 0, without.err
    assert "give one by --tokenizer" in without.out
    assert not (trained / "without" / "tokenizer.json").exists()
    arguments = ("--out", trained / "with", "--tokenizer", trained / "elsewhere")
    assert ptm("checkpoint", "export", trained / "run", *arguments).code == 0
    assert (trained / "with" / "tokenizer.json").is_file()
    assert json.loads((trained / "with" / "config.json").read_text())["eos_token_id"] == 2

    came = ptm("checkpoint", "import", trained / "without", "--out", trained / "back")
    assert came.code == 0, came.err
    assert "tokenizer: none" in came.out


def test_a_model_without_heads_tells_what_it_lacks_and_what_recipes_must_say(ptm, tmp_path):
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "theirs")
    came = ptm("checkpoint", "import", tmp_path / "theirs", "--out", tmp_path / "ours", "--seed", 3)
    assert came.code == 0, came.err
    assert "with initial weights: head.dense.weight" in came.out
    assert "pair_head.classifier.weight" in came.out
    for line in ("family: bert", "vocab_size: 60", "ffn_hidden_size: 40", "activation: gelu_erf"):
        assert f"  {line}\n" in came.out


def test_mistakes_end_in_one_message_and_leave_nothing(ptm, trained):
    folder = trained / "theirs"
    folder.mkdir()
    out = ("--out", trained / "no")
    check_mistake(ptm("checkpoint", "import", folder, *out), "config.json")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    check_mistake(ptm("checkpoint", "import", folder, *out), "LlamaForCausalLM", "GPT2LMHeadModel")
    transformers.GPT2Config(n_embd=12, n_head=3, n_layer=1).save_pretrained(folder)
    check_mistake(ptm("checkpoint", "import", folder, *out), "no weights")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    check_mistake(ptm("checkpoint", "import", folder, *out), "model.safetensors", "damaged")
    torch.save({"wte.weight": torch.ones(2, 2)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    check_mistake(ptm("checkpoint", "import", folder, *out), "cannot be imported", "lacks transformer.")
    check_mistake(ptm("checkpoint", "export", trained / "run", "--out", folder), "exists already")
    check_mistake(ptm("checkpoint", "export", folder, *out), "no checkpoint")
    check_mistake(ptm("checkpoint", "export", trained / "run", "--format", "onnx", *out), "onnx")
    arguments = (*out, "--tokenizer", folder)
    check_mistake(ptm("checkpoint", "export", trained / "run", *arguments), "no tokenizer")
    assert not list(trained.glob("no*"))


def test_a_run_of_another_shape_than_the_imported_model_is_refused(ptm, trained):
    assert ptm("checkpoint", "export", trained / "run", "--out", trained / "hf").code == 0
    assert ptm("checkpoint", "import", trained / "hf", "--out", trained / "back").code == 0
    arguments = (f"run_dir={trained}/other", f"checkpoint.load_from={trained}/back", "model.num_layers=3")
    check_mistake(ptm("train", trained / "recipe.yaml", *arguments), "another model", "num_layers: 2 -> 3")
