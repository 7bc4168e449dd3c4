"""Memory of the host that checkpoints take beside the run itself, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from ptm_dist.accounting.cost import RankCost
from ptm_dist.optim.build import slot_names
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.activations import MASTER_BYTES


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory of one rank; a node has those of all its ranks.

    Attributes:
        copy: what a rank writes of a checkpoint: its even share of weights and optimizer state.
        staging: a copy from which checkpoints are written beside the steps.
        snapshots: those it takes, two in turn.
        received: those of a rank of another node, two in turn; none where the run has one node.
    """

    copy: int
    staging: int
    snapshots: int
    received: int

    @property
    def total(self) -> int:
        """At most, with all that may be there."""
        return self.staging + self.snapshots + self.received


def host_memory(recipe: Recipe, layout: ResolvedLayout, ranks: tuple[RankCost, ...]) -> HostMemory:
    """Of the ranks that hold most; shares are even but for whole tensors that only one of several holders writes.

    Args:
        recipe: says what is kept.
        layout: shares the state.
        ranks: of its pipeline.
    """
    state = (1 + len(slot_names(recipe.optimizer))) * MASTER_BYTES[recipe.training.precision]
    holders = layout.world_size // layout.pipeline_parallel
    copy = -(-max(rank.parameters for rank in ranks) * state // holders)
    section = recipe.checkpoint
    snapshots = 2 * copy if section.memory_every else 0
    return HostMemory(copy, copy if section.asynchronous else 0, snapshots, snapshots)
