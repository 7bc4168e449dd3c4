"""The recipes of published models: their size by two counts, and their length as the papers say it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from ptm_dist.models import build_model, parameter_shapes
from ptm_dist.optim.schedules import learning_rate
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.loading import load_recipe
from ptm_dist.recipe.phases import phases, tokens_before
from ptm_dist.recipe.schema import Family, Recipe

CONFIGS = Path(__file__).parents[2] / "configs"

# What the papers and the weights published with them have; GPT-3's weights are not published.
PUBLISHED = {
    "gpt/gpt1-117m": 116_534_784,
    "gpt/gpt2-124m": 124_439_808,
    "gpt/gpt2-355m": 354_823_168,
    "gpt/gpt2-774m": 774_030_080,
    "gpt/gpt2-1558m": 1_557_611_200,
    "bert/bert-base": 110_106_428,
    "bert/bert-large": 336_226_108,
    "roberta/roberta-base": 124_697_433,
    "roberta/roberta-large": 355_412_057,
}
# In the paper's own unit and rounding (GPT-3: table 2.1; ALBERT: table 1).
NAMED = {
    "gpt/gpt3-125m": 125e6,
    "gpt/gpt3-350m": 350e6,
    "gpt/gpt3-760m": 760e6,
    "gpt/gpt3-1.3b": 1.3e9,
    "gpt/gpt3-2.7b": 2.7e9,
    "gpt/gpt3-6.7b": 6.7e9,
    "gpt/gpt3-13b": 13e9,
    "gpt/gpt3-175b": 175e9,
    "albert/albert-base": 12e6,
    "albert/albert-large": 18e6,
    "albert/albert-xlarge": 60e6,
    "albert/albert-xxlarge": 223e6,
}
GPT3 = [name for name in NAMED if "gpt3" in name]
ALL = [*PUBLISHED, *NAMED]


def _recipe(name: str) -> Recipe:
    return load_recipe(CONFIGS / f"{name}.yaml")


def _count(recipe: Recipe) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(recipe.model).values())


def _gpt_config(recipe: Recipe) -> dict[str, int]:
    model = recipe.model
    return {
        "vocab_size": model.vocab_size,
        "n_positions": model.max_positions,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
    }


def _bert_config(recipe: Recipe) -> dict[str, int]:
    model = recipe.model
    return {
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_positions,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": 4 * model.hidden_size,
    }


def _hugging_face_model(recipe: Recipe) -> nn.Module:
    match recipe.model.family:
        case Family.GPT1:
            return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**_gpt_config(recipe)))
        case Family.GPT2 | Family.GPT3:
            return transformers.GPT2LMHeadModel(transformers.GPT2Config(**_gpt_config(recipe)))
        case Family.BERT:
            return transformers.BertForPreTraining(transformers.BertConfig(**_bert_config(recipe)))
        case Family.ROBERTA:
            shape = _bert_config(recipe) | {"max_position_embeddings": 514, "type_vocab_size": 1}
            return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shape))
        case Family.ALBERT:
            shape = _bert_config(recipe) | {"embedding_size": 128, "num_hidden_groups": 1}
            return transformers.AlbertForPreTraining(transformers.AlbertConfig(**shape))


def test_every_recipe_file_of_a_published_model_is_in_the_tables_above():
    shared = {"gpt/gpt2-base", "gpt/gpt3-base", "bert/bert-shared", "roberta/roberta-shared", "albert/albert-shared"}
    folders = (CONFIGS / folder for folder in ("gpt", "bert", "roberta", "albert"))
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for folder in folders for path in folder.glob("*.yaml")}
    assert files == {*ALL, *shared}
    assert {_recipe(name).name for name in ALL} == {Path(name).name for name in ALL}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_a_recipe_has_the_published_number_of_parameters(name: str, parameters: int):
    assert _count(_recipe(name)) == parameters


@pytest.mark.parametrize(("name", "parameters"), NAMED.items())
def test_a_recipe_has_the_number_of_parameters_in_its_name(name: str, parameters: float):
    # The papers round to two or three figures: 355.9M is printed as 350M, 59.0M as 60M.
    assert _count(_recipe(name)) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("name", ALL)
def test_the_hugging_face_model_of_a_recipe_has_as_many_parameters(name: str):
    recipe = _recipe(name)
    with torch.device("meta"):
        reference = _hugging_face_model(recipe)
    assert _count(recipe) == sum(parameter.numel() for parameter in reference.parameters())


def test_counting_parameters_allocates_none():
    with torch.device("meta"):
        model = build_model(_recipe("gpt/gpt3-175b").model)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("name", ALL)
def test_a_published_recipe_contradicts_itself_nowhere_on_64_ranks(name: str):
    recipe = _recipe(name)
    check_recipe(recipe, 64, recipe.model.vocab_size)
    assert recipe.data.sequence_length == recipe.model.max_positions


@pytest.mark.parametrize("name", GPT3)
def test_gpt3_warms_up_decays_and_ends_at_the_papers_tokens(name: str):
    # Appendix B: warmup over 375M tokens, cosine to a tenth at 260B, 300B in all. The recipe names the first step by
    # which so many are read.
    recipe = _recipe(name)
    schedule, steps = recipe.schedule, recipe.training.steps
    assert schedule.decay_steps is not None
    for step, tokens in ((schedule.warmup_steps, 375e6), (schedule.decay_steps, 260e9), (steps, 300e9)):
        assert tokens_before(recipe, step - 1) < tokens <= tokens_before(recipe, step)
    peak = recipe.optimizer.learning_rate
    assert learning_rate(schedule, peak, schedule.warmup_steps, steps) == pytest.approx(peak)
    assert learning_rate(schedule, peak, schedule.decay_steps, steps) == pytest.approx(0.1 * peak)
    assert learning_rate(schedule, peak, steps - 1, steps) == pytest.approx(0.1 * peak)


@pytest.mark.parametrize("name", GPT3)
def test_gpt3_grows_its_batch_from_32k_tokens_to_the_printed_size_within_4_to_12_billion_tokens(name: str):
    recipe = _recipe(name)
    (phase,) = phases(recipe)
    ramp = recipe.training.batch_ramp
    assert ramp is not None
    assert (phase.sizes.final - ramp.start) % ramp.increment == 0
    assert phase.sizes.size(0) * 2048 == 32_768
    assert 4e9 <= ramp.samples * 2048 < 12.01e9
    end = next(step for step in range(recipe.training.steps) if phase.sizes.first_sample(step) >= ramp.samples)
    assert phase.sizes.size(end) == recipe.training.global_batch_size
    # Not much earlier either: a size is chosen at the start of a step.
    assert phase.sizes.size(end - 2) < recipe.training.global_batch_size
    # Table 2.1, where M stands for 2 ** 20; Megatron-LM's 1,536 samples for the 3.2M of the largest.
    printed = {"125m": 0.5, "350m": 0.5, "760m": 0.5, "1.3b": 1, "2.7b": 1, "6.7b": 2, "13b": 2, "175b": 3}
    assert recipe.training.global_batch_size * 2048 == printed[recipe.name.removeprefix("gpt3-")] * 2**20


@pytest.mark.parametrize("name", ["bert/bert-base", "bert/bert-large"])
def test_bert_reads_short_sequences_for_nine_tenths_of_its_steps(name: str):
    # Appendix A.2: 1M steps of 256 sequences, of 128 tokens for 90% of them, then of 512.
    first, second = phases(_recipe(name))
    assert (first.first_step, first.end_step, second.end_step) == (0, 900_000, 1_000_000)
    assert (first.sequence_length, second.sequence_length) == (128, 512)
    # 15% of a sequence: 76.8, and 19.2, which the published code's documentation rounds to 20.
    assert (first.max_predictions, second.max_predictions) == (20, 77)
    assert first.sizes.final == second.sizes.final == 256
    assert tokens_before(_recipe(name), 1_000_000) == 256 * (900_000 * 128 + 100_000 * 512)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("roberta/roberta-base", 500_000 * 8192 * 512),
        ("roberta/roberta-large", 500_000 * 8192 * 512),
        ("albert/albert-base", 10_000_000 * 4096 * 512),
        ("albert/albert-large", 3_000_000 * 4096 * 512),
        ("albert/albert-xlarge", 3_000_000 * 4096 * 512),
        ("albert/albert-xxlarge", 3_000_000 * 4096 * 512),
    ],
)
def test_roberta_and_albert_read_as_many_tokens_as_published(name: str, tokens: int):
    recipe = _recipe(name)
    assert tokens_before(recipe, recipe.training.steps) == tokens


def test_a_dry_run_prints_the_published_number_of_parameters():
    for name in ("gpt/gpt1-117m", "bert/bert-base"):
        command = [
            sys.executable,
            "-m",
            "launcher",
            "train",
            f"configs/{name}.yaml",
            "--nproc",
            "8",
            "--dry-run",
            "--json",
        ]
        done = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["parameters"] == PUBLISHED[name]
