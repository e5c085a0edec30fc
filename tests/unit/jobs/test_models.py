from __future__ import annotations

from pathlib import Path

import pytest

from jobs import models
from jobs.models import ModelUnknown, converted, model_ref, resolve_model
from tests.fakes import make_fake_model


def test_a_local_directory_is_taken_as_it_is_whatever_way_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_fake_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    absolute = resolve_model(str(folder), None, tmp_path / "home")
    relative = resolve_model("./model", None, tmp_path / "home")

    assert absolute == relative
    assert absolute.path == folder
    assert absolute.ref.source == str(folder)


def test_the_key_names_everything_that_makes_engines_different() -> None:
    keys = {
        model_ref("a", None, "float32").key,
        model_ref("b", None, "float32").key,
        model_ref("a", "main", "float32").key,
        model_ref("a", None, "bfloat16").key,
    }

    assert len(keys) == 4
    assert model_ref("a", None, "float32") == model_ref("a", None, "float32")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_without_a_needed_file_is_refused_by_the_name_of_that_file(tmp_path: Path, missing: str) -> None:
    folder = make_fake_model(tmp_path / "model")
    (folder / missing).unlink()

    with pytest.raises(ModelUnknown, match=missing.rpartition(".")[2]):
        resolve_model(str(folder), None, tmp_path)


@pytest.mark.parametrize("source", ["./no/such/folder", "/no/such/folder", "no-such.gguf"])
def test_a_path_that_is_not_there_is_never_looked_up_on_the_hub(tmp_path: Path, source: str) -> None:
    with pytest.raises(ModelUnknown, match="there is no"):
        resolve_model(source, None, tmp_path)


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    calls = []

    def fake_convert(source: Path, work: Path) -> None:
        calls.append(source)
        make_fake_model(work)

    monkeypatch.setattr(models, "_convert", fake_convert)

    first = converted(gguf, tmp_path / "home")
    second = converted(gguf, tmp_path / "home")

    assert first == second
    assert calls == [gguf]
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_parallel_conversion_that_ends_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")

    def slower_than_another(source: Path, work: Path) -> None:
        make_fake_model(work)
        other = next(path for path in [work.parent / work.name[1:17]])
        make_fake_model(other)
        (other / "first").touch()

    monkeypatch.setattr(models, "_convert", slower_than_another)

    assert (converted(gguf, tmp_path / "home") / "first").exists()
    assert len(list((tmp_path / "home" / "models").iterdir())) == 1
