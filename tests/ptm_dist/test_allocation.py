"""Memory that is freed and asked for again, as the system sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process holds")

PROGRAM = """
import sys, torch
from ptm_dist.training.allocation import keep_freed_memory

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def step():
    tensors = [torch.ones(size) for size in (10_000_000, 20_000_000, 12_000_000)]

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
torch.ones(1)
before = held()
for count in (8, 16):
    for _ in range(count):
        step()
    print(held() - before)
"""
BYTES = 4 * 42_000_000


def held_after_steps(how: str) -> tuple[int, int]:
    """Bytes that a process holds after 8 and 24 steps that have freed all that they took."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    if ran.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert ran.returncode == 0, ran.stderr
    few, many = map(int, ran.stdout.split())
    return few, many


def test_what_steps_free_stays_for_the_next_one_and_does_not_pile_up():
    few, many = held_after_steps("keep")
    assert few > 0.9 * BYTES
    assert many < few + 0.1 * BYTES
    assert max(held_after_steps("leave")) < 0.1 * BYTES
