"""Memory that a step lets go of is there for the next."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from llmkit.training import allocation
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return sum(len(torch.ones(1 << 22)) for _ in range(4))  # 16 MB each
step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def faults(first: str) -> int:
    """Pages that the system hands out anew in ten steps."""
    code = STEPS.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_let_go_of_is_not_asked_for_again() -> None:
    without, kept = faults(""), faults("allocation.keep()")
    assert kept < 100 < without  # thousands, or hundreds where all pages are large
