"""Which process of how many this one is, and where they meet."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: this process, 0 <= rank < world_size.
        world_size: processes of the run, over all machines.
        local_rank: this process among those of its machine; the index of its device.
        local_world_size: processes of the run on this machine.
        master_addr: host on which rank 0 listens.
        master_port: TCP port on which rank 0 listens.
        origin: who started the processes: `single`, `ptm`, `torchrun`, `srun` or `mpirun`.
        node: name of this machine; processes of one node share its memory, and are lost together.
        has_store: somebody else listens at that address already, not rank 0.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    origin: str
    node: str = field(default_factory=socket.gethostname)
    has_store: bool = False

    @classmethod
    def single(cls) -> World:
        """The world of one process, which meets nobody."""
        return cls(0, 1, 0, 1, "127.0.0.1", 0, "single")
