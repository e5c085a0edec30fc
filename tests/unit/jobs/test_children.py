from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from jobs.children import end, import_path, spawn
from jobs.launcher import worker_command

PARENT = """
import sys, time
from jobs.children import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=root)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()

    assert end(child, timeout=0.1) == -9
    child.stdout.close()


def test_the_exit_code_of_a_child_that_has_ended_is_kept() -> None:
    child = spawn([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()

    assert end(child, timeout=1.0) == 3


def test_a_worker_is_this_program_s_even_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command = worker_command("gpu0", None, None)

    done = subprocess.run(
        [*command, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": import_path()},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "nightmill worker" in done.stdout


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
