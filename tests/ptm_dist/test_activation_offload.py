"""What waits on the host for the backward pass comes back as it was, and is gone from the device meanwhile.

The host is played by numpy, whose memory the watches of torch's do not see, and copies are made as late as a stream
may make them: when somebody waits for them. Who does not wait finds numbers that are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ptm_dist.accounting.watch import MemoryWatch
from ptm_dist.models import LanguageModel, build_model
from ptm_dist.parallel.activation_offload import offload_activations
from ptm_dist.parallel.host_lane import SameMemory
from ptm_dist.parallel.mesh import ALONE
from ptm_dist.parallel.recompute import apply_recompute, compile_blocks
from ptm_dist.recipe.schema import Recompute
from tests.ptm_dist.recipes import small_recipe
from tests.ptm_dist.test_memory import FAMILIES, UNEVEN, estimate, stored_of
from tests.ptm_dist.test_recompute import Pass, assert_same, one_pass
from tests.ptm_dist.test_tensor_parallel import Case

FULL, SELECTIVE, NONE = Recompute.FULL, Recompute.SELECTIVE, Recompute.NONE


class LateLane:
    """Copies to numpy and back when waited for, in order.

    Attributes:
        log: what was asked for, with the number of tensors.
        sent: storages on their way to the host, as addresses and bytes, one set for each departure.
    """

    def __init__(self, smallest: int = 0) -> None:
        self.smallest = smallest
        self.log: list[tuple[str, int]] = []
        self.sent: list[dict[int, int]] = []
        self._queue: list[Callable[[], object]] = []
        self._done = 0

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[np.ndarray], int]:
        self.log.append(("to host", len(tensors)))
        self.sent.append({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors})
        stored = [np.empty(tensor.numel(), tensor.numpy().dtype) for tensor in tensors]
        self._queue += [partial(np.copyto, host, tensor.numpy()) for host, tensor in zip(stored, tensors, strict=True)]
        return stored, len(self._queue)

    def to_device(self, stored: Sequence[np.ndarray]) -> tuple[list[Tensor], int]:
        self.log.append(("to device", len(stored)))
        tensors = [torch.full((host.size,), torch.nan, dtype=torch.from_numpy(host).dtype) for host in stored]
        self._queue += [partial(np.copyto, tensor.numpy(), host) for host, tensor in zip(stored, tensors, strict=True)]
        return tensors, len(self._queue)

    def wait(self, mark: int) -> None:
        self.log.append(("wait", mark))
        for number in range(self._done, mark):
            self._queue[number]()
            self._queue[number] = str  # holds nothing any more
        self._done = max(self._done, mark)


def offloaded(case: Case, kind: Recompute = NONE, lane: LateLane | None = None) -> Pass:
    model = case.model()
    apply_recompute(model, kind)
    offload_activations(model, lambda device: lane or LateLane())
    return one_pass(model, case)


def plain(case: Case, kind: Recompute = NONE) -> Pass:
    model = case.model()
    apply_recompute(model, kind)
    return one_pass(model, case)


@pytest.mark.parametrize("family", ["gpt1", "gpt2", "gpt3", "bert", "roberta", "albert"])
@pytest.mark.parametrize("kind", [NONE, FULL, SELECTIVE])
def test_gradients_are_the_same_to_the_bit(family, kind):
    case = Case(family, 3, layers=3)
    assert_same(offloaded(case, kind), plain(case))


@pytest.mark.parametrize("family", ["gpt2", "bert", "albert"])
def test_on_a_cpu_nothing_moves_and_every_bit_is_the_same(family):
    case, model = Case(family, 3), Case(family, 3).model()
    offload_activations(model)
    assert_same(one_pass(model, case), plain(case))
    assert waiting_bytes(model, case) == waiting_bytes(case.model(), case)


def waiting_bytes(model: LanguageModel, case: Case) -> int:
    """Of torch's memory that a forward pass made and that waits for the backward pass."""
    with MemoryWatch() as watch:
        loss = case.loss(model(*case.inputs()), ALONE)
    live = watch.live
    loss.backward()
    assert watch.live == loss.untyped_storage().nbytes()
    return live


def stored_by_blocks(case: Case, parameters: bool) -> tuple[int, int]:
    """How many storages, and bytes, autograd keeps of the plain model's blocks, parameters or all but these."""
    model = case.model()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (tensor.untyped_storage().data_ptr() in own) is parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()

    for block in model.blocks():
        block.forward = under(saved_tensors_hooks(pack, lambda packed: packed), block.forward)
    one_pass(model, case)
    return len(kept), sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def under(context, forward):
    def run(*arguments):
        with context:
            return forward(*arguments)

    return run


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_all_that_blocks_store_leaves_but_for_parameters(family):
    case, lane = Case(family, 3, layers=3), LateLane()
    offloaded(case, NONE, lane)
    sent = [size for departure in lane.sent for size in departure.values()]
    assert (len(sent), sum(sent)) == stored_by_blocks(case, parameters=False)
    assert stored_by_blocks(case, parameters=True)[0] > 0


