"""Reading and writing ``config.json``: which values of theirs are which keys of a recipe's model section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ptm_dist.errors import CheckpointError
from ptm_dist.models.spec import Activation

ACTIVATIONS = {
    "gelu": Activation.GELU_ERF,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
"""Their names of activations; the last two are the same function."""

ACTIVATION_NAMES = {Activation.GELU_ERF: "gelu", Activation.GELU_TANH: "gelu_new"}


class Settings:
    """A ``config.json`` with the defaults of its class.

    Args:
        values: as read.
        defaults: what keys mean that are left out.
        model_class: for messages.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], model_class: str) -> None:
        self._values = {**defaults, **values}
        self.model_class = model_class

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise CheckpointError(f"config.json lacks {key}, which {self.model_class} needs; complete it")
        return self._values[key]

    def activation(self, key: str, names: Mapping[str, Activation]) -> str:
        """The activation of a recipe that `key` names.

        Raises: CheckpointError if there is none.
        """
        self.expect(key, names)
        return str(names[self[key]])

    def expect(self, key: str, allowed: Iterable[Any]) -> None:
        """Refuse every other value of a key that exists.

        Raises: CheckpointError that names the values which can be held here.
        """
        choices = list(allowed)
        if self[key] not in choices:
            raise CheckpointError(
                f"config.json has {key}={self[key]!r}, which no model family here has; "
                f"only {' or '.join(map(repr, choices))} can be imported"
            )


def token_id(special_ids: Mapping[str, int], role: str) -> int | None:
    """The id of a role, None where the tokenizer lacks it."""
    return special_ids.get(role)
