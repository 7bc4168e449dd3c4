from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptm_dist.errors import RecipeError
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.optim.build import build_optimizer, slot_names
from ptm_dist.optim.clipping import clip_divisor
from ptm_dist.optim.decay import is_decayed
from ptm_dist.optim.optimizer import Optimizer
from ptm_dist.parallel.mesh import RankMesh
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.schema import OptimizerSection

HEADS, HEAD_SIZE = 2, 5
HIDDEN = HEADS * HEAD_SIZE
QKV = "layers.0.attention.qkv.weight"
SHAPES = {
    "embeddings.token.weight": (23, HIDDEN),
    "embeddings.norm.weight": (HIDDEN,),
    QKV: (3 * HIDDEN, HIDDEN),
    "layers.0.attention.qkv.bias": (3 * HIDDEN,),
    "layers.0.ffn.up.weight": (17, HIDDEN),
    "layers.0.ffn_norm.weight": (HIDDEN,),
}
WHOLE_MESH = RankMesh()
STEPS, RATE = 12, 3e-3
SECTIONS = {
    "adamw": {"kind": "adamw", "betas": (0.9, 0.98)},
    "adamw without correction": {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": False},
    "lamb": {"kind": "lamb", "betas": (0.9, 0.98), "eps": 1e-6},
    "lamb without correction": {"kind": "lamb", "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": False},
    "sgd": {"kind": "sgd", "momentum": 0.8},
    "sgd without momentum": {"kind": "sgd", "momentum": 0.0},
}


def section(name: str, **values: object) -> OptimizerSection:
    return OptimizerSection.model_validate({"learning_rate": RATE, "weight_decay": 0.1, **SECTIONS[name], **values})


def random_like_weights(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for name, shape in SHAPES.items()
    }


def gradients_of(step: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Gradients that grow from far below eps to above it: a misplaced eps or a missing correction shows."""
    return random_like_weights(100 + step, scale=10.0 ** (step - 10), dtype=dtype)


def optimizer_of(asked: OptimizerSection, weights: dict[str, Tensor]) -> Optimizer:
    boxes = {name: LocalShard(w, tuple(w.shape), (0,) * w.dim()) for name, w in weights.items()}
    return build_optimizer(asked, lambda: boxes, lambda name: (False, False), WHOLE_MESH, HEAD_SIZE)


def trained(asked: OptimizerSection, steps: int = STEPS) -> dict[str, Tensor]:
    weights = random_like_weights(0)
    optimizer = optimizer_of(asked, weights)
    for step in range(steps):
        optimizer.step(gradients_of(step), RATE)
    return weights


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal up to the rounding of float64: a step adds a few 1e-16 of a weight near 1."""
    for name, w in theirs.items():
        torch.testing.assert_close(ours[name], w, rtol=1e-14, atol=1e-15, msg=lambda m, n=name: f"{n}: {m}")


def clipped_by(divisor: float, name: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], ...]:
    """Weights where the update divides the gradients, and where they come divided."""
    results = []
    for folded in (True, False):
        weights = random_like_weights(0, dtype=dtype)
        optimizer = optimizer_of(section(name), weights)
        for step in range(STEPS):
            gradients = gradients_of(step, dtype)
            if folded:
                optimizer.step(gradients, RATE, torch.tensor(divisor, dtype=dtype))
            else:
                optimizer.step({name: gradient / divisor for name, gradient in gradients.items()}, RATE)
        results.append(weights)
    return tuple(results)


@pytest.mark.parametrize("name", SECTIONS)
def test_an_update_divides_gradients_as_well_as_a_pass_before_it(name):
    # No power of two, nor exact in float32: a divisor that is rounded shows in double precision.
    assert_near(*clipped_by(3.7, name))
    for parameter, weight in clipped_by(3.7, name, torch.float32)[0].items():
        torch.testing.assert_close(weight.double(), clipped_by(3.7, name)[1][parameter], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_divisor_that_is_no_finite_number_leaves_weights_and_state_as_they_are(name, dtype):
    for divisor, poison in ((torch.nan, torch.nan), (torch.inf, torch.inf), (torch.inf, 1e30)):
        weights = random_like_weights(0, dtype=dtype)
        optimizer = optimizer_of(section(name), weights)
        optimizer.step(gradients_of(0, dtype), RATE)
        state = [*weights.values(), *(t for tensors in optimizer.slots().values() for t in tensors.values())]
        before = [tensor.clone() for tensor in state]
        gradients = gradients_of(1, dtype)
        for gradient in gradients.values():
            gradient.view(-1)[3] = poison
        optimizer.step(gradients, RATE, torch.tensor(divisor, dtype=dtype))
        assert all(torch.equal(tensor, old) for tensor, old in zip(state, before, strict=True))
        assert optimizer.steps_done == 2


@pytest.mark.parametrize("form", [Form.TRITON, Form.APEX])
def test_a_form_that_cannot_update_these_weights_is_refused_before_the_first_step(form):
    choice = Choice({Operation.OPTIMIZER: form})
    for dtype, on_host, words in ((torch.float64, False, "float32 weights only"), (torch.float32, True, "on the host")):
        weights = random_like_weights(0, dtype=dtype)
        boxes = {name: LocalShard(w, tuple(w.shape), (0,) * w.dim()) for name, w in weights.items()}
        with pytest.raises(RecipeError, match=f"kernels.optimizer={form}.*{words}"):
            build_optimizer(
                section("adamw"), lambda given=boxes: given, lambda name: (False, False), WHOLE_MESH, HEAD_SIZE,
                on_host=on_host, choice=choice,
            )  # fmt: skip


def test_a_divisor_clips_a_gradient_to_the_length_that_torch_clips_it_to():
    ours = random_like_weights(0)[QKV]
    theirs = torch.nn.Parameter(ours.clone())
    theirs.grad = ours.clone()
    norm = torch.nn.utils.clip_grad_norm_([theirs], 0.5)
    divisor = clip_divisor(norm, 0.5)
    torch.testing.assert_close(ours / divisor, theirs.grad, rtol=1e-15, atol=0.0)
    assert clip_divisor(norm, 0.0) is None
    assert clip_divisor(norm, 1e3) == 1.0
    assert clip_divisor(torch.tensor(torch.nan), 0.5).isnan()
    assert clip_divisor(torch.tensor(torch.inf), 0.5).isinf()
    # A meta tensor has no values: whatever asked for one would raise.
    assert clip_divisor(norm.to("meta"), 0.5).is_meta


def by_torch(kind: type[torch.optim.Optimizer], **values: object) -> dict[str, Tensor]:
    weights = random_like_weights(0)
    matrices = [w for w in weights.values() if w.dim() > 1]
    vectors = [w for w in weights.values() if w.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = kind(groups, lr=RATE, foreach=False, **values)
    for step in range(STEPS):
        for name, gradient in gradients_of(step).items():
            weights[name].grad = gradient
        optimizer.step()
    return {name: w.detach() for name, w in weights.items()}


def by_paper(asked: OptimizerSection, *, layerwise: bool) -> dict[str, Tensor]:
    """Adam with decoupled decay, and LAMB, as printed: query, key and value are matrices of their own."""
    weights = random_like_weights(0)
    (beta1, beta2), eps = asked.betas, asked.eps
    for name, w in weights.items():
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        decayed = w.dim() > 1
        for step in range(STEPS):
            g = gradients_of(step)[name]
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            t = step + 1 if asked.bias_correction else float("inf")
            update = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
            if decayed:
                update = update + asked.weight_decay * w
            matrices = [(w, update)]
            if name == QKV:
                split_w = w.view(HEADS, 3, HEAD_SIZE, HIDDEN)
                split_update = update.view(HEADS, 3, HEAD_SIZE, HIDDEN)
                matrices = [(split_w[:, role], split_update[:, role]) for role in range(3)]
            for matrix, change in matrices:
                ratio = matrix.norm() / change.norm() if layerwise and decayed else 1.0
                matrix.sub_(RATE * ratio * change)
    return weights


def test_adamw_equals_torch():
    theirs = by_torch(torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-8)
    assert_near(trained(section("adamw")), theirs)


def test_adamw_without_bias_correction_equals_the_formula_of_bert():
    ours = trained(section("adamw without correction"))
    assert_near(ours, by_paper(section("adamw without correction"), layerwise=False))
    corrected = trained(section("adamw without correction", bias_correction=True))
    assert (ours[QKV] - corrected[QKV]).abs().max() > RATE


@pytest.mark.parametrize("momentum", [0.8, 0.0])
def test_sgd_equals_torch(momentum):
    assert_near(trained(section("sgd", momentum=momentum)), by_torch(torch.optim.SGD, momentum=momentum))


@pytest.mark.parametrize("name", ["lamb", "lamb without correction"])
def test_lamb_equals_the_paper(name):
    assert_near(trained(section(name)), by_paper(section(name), layerwise=True))


def one_lamb_step(weights: dict[str, Tensor], **values: object) -> dict[str, Tensor]:
    """Changes of the weights by one step."""
    before = {name: w.clone() for name, w in weights.items()}
    optimizer_of(section("lamb", **values), weights).step(gradients_of(10), RATE)
    return {name: w - before[name] for name, w in weights.items()}


def test_each_matrix_moves_by_the_learning_rate_times_its_length():
    weights = random_like_weights(0)
    lengths = {name: w.norm() for name, w in weights.items()}
    changes = one_lamb_step(weights)
    for name in ("embeddings.token.weight", "layers.0.ffn.up.weight"):
        # A change is a difference of weights near 1: it carries their rounding, 1e-16 of 3e-3.
        torch.testing.assert_close(changes[name].norm(), RATE * lengths[name], rtol=1e-12, atol=0.0)


def test_longer_query_rows_make_longer_steps_of_the_query_alone():
    plain, long_query = random_like_weights(0), random_like_weights(0)
    long_query[QKV].view(HEADS, 3, HEAD_SIZE, HIDDEN)[:, 0] *= 10.0
    changes = [
        one_lamb_step(weights, weight_decay=0.0)[QKV].view(HEADS, 3, HEAD_SIZE, HIDDEN)
        for weights in (plain, long_query)
    ]
    torch.testing.assert_close(changes[1][:, 0], 10.0 * changes[0][:, 0], rtol=1e-11, atol=0.0)
    assert torch.equal(changes[1][:, 1:], changes[0][:, 1:])


def test_without_decay_a_norm_or_bias_moves_as_in_adam():
    changes, adam = one_lamb_step(random_like_weights(0)), random_like_weights(0)
    before = {name: w.clone() for name, w in adam.items()}
    optimizer_of(section("adamw", betas=(0.9, 0.98), eps=1e-6), adam).step(gradients_of(10), RATE)
    for name in ("embeddings.norm.weight", "layers.0.attention.qkv.bias", "layers.0.ffn_norm.weight"):
        torch.testing.assert_close(changes[name], adam[name] - before[name], rtol=1e-12, atol=1e-15)


def test_a_weight_or_an_update_of_length_zero_has_ratio_one():
    weights = {name: torch.zeros_like(w) for name, w in random_like_weights(0).items()}
    changes = one_lamb_step(weights)
    # From zero, the first corrected update is the sign of the gradient, up to eps / gradient.
    torch.testing.assert_close(changes[QKV], -RATE * gradients_of(10)[QKV].sign(), rtol=1e-2, atol=0.0)
    still = random_like_weights(0)
    optimizer = optimizer_of(section("lamb", weight_decay=0.0), still)
    optimizer.step({name: torch.zeros_like(w) for name, w in still.items()}, RATE)
    assert all(torch.equal(w, random_like_weights(0)[name]) for name, w in still.items())


def test_a_lamb_step_never_waits_for_the_device():
    # A meta tensor has no values: whatever asked for one would raise.
    weights = {name: w.to("meta") for name, w in random_like_weights(0).items()}
    for divisor in (None, torch.ones((), device="meta")):
        optimizer_of(section("lamb"), weights).step({name: w.clone() for name, w in weights.items()}, RATE, divisor)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_resumed_optimizer_goes_on_with_the_same_bits(name):
    whole = trained(section(name))
    weights = random_like_weights(0)
    first = optimizer_of(section(name), weights)
    for step in range(5):
        first.step(gradients_of(step), RATE)
    second = optimizer_of(section(name), weights)
    for slot, tensors in second.slots().items():
        for parameter, tensor in tensors.items():
            tensor.copy_(first.slots()[slot][parameter])
    second.steps_done = first.steps_done
    assert second.steps_done == 5
    for step in range(5, STEPS):
        second.step(gradients_of(step), RATE)
    assert all(torch.equal(weights[parameter], whole[parameter]) for parameter in whole)


@pytest.mark.parametrize("name", SECTIONS)
def test_slots_are_named_in_advance_and_have_the_dtype_of_the_weights(name):
    for dtype in (torch.float32, torch.float64):
        weights = random_like_weights(0, dtype=dtype)
        optimizer = optimizer_of(section(name), weights)
        optimizer.step(gradients_of(0, dtype), RATE)
        slots = optimizer.slots()
        assert tuple(slots) == slot_names(section(name))
        for tensors in slots.values():
            assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
                n: (w.shape, dtype) for n, w in weights.items()
            }


@pytest.mark.parametrize("name", SECTIONS)
def test_single_precision_stays_near_double_precision(name):
    weights = random_like_weights(0, dtype=torch.float32)
    optimizer = optimizer_of(section(name), weights)
    for step in range(STEPS):
        optimizer.step(gradients_of(step, torch.float32), RATE)
    exact = trained(section(name))
    for parameter, w in weights.items():
        # Twelve roundings to 6e-8 of weights up to 4, and of steps that are far smaller.
        torch.testing.assert_close(w.double(), exact[parameter], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_rank_that_holds_nothing_steps_too(name):
    weights = {parameter: torch.zeros(0, *shape[1:]) for parameter, shape in SHAPES.items()}
    optimizer = optimizer_of(section(name), weights)
    optimizer.step({parameter: torch.zeros_like(w) for parameter, w in weights.items()}, RATE)
    assert optimizer.steps_done == 1


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.token.weight",
        "embeddings.segment.weight",
        "embeddings.projection.weight",
        "layers.0.attention.qkv.weight",
        "layers.11.ffn.down.weight",
        "head.transform.weight",
        "pair_head.pooler.weight",
    ],
)
def test_matrices_and_embeddings_are_decayed(name):
    assert is_decayed(name)


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.norm.weight",
        "embeddings.norm.bias",
        "embeddings.projection.bias",
        "head.norm.weight",
        "head.decoder.bias",
        "pair_head.pooler.bias",
        "layers.0.ffn_norm.weight",
        "layers.0.attention_norm.weight",
        "final_norm.weight",
    ],
)
def test_biases_and_norms_are_not_decayed(name):
    assert not is_decayed(name)
