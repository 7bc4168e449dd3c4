"""Kernels compiled for GPUs that are not here, and what their machine code needs.

Run as a program it reads kernels as JSON and writes measurements, in a process without Triton's interpreter, in which
nothing can be compiled. The tools that read machine code come with triton.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "ptm_dist.kernels.triton"
Value = int | float | bool | str | None


@dataclass(frozen=True)
class Kernel:
    """A kernel as it is launched.

    Attributes:
        name: of its module in ptm_dist/kernels/triton and of the function, as `optimizer._adamw`.
        arguments: their types by name, as Triton spells them: `*bf16`, `i32`, `fp32`. Pointers are to multiples of 16
            bytes, as torch allocates; `i32:16` is a number that 16 divides.
        constants: the other arguments; `tl.float32` is what Triton calls so, None an argument that was left out.
        warps: of 32 threads in a program.
        stages: of loops that load ahead.
    """

    name: str
    arguments: Mapping[str, str]
    constants: Mapping[str, Value] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class MachineCode:
    """What a compiled kernel needs and does.

    Attributes:
        registers: of a thread.
        spilled: instructions that move registers to memory and back.
        wide_loads: instructions that load 128 bits.
        wide_stores: instructions that store 128 bits.
        tensor_cores: instructions that multiply matrices.
        shared: bytes of shared memory.
    """

    registers: int
    spilled: int
    wide_loads: int
    wide_stores: int
    tensor_cores: int
    shared: int


def measure(kernels: Sequence[Kernel], architectures: Sequence[int]) -> list[dict[int, MachineCode]]:
    """Compile kernels in a process of their own.

    Args:
        kernels: to compile.
        architectures: as 90 for sm_90.

    Returns: for each kernel, what it needs by architecture.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    request = json.dumps([list(architectures), [asdict(kernel) for kernel in kernels]])
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "tests.kernels.compiled"],
            input=request,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment | {"TRITON_CACHE_DIR": cache},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return [{int(key): MachineCode(**code) for key, code in found.items()} for found in json.loads(done.stdout)]


def launched() -> set[str]:
    """Names of all kernels that the package launches, read from its source."""
    found = set()
    for path in (ROOT / PACKAGE.replace(".", "/")).glob("*.py"):
        tree = ast.parse(path.read_text())
        kernels = {f.name for f in tree.body if isinstance(f, ast.FunctionDef) and any(map(_is_jit, f.decorator_list))}
        found |= {f"{path.stem}.{name}" for name in _launches(tree) if name in kernels}
    return found


def _is_jit(decorator: ast.expr) -> bool:
    return ast.unparse(decorator).startswith("triton.jit")


def _launches(tree: ast.AST) -> Iterator[str]:
    """Names in calls such as `name[grid](...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            yield ast.unparse(node.func.value)


def _compiled(kernel: Kernel, architecture: int) -> MachineCode:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function = kernel.name.split(".")
    code = getattr(importlib.import_module(f"{PACKAGE}.{module}"), function)
    signature = {name: kernel.arguments.get(name, "constexpr").split(":")[0] for name in code.arg_names}
    missing = [name for name, kind in signature.items() if kind == "constexpr" and name not in kernel.constants]
    assert not missing, f"{kernel.name}: nothing is said of {missing}"
    aligned = [name for name, kind in kernel.arguments.items() if kind.startswith("*") or kind.endswith(":16")]
    source = ASTSource(
        code,
        signature,
        constexprs={name: _constant(value) for name, value in kernel.constants.items()},
        attrs={(code.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    binary = triton.compile(source, target=target, options={"num_warps": kernel.warps, "num_stages": kernel.stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        usage, text = _tool("cuobjdump", "-res-usage", file.name), _tool("nvdisasm", "-c", file.name)
    (registers,) = re.findall(r"REG:(\d+)", usage)
    return MachineCode(
        registers=int(registers),
        spilled=len(re.findall(r"\b(?:LDL|STL)\b", text)),
        wide_loads=len(re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]*128", text)),
        wide_stores=len(re.findall(r"\bSTG\.[\w.]*128", text)),
        tensor_cores=len(re.findall(r"\b(?:HMMA|HGMMA)\b", text)),
        shared=binary.metadata.shared,
    )


def _constant(value: Value) -> Any:
    import triton.language as tl

    return getattr(tl, value[3:]) if isinstance(value, str) and value.startswith("tl.") else value


def _tool(name: str, *arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    wanted, given = json.load(sys.stdin)
    json.dump([{arch: asdict(_compiled(Kernel(**each), arch)) for arch in wanted} for each in given], sys.stdout)