def test_small_tensors_stay():
    case, lane = Case("gpt2", 3), LateLane(smallest=3000)
    ours = offloaded(case, NONE, lane)
    assert_same(ours, plain(case))
    sizes = [size for departure in lane.sent for size in departure.values()]
    everything = LateLane()
    offloaded(case, NONE, everything)
    assert sorted(sizes) == sorted(size for departure in everything.sent for size in departure.values() if size >= 3000)
    assert len(sizes) < sum(map(len, everything.sent))


def test_a_block_comes_back_while_the_one_behind_it_is_at_work():
    lane = LateLane()
    offloaded(Case("gpt2", 3, layers=4), NONE, lane)
    kinds = [kind for kind, _ in lane.log]
    # A block is gone when the next one has departed; the last one is still there when its backward pass begins.
    assert kinds[:7] == ["to host", *["to host", "wait"] * 3]
    # The third block is called by the fourth; then each waits for its own tensors and calls the one before.
    assert kinds[7:] == ["to device", *["wait", "to device"] * 2, "wait"]
    assert [count for kind, count in lane.log if kind == "to device"] == [len(sent) for sent in lane.sent[2::-1]]


def test_the_device_holds_two_blocks_however_many_there_are():
    bytes_of = {}
    for layers in (4, 8):
        case = Case("gpt2", 3, layers=layers)
        model = case.model()
        offload_activations(model, lambda device: LateLane())
        bytes_of[layers] = waiting_bytes(model, case)
    assert bytes_of[4] == bytes_of[8] < waiting_bytes(case.model(), case) / 3


def test_with_full_recomputation_the_inputs_of_blocks_leave():
    case, lane = Case("gpt2", 3, layers=4), LateLane()
    offloaded(case, FULL, lane)
    ids = case.inputs()[0]
    assert [list(sent.values()) for sent in lane.sent] == [[ids.numel() * case.spec().block.hidden_size * 8]] * 4


def test_nothing_moves_without_gradients():
    case, lane = Case("bert", 3), LateLane()
    model = case.model()
    offload_activations(model, lambda device: lane)
    with torch.no_grad():
        case.loss(model(*case.inputs()), ALONE)
    assert lane.log == []


def losses(model: LanguageModel, case: Case, count: int) -> list[Tensor]:
    return [case.loss(model(case.inputs()[0].roll(shift)), ALONE) for shift in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [NONE, FULL])
def test_the_estimate_knows_what_leaves_and_what_is_under_way(family, kind):
    values = {**UNEVEN, **FAMILIES[family], "model__num_layers": 3, "layout__micro_batch_size": 3}
    away, here = (
        small_recipe(**values, layout__recompute=kind, layout__offload_activations=leaves) for leaves in (True, False)
    )
    model, lane = build_model(away.model), LateLane()
    apply_recompute(model, kind)
    offload_activations(model, lambda device: lane)
    stays = stored_of(away, model)  # blocks answer to their own hooks, and not to those around the model
    departures = [sum(sent.values()) for sent in lane.sent]
    under_way = max(departures[0] + departures[1], departures[1] + departures[2])
    assert estimate(away, 1).host == sum(departures)
    assert estimate(here, 1).activations - estimate(away, 1).activations == sum(departures) - under_way
    if kind is NONE:
        assert estimate(away, 1).activations == stays + under_way


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_passes_may_wait_for_their_backward_passes_in_any_order(order):
    case, models = Case("gpt2", 3, layers=3), []
    for lane in (LateLane(), None):
        model = case.model()
        if lane is not None:
            offload_activations(model, lambda device, lane=lane: lane)
        waiting = losses(model, case, 3)
        for number in order:
            waiting[number].backward()
        models.append(model)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_what_a_graph_keeps_may_be_asked_for_twice():
    case = Case("gpt2", 3, layers=3)
    model, theirs = case.model(), case.model()
    offload_activations(model, lambda device: LateLane())
    for each in (model, theirs):
        (loss,) = losses(each, case, 1)
        loss.backward(retain_graph=True)
        loss.backward()
    assert all(map(torch.equal, (p.grad for p in model.parameters()), (p.grad for p in theirs.parameters())))


def test_compiled_blocks_hand_over_what_they_store(monkeypatch):
    # Without the compiler of kernels, which takes most of the time and knows nothing of stored tensors.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case, lane, model = Case("gpt2", 3, layers=3), LateLane(), Case("gpt2", 3, layers=3).model()
    compile_blocks(model)
    offload_activations(model, lambda device: lane)
    (loss,) = losses(model, case, 1)
    loss.backward()
    (theirs,) = losses(same := case.model(), case, 1)
    theirs.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-12, atol=0.0)  # the same sums in float64, perhaps in another order
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert all(sent and not sent.keys() & parameters for sent in lane.sent)


def test_one_memory_gives_back_what_it_got():
    tensor = torch.ones(3)
    (stored,), mark = SameMemory().to_host([tensor])
    (back,), _ = SameMemory().to_device([stored])
    SameMemory().wait(mark)
    assert back is tensor
