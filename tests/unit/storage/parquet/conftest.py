import os

import pytest


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Durability has its own tests (test_durable.py); here thousands of fsyncs would only be slow."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
