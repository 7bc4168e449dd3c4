"""Whether the section `health` can do what it says."""

from __future__ import annotations

from collections.abc import Iterator

from ptm_dist.recipe.schema import HealthSection, Recipe


def health_problems(recipe: Recipe) -> Iterator[str]:
    """Rollbacks without checkpoints, and keys that nothing looks at, each with what to use instead."""
    health, checkpoint = recipe.health, recipe.checkpoint
    rollback = [key for key in ("on_nonfinite", "on_spike") if getattr(health, key) == "rollback"]
    if rollback and not (checkpoint.every or checkpoint.every_minutes or checkpoint.keep_every):
        yield (
            f"health.{rollback[0]}=rollback without checkpoints on the way goes back to the first step; set "
            f"checkpoint.every, or use health.{rollback[0]}=skip"
        )
    yield from _keys_without_effect(health)


def _keys_without_effect(health: HealthSection) -> Iterator[str]:
    policies = (health.on_nonfinite, health.on_spike)
    spikes, steps = ("health.on_spike=skip or rollback", "health.on_nonfinite or health.on_spike as skip or rollback")
    needs = {
        "spike_window": (health.on_spike != "ignore", spikes),
        "spike_deviations": (health.on_spike != "ignore", spikes),
        "rollback_steps": ("rollback" in policies, "health.on_nonfinite or health.on_spike as rollback"),
        "limit": (bool({"skip", "rollback"} & set(policies)), steps),
        "limit_steps": (bool({"skip", "rollback"} & set(policies)), steps),
        "straggler_ratio": (health.pulse_seconds > 0.0, "health.pulse_seconds above 0"),
    }
    for key, (has_effect, instead) in needs.items():
        value = getattr(health, key)
        if not has_effect and value != HealthSection.model_fields[key].default:
            yield f"health.{key}={value} has no effect; leave it out, or set {instead}"
