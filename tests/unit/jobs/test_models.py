from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs import models
from jobs.models import ModelUnknown, converted, model_files, model_ref, named_model, resolve_model, takes
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


def test_a_job_s_hub_id_is_never_a_folder_of_that_name_on_the_worker_s_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fake_model(tmp_path / "org" / "model")
    downloaded = make_fake_model(tmp_path / "downloaded")
    asked: list[tuple[str, str | None]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_download", lambda *wanted: (asked.append(wanted), downloaded)[1])

    path = model_files(model_ref("org/model", "v2", "float32"), tmp_path / "home")

    assert (path, asked) == (downloaded, [("org/model", "v2")])


def test_a_model_has_its_name_also_where_its_files_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_fake_model(tmp_path / "model")

    before = named_model("./model", "v2", "float32")
    shutil.rmtree(folder)

    assert before == named_model("./model", None, "float32") == model_ref(str(folder), None, "float32")
    assert named_model("org/model", "v2", "float32") == model_ref("org/model", "v2", "float32")


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


def test_a_limit_of_its_own_makes_another_model_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()

    own, limited = named_model(str(folder), None, "float32"), named_model(str(folder), None, "float32", 512)

    assert takes(own, None)
    assert takes(limited, 512)
    assert not takes(limited, None)
    assert not takes(limited, 513)
    assert not takes(own, 512)
