"""Where the checkout keeps what is fetched or measured. Imports nothing: other environments read it as well."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ROOT / ".cache" / "models"
BENCH = ROOT / ".cache" / "bench"
