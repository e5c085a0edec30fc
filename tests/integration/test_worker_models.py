"""Models that are converted or refused by a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.models import ModelUnknown, resolve_model

pytestmark = pytest.mark.integration


def test_a_file_that_is_no_gguf_is_refused_with_the_converter_s_last_words(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a gguf file")

    with pytest.raises(ModelUnknown, match=r"could not be converted"):
        resolve_model(str(gguf), None, tmp_path / "home")

    assert list((tmp_path / "home" / "models").iterdir()) == []
