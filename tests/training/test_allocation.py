"""Memory that a step lets go of is there for the next."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import ctypes, resource, torch
from llmkit.training import allocation
ctypes.CDLL(None).prctl({no_large_pages}, 1, 0, 0, 0)
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return sum(len(torch.ones(1 << 22)) for _ in range(4))  # 16 MB each
step()
counts = []
for _ in range(10):
    before = faults()
    step()
    counts.append(faults() - before)
print(*counts)
"""


NO_LARGE_PAGES = 41
"""PR_SET_THP_DISABLE of linux/prctl.h: else a fault counts for one page or for 512."""


def faults(first: str) -> list[int]:
    """Pages that the system hands out anew in each of ten steps."""
    code = STEPS.format(first=first, no_large_pages=NO_LARGE_PAGES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_let_go_of_is_not_asked_for_again() -> None:
    without, kept = faults(""), faults("allocation.keep()")
    # The heap may grow by one block of 4,096 pages, once, when something small stands in its way.
    assert sorted(kept)[-2] < 10
    assert sum(kept) < 5_000 < 10_000 < sum(without)
