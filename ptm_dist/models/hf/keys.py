"""Which of our tensors is which of theirs, and which name in a file is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ptm_dist.models.hf.layouts import FusedHeads, Layout, Same, SplitHeads, Transposed, Twice
from ptm_dist.models.spec import ModelSpec


@dataclass(frozen=True)
class TensorPair:
    """One of our parameters and what it is called and looks like there.

    Attributes:
        ours: canonical name.
        theirs: names in the model class with all heads, more than one where the tensor is split.
        layout: how the numbers are laid out.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout

    def to_theirs(self, tensor: Tensor) -> dict[str, Tensor]:
        """Our tensor, or its gradient, by their names."""
        return dict(zip(self.theirs, self.layout.to_theirs(tensor), strict=True))

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Our tensor, or its gradient, from what their model has under :attr:`theirs`."""
        return self.layout.to_ours(*(tensors[name] for name in self.theirs))


@dataclass(frozen=True)
class KeyMatch:
    """What the names in a file mean.

    Attributes:
        found: name in the file by name in the model class with all heads.
        twins: pairs of names in the file that must hold equal tensors, as one of them is used for both.
        unused: weights of a relative that no family here has a place for.
        unexpected: names that mean nothing.
    """

    found: dict[str, str]
    twins: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class KeyTable:
    """The names of a model class.

    Attributes:
        prefix: of what the class without heads holds.
        outer: their parameter or module by ours, outside the blocks.
        block: their name of a block, with {} for its number.
        parts: their modules in a block by ours; three for a split query, key and value.
        conv1d: whether matrices in the blocks are transposed.
        tied: names that hold what another name holds where the head is the token embedding.
        unused: name patterns of weights that no family here has a place for.
    """

    prefix: str
    outer: Mapping[str, str]
    block: str
    parts: Mapping[str, tuple[str, ...]]
    conv1d: bool
    tied: Mapping[str, str]
    unused: str = r"(?!)"

    def pair(self, name: str, spec: ModelSpec) -> TensorPair:
        """What the parameter `name` of a model is there."""
        module, _, kind = name.rpartition(".")
        if not module.startswith("layers."):
            return self._outer_pair(name, spec)
        _, number, part = module.split(".", 2)
        theirs = tuple(f"{self.block.format(number)}.{their}.{kind}" for their in self.parts[part])
        return TensorPair(name, theirs, self._layout(part, spec))

    def _outer_pair(self, name: str, spec: ModelSpec) -> TensorPair:
        module, _, kind = name.rpartition(".")
        theirs = self.outer[name] if name in self.outer else f"{self.outer[module]}.{kind}"
        twin = next((alias for alias, target in self.tied.items() if target == theirs), None)
        if name == "head.decoder.bias" and twin is not None and not spec.tie_embeddings:
            # Untied, their decoder has a bias of its own and computes with it; the other name is a leftover.
            return TensorPair(name, (twin, theirs), Twice())
        return TensorPair(name, (theirs,), Same())

    def _layout(self, part: str, spec: ModelSpec) -> Layout:
        if part == "attention.qkv":
            heads = spec.block.num_heads
            return FusedHeads(heads) if self.conv1d else SplitHeads(heads)
        return Transposed() if self.conv1d else Same()

    def match(self, pairs: Iterable[TensorPair], keys: Iterable[str], *, tied: bool) -> KeyMatch:
        """Understand the names in a file, of this class or of a relative with fewer heads.

        Args:
            pairs: of the whole model.
            keys: names in the file.
            tied: whether the head is the token embedding.
        """
        wanted = {name for pair in pairs for name in pair.theirs}
        by_name = {self._full_name(key): key for key in keys if not _BUFFER.search(key)}
        found = {name: key for name, key in by_name.items() if name in wanted}
        rest = {name: key for name, key in by_name.items() if name not in wanted}
        twins = {name: self.tied[name] for name in rest if tied and self.tied.get(name) in found}
        unused = {name for name in rest if re.fullmatch(self.unused, name)}
        if not tied:
            self._fill_from_twins(found, wanted)
        return KeyMatch(
            found=found,
            twins=tuple((rest[name], found[target]) for name, target in twins.items()),
            unused=tuple(sorted(rest[name] for name in unused)),
            unexpected=tuple(sorted(rest[name] for name in rest.keys() - twins.keys() - unused)),
        )

    def _fill_from_twins(self, found: dict[str, str], wanted: set[str]) -> None:
        """An untied head's bias is in older files under one of its two names."""
        for alias, target in self.tied.items():
            if {alias, target} <= wanted and alias.endswith(".bias") and (alias in found) != (target in found):
                found[alias] = found[target] = found.get(alias) or found[target]

    def _full_name(self, key: str) -> str:
        key = _OLD_NORM.sub(lambda match: _OLD_NORM_NAMES[match[0]], key)
        roots = {name.split(".")[0] for name in (*self.outer.values(), *self.tied)}
        return key if key.split(".")[0] in roots else f"{self.prefix}.{key}"


_OLD_NORM_NAMES = {".gamma": ".weight", ".beta": ".bias"}
_OLD_NORM = re.compile(r"(?<=Norm)\.(gamma|beta)$")
"""LayerNorm's parameters in files that came from TensorFlow."""

_BUFFER = re.compile(r"(^|\.)(position_ids|token_type_ids|attn\.bias|attn\.masked_bias)$")
"""What older files hold beside weights: positions and causal masks."""
