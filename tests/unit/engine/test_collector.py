"""What building an engine does to Python's garbage collector; the loading itself is a fake."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import engine.assemble
from engine.build import build_engine
from engine.config import EngineConfig
from engine.errors import ModelRefused

CONFIG = EngineConfig(kept_heap=False)


class Circle:
    """Only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Loading becomes what is given; the collector is as it was afterwards."""
    yield lambda load: monkeypatch.setattr(engine.assemble, "assemble", lambda source, config: load())
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_while_an_engine_is_loaded_and_leaves_it_out_later(loads: Any) -> None:
    seen: list[bool] = []
    loads(lambda: seen.append(gc.isenabled()) or Circle())

    built: Any = build_engine("a model", CONFIG)

    assert seen == [False]
    assert gc.isenabled()
    assert not any(each is built for each in gc.get_objects())  # what is frozen is not listed


def test_what_loading_leaves_behind_is_collected_and_not_kept(loads: Any) -> None:
    left: list[weakref.ref[Circle]] = []
    loads(lambda: left.append(weakref.ref(Circle())))

    build_engine("a model", CONFIG)

    assert left[0]() is None


def test_an_engine_that_nobody_has_any_more_is_gone_before_the_next_is_loaded(loads: Any) -> None:
    loads(Circle)
    first: Any = build_engine("a model", CONFIG)
    dead = weakref.ref(first)
    seen: list[object] = []
    loads(lambda: seen.append(dead()))

    del first
    build_engine("a model", CONFIG)

    assert seen == [None]


def test_the_collector_works_again_after_a_model_was_refused(loads: Any) -> None:
    def refuse() -> None:
        raise ModelRefused("no")

    loads(refuse)

    with pytest.raises(ModelRefused):
        build_engine("a model", CONFIG)

    assert gc.isenabled()


def test_switched_off_the_collector_is_left_alone(loads: Any) -> None:
    seen: list[bool] = []
    loads(lambda: seen.append(gc.isenabled()))

    build_engine("a model", EngineConfig(kept_heap=False, frozen_objects=False))

    assert seen == [True]
    assert gc.get_freeze_count() == 0
