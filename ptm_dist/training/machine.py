"""What a run computes on, and what its speed is measured against."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.flops import TokenFlops, flops_per_token, peak_flops


@dataclass(frozen=True)
class Machine:
    """All devices of a run together.

    Attributes:
        device: of this process.
        devices: of the run.
        peak_flops: of all devices, per second.
        peak_source: where the peak is from: a data sheet or a measurement.
        recipe: what a token costs depends on the model, the objective and the sequence length.
    """

    device: torch.device
    devices: int
    peak_flops: float
    peak_source: str
    recipe: Recipe

    def flops_per_token(self, sequence_length: int) -> TokenFlops:
        """Of a training step on sequences of that length, by two conventions."""
        return flops_per_token(self.recipe, sequence_length)

    def describe(self) -> dict[str, Any]:
        """What a reader of the figures must know to compare them with others."""
        flops = self.flops_per_token(self.recipe.data.sequence_length)
        on_cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_cuda else platform.processor() or "cpu",
            "devices": self.devices,
            "peak_flops_per_second": self.peak_flops,
            "peak_source": self.peak_source,
            "flops_per_token_full": flops.full,
            "flops_per_token_causal": flops.causal,
            "versions": {
                "ptm_dist": version("ptm-dist"),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "cuda": torch.version.cuda,
            },
        }


def machine_of(recipe: Recipe, device: torch.device, control: ControlGroup) -> Machine:
    """The machine of a run; collective.

    Where the peak is measured, all ranks measure at the same time: on the CPU they share what there is.
    """
    control.sums(0.0)
    peak = peak_flops(device, recipe.training.precision)
    (total,) = control.sums(peak.flops_per_second)
    return Machine(
        device=device,
        devices=control.size,
        peak_flops=total,
        peak_source=peak.source,
        recipe=recipe,
    )
