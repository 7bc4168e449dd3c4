"""From the recipe's optimizer section to an update rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.optim.adamw import AdamW
from ptm_dist.optim.forms import refuse_misfits
from ptm_dist.optim.lamb import Lamb
from ptm_dist.optim.offload import HostOptimizer
from ptm_dist.optim.optimizer import Optimizer
from ptm_dist.optim.sgd import SGD
from ptm_dist.parallel.mesh import RankMesh
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.schema import OptimizerSection


def build_optimizer(
    section: OptimizerSection,
    boxes: Callable[[], Mapping[str, LocalShard]],
    owners: Callable[[str], tuple[bool, bool]],
    mesh: RankMesh,
    head_size: int,
    *,
    on_host: bool = False,
    choice: Choice | None = None,
) -> Optimizer:
    """The update rule a recipe asks for, with its state at zero.

    Args:
        section: of the recipe.
        boxes: gives this rank's part of every parameter by canonical name. Called at each step: storage may move.
        owners: whether a parameter is split between tensor-parallel ranks, and between ZeRO shards.
        mesh: the ranks.
        head_size: width of an attention head; tells query, key and value apart in the fused weight.
        on_host: keep the state in host memory, and work there.
        choice: the forms of the run; by default nothing is asked for.

    Raises: RecipeError if the recipe asks for a form that cannot update these weights.
    """
    refuse_misfits(choice or Choice(), {name: box.local for name, box in boxes().items()}, on_host=on_host)
    if on_host:
        return HostOptimizer(lambda hosted: build_optimizer(section, hosted, owners, mesh, head_size), boxes)

    def shards() -> Mapping[str, Tensor]:
        return {name: box.local for name, box in boxes().items()}

    match section.kind:
        case "adamw":
            return AdamW(
                shards,
                betas=section.betas,
                eps=section.eps,
                weight_decay=section.weight_decay,
                bias_correction=section.bias_correction,
                choice=choice,
            )
        case "lamb":
            return Lamb(
                boxes,
                owners,
                mesh,
                head_size,
                betas=section.betas,
                eps=section.eps,
                weight_decay=section.weight_decay,
                bias_correction=section.bias_correction,
                choice=choice,
            )
        case "sgd":
            return SGD(shards, momentum=section.momentum, weight_decay=section.weight_decay)


def slot_names(section: OptimizerSection) -> tuple[str, ...]:
    """Slots of state per parameter, without building anything; for the memory estimate."""
    return ("momentum",) if section.kind == "sgd" else ("exp_avg", "exp_avg_sq")
