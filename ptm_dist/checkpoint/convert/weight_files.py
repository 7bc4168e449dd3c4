"""Reading the weights of a Hugging Face folder one by one, whatever kind of file they are in."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ptm_dist.checkpoint.convert.shards import INDEX_FILE, SINGLE_FILE
from ptm_dist.errors import CheckpointError

_TORCH_FILE = "pytorch_model.bin"
_TORCH_INDEX = "pytorch_model.bin.index.json"


class WeightFile(Protocol):
    """An open file of tensors."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What is in it."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, which may share memory with the file."""
        ...


class Weights:
    """All tensors of a folder.

    Args:
        files: open file of each tensor by name.
    """

    def __init__(self, files: Mapping[str, WeightFile]) -> None:
        self._files = files
        self.shapes = {name: file.shapes[name] for name, file in files.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in float32.

        Raises: CheckpointError if it is of whole numbers.
        """
        tensor = self._files[name].read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} is of {tensor.dtype}: quantised weights cannot be imported")
        return tensor.to(torch.float32)


def open_weights(folder: Path) -> Weights:
    """Open whichever weights a folder has: safetensors or ``pytorch_model.bin``, whole or in numbered files.

    Raises: CheckpointError if there are none, or a file is missing or damaged.
    """
    for name in (SINGLE_FILE, _TORCH_FILE):
        if (folder / name).is_file():
            file = _open(folder / name)
            return Weights(dict.fromkeys(file.shapes, file))
    for name in (INDEX_FILE, _TORCH_INDEX):
        if (folder / name).is_file():
            return Weights(_open_numbered(folder, read_json(folder / name)))
    raise CheckpointError(f"{folder} has no weights: neither {SINGLE_FILE} nor {_TORCH_FILE}, nor an index of parts")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises: CheckpointError if there is none, or it is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object")
    return values


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._handle: Any = safe_open(path, framework="pt", device="cpu")
        self.shapes = {name: tuple(self._handle.get_slice(name).get_shape()) for name in self._handle.keys()}  # noqa: SIM118

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


class _TorchFile:
    def __init__(self, path: Path) -> None:
        # Files older than torch 1.6 are no archives and can only be read whole.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        self._tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


def _open(path: Path) -> WeightFile:
    try:
        return _SafetensorsFile(path) if path.suffix == ".safetensors" else _TorchFile(path)
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors ({error}); pip install safetensors") from None
    except Exception as error:  # whatever the libraries raise at bytes they do not understand
        text = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} is missing, damaged, or not of tensors alone ({text}); copy it again") from error


def _open_numbered(folder: Path, index: Mapping[str, Any]) -> dict[str, WeightFile]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"the index of weights in {folder} is damaged: it has no weight_map")
    files = {name: _open(folder / name) for name in sorted(set(map(str, places.values())))}
    lost = sorted(name for name, place in places.items() if name not in files[place].shapes)
    if lost:
        raise CheckpointError(f"{folder} is damaged: {', '.join(lost)} not where its index says; copy it again")
    return {name: files[place] for name, place in places.items()}
