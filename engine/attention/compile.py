"""Compile the C kernel once per source, flags and processor, and keep the result for the next process."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import platformdirs

_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno"),
    *("-fopenmp", "-fPIC", "-shared", "-Wno-psabi"),
)
_TIMEOUT_S = 120


class CannotCompile(Exception):
    """There is no native kernel on this machine; the message says why."""


def load_kernel() -> ctypes.CDLL:
    """The compiled kernel. Raises CannotCompile."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise CannotCompile("no C compiler found (cc, gcc or clang); install one, or set CC")
    folder = resources.files("engine.attention").joinpath("kernel")
    files = [file for file in folder.iterdir() if file.name[-2:] == ".c"]
    files.sort(key=lambda file: int(file.name.split("_")[0]))
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    library = cache_folder() / f"attention-{_key(source, compiler)}.so"
    if not library.exists():
        try:
            _compile(compiler, source, library)
        except OSError as error:
            raise CannotCompile(f"the kernel cannot be written to {library.parent}: {error}") from error
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CannotCompile(f"the compiled kernel {library} does not load: {error}") from error


def cache_folder() -> Path:
    """The user's own folder for compiled kernels; where that cannot be written, a private one for temporary files, the
    same for all of the user's processes. Raises CannotCompile where there is neither."""
    folder = Path(platformdirs.user_cache_dir("nightmill")) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    try:
        return _temporary_folder(Path(tempfile.gettempdir()) / f"nightmill-kernels-{os.getuid()}")
    except OSError as error:
        raise CannotCompile(f"there is no folder for the compiled kernel: {error}") from error


def _temporary_folder(folder: Path) -> Path:
    """`folder` if nobody else may write there; who made it could give us a kernel of theirs."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if private else Path(tempfile.mkdtemp(prefix="nightmill-kernels-"))


def _key(source: str, compiler: str) -> str:
    """Names everything that the machine code depends on. A home folder may be shared by unlike processors."""
    parts = [source, compiler, *_FLAGS, platform.machine(), platform.libc_ver()[1], _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Model and features of the processor, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, source: str, library: Path) -> None:
    """Write `library` in one move: another process sees all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        text, built = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        text.write_text(source, encoding="utf-8")
        command = [compiler, *_FLAGS, str(text), "-o", str(built), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotCompile(f"{compiler} did not run: {error}") from error
        if done.returncode != 0:
            raise CannotCompile(f"{compiler} refused the attention kernel: {done.stderr.strip()[-500:]}")
        built.replace(library)
