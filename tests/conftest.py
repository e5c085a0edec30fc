"""Fixtures that any test may ask for."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.conformance")
pytest_plugins = ["tests.postgres"]
