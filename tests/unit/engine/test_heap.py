"""In processes of their own: what the heap keeps, it keeps until the process ends."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, threading
import torch
from engine.heap import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def steps(count):
    for _ in range(count):
        activations = [torch.ones(10_000_000) for _ in range(2)]
        activations.clear()

def measure():
    torch.set_num_threads(1)
    steps(10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_steps_use_the_memory_of_the_steps_before_them_again():
    pages = 10 * 2 * 10_000_000 * 4 // 4096  # of ten steps with two activations of 40 MB

    assert faults("kept") < pages // 2
    assert faults("given back") >= pages
