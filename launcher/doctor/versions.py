"""Versions of everything that must be the same on all nodes, without importing any of it."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

CODE = "code"
DRIVER = "driver"

_PACKAGES = ("ptm-dist", "torch", "numpy")
_OWN = ("data_pipeline", "ptm_dist", "launcher")


def versions() -> dict[str, str]:
    """By name: Python, packages, the CUDA and NCCL that torch was built for, and a hash of this project's code.

    What is not installed is left out.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        _add(found, name, name)
    cuda = _cuda_of_torch()
    if cuda is not None:
        found["cuda"] = cuda
    nccl = _nccl_package()
    if nccl is not None:
        _add(found, "nccl", nccl)
    found[CODE] = code_fingerprint()
    return found


def code_fingerprint() -> str:
    """Twelve hexadecimal digits of SHA-256 over names and contents of the Python files of the three packages."""
    digest = hashlib.sha256()
    for package in _OWN:
        root = _folder(package)
        for path in sorted(root.rglob("*.py")) if root is not None else ():
            digest.update(f"{package}/{path.relative_to(root)}\0".encode())  # type: ignore[arg-type]
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _add(found: dict[str, str], name: str, package: str) -> None:
    try:
        found[name] = version(package)
    except PackageNotFoundError:
        return


def _cuda_of_torch() -> str | None:
    """Torch keeps it in a small file of its own."""
    root = _folder("torch")
    if root is None:
        return None
    try:
        text = (root / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _nccl_package() -> str | None:
    """The package with NCCL that this torch asks for: its name changes with each CUDA."""
    try:
        asked = requires("torch") or []
    except PackageNotFoundError:
        return None
    names = (re.match(r"[A-Za-z0-9._-]+", text) for text in asked)
    return next((name[0] for name in names if name and name[0].startswith("nvidia-nccl")), None)


def _folder(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None
