"""From the name of a model to a local directory that tokenizer and engine can read. Imports no torch.

A GGUF file is converted once, in a child process, into the state directory; the result is kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.children import import_path, spawn
from storage.records import ModelRef

FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "*.txt"]  # never pickles
CONVERT_TAIL = 1500  # characters of the converter's log in an error


class ModelUnknown(Exception):
    """There is no such model here or on the Hub, or its files cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`path` has config.json, tokenizer.json and safetensors; `ref` names the model in SQL and its queue."""

    path: Path
    ref: ModelRef


def resolve_model(
    source: str, revision: str | None, home: Path, *, dtype: str = "float32", max_model_len: int | None = None
) -> ResolvedModel:
    """A local directory, a GGUF file or a Hub id, in this order. Downloads or converts if need be.

    Raises ModelUnknown.
    """
    ref = named_model(source, revision, dtype, max_model_len)
    return ResolvedModel(model_files(ref, home), ref)


def model_files(ref: ModelRef, home: Path) -> Path:
    """The directory of a model that SQL names: a path, else a Hub id, never a folder here that has the id's name.

    Raises ModelUnknown.
    """
    path = Path(ref.source)
    if not path.is_absolute():
        return _checked(_download(ref.source, ref.revision))
    if path.is_dir():
        return _checked(path)
    if path.suffix.lower() != ".gguf":
        raise ModelUnknown(f"there is no model directory {path}; check the path")
    if not path.is_file():
        raise ModelUnknown(f"there is no file {path}; check the path of the model")
    return converted(path, home)


def named_model(source: str, revision: str | None, dtype: str, max_model_len: int | None = None) -> ModelRef:
    """What SQL and queue call a model, also when its files are not here: a path is absolute and has no revision."""
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix.lower() == ".gguf" or source.startswith((".", "/", "~")):
        return model_ref(str(path.resolve()), None, dtype, max_model_len)
    return model_ref(source, revision, dtype, max_model_len)


def model_ref(source: str, revision: str | None, dtype: str, max_model_len: int | None = None) -> ModelRef:
    """`key` is a hash of everything that makes two workers' engines different."""
    limit = [] if max_model_len is None else [str(max_model_len)]
    text = "\0".join([source, revision or "", dtype, *limit])
    return ModelRef(source=source, revision=revision, dtype=dtype, key=hashlib.sha256(text.encode()).hexdigest()[:12])


def takes(ref: ModelRef, max_model_len: int | None) -> bool:
    """Was a job of this model planned for this limit? Its key tells; no other field does."""
    return ref.key == model_ref(ref.source, ref.revision, ref.dtype, max_model_len).key


def converted(gguf: Path, home: Path) -> Path:
    """The directory that a GGUF file was converted to; converts it the first time. Raises ModelUnknown."""
    stat = gguf.stat()
    name = hashlib.sha256(f"{gguf}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = home / "models" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        _convert(gguf, work)
        try:
            os.rename(work, target)
        except OSError:
            if not target.is_dir():  # a parallel start was faster, which is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(gguf: Path, work: Path) -> None:
    log_path = work.with_suffix(".log")
    environment = os.environ | {"PYTHONPATH": import_path()}
    try:
        with log_path.open("wb") as log:
            child = spawn([sys.executable, "-P", "-m", "jobs.convert", str(gguf), str(work)], env=environment, log=log)
            try:
                code = child.wait()
            except BaseException:
                child.kill()
                child.wait()
                raise
        if code != 0:
            tail = log_path.read_text(errors="replace")[-CONVERT_TAIL:]
            raise ModelUnknown(f"the GGUF file {gguf} could not be converted (exit {code}):\n{tail}")
    finally:
        log_path.unlink(missing_ok=True)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FILES))
    except HFValidationError as error:
        raise ModelUnknown(f"{repo!r} is neither a directory, a GGUF file nor a Hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelUnknown(
            f"there is no directory {repo}, and the Hub does not give a model of that name: {reason}"
        ) from error


def _checked(path: Path) -> Path:
    """Raises ModelUnknown unless the directory holds a model in safe files."""
    if not (path / "config.json").is_file():
        raise ModelUnknown(f"{path} has no config.json; name a directory with a transformers model, or a GGUF file")
    if not (path / "tokenizer.json").is_file():
        raise ModelUnknown(f"{path} has no tokenizer.json; save the model's fast tokenizer there")
    if not any(path.glob("*.safetensors")):
        raise ModelUnknown(f"{path} has no *.safetensors; other weight files may run code and are refused")
    return path
