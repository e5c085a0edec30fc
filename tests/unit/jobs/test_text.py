from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jobs.text import cut_at_stop, finish_text, make_stop_check
from tests.unit.jobs.tiny_model import byte_fallback_tokenizer, byte_level_tokenizer

BYTE_LEVEL, BYTE_FALLBACK = byte_level_tokenizer(), byte_fallback_tokenizer()
STOPS = ["a", "é", "日本", "the", " a", "b\n", "🎉", "é ", "hh"]


def first_fired(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> int | None:
    make = make_stop_check(tokenizer, stops)
    assert make is not None
    check = make()
    return next((i for i, token_id in enumerate(ids) if check(token_id)), None)


def first_containing(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> int | None:
    texts = (tokenizer.decode(ids[: i + 1]) for i in range(len(ids)))
    return next((i for i, text in enumerate(texts) if any(stop in text for stop in stops)), None)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_check_fires_at_the_first_token_after_which_the_text_has_a_stop(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    texts = st.text(alphabet="aébth日本🎉 \n", max_size=30)
    real = texts.map(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    noise = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30)
    ids = data.draw(st.one_of(real, noise, st.tuples(real, noise, real).map(lambda parts: [*chain(*parts)])))
    stops = data.draw(st.lists(st.sampled_from(STOPS), min_size=1, max_size=3))

    assert first_fired(tokenizer, ids, stops) == first_containing(tokenizer, ids, stops)


def test_a_stop_split_over_tokens_ends_the_text_before_it() -> None:
    ids = BYTE_LEVEL.encode("one. STOP two", add_special_tokens=False).ids

    fired = first_fired(BYTE_LEVEL, ids, ["STOP"])

    assert fired is not None
    assert BYTE_LEVEL.decode(ids[: fired + 1]) == "one. STOP"
    assert finish_text(BYTE_LEVEL, ids[: fired + 1], ["STOP"]) == ("one. ", "STOP")


def test_a_stop_that_begins_inside_the_token_that_ends_a_character_is_found() -> None:
    # The last byte of the party popper and the "!" behind it are one token here.
    tokenizer = byte_level_tokenizer()
    letters = [tokenizer.id_to_token(i) for i in tokenizer.encode("🎉!", add_special_tokens=False).ids]
    tokenizer.add_tokens([letters[-2] + letters[-1]])
    ids = [*(tokenizer.token_to_id(letter) for letter in letters[:-2]), tokenizer.token_to_id("".join(letters[-2:]))]
    assert tokenizer.decode(ids) == "🎉!"

    assert first_fired(tokenizer, ids, ["!"]) == len(ids) - 1
    assert finish_text(tokenizer, ids, ["!"]) == ("🎉", "!")


def test_the_stop_that_is_complete_first_counts() -> None:
    assert cut_at_stop("xabcd", ["abcd", "bc"]) == ("xa", "bc")
    assert cut_at_stop("xabc", ["c", "abc"]) == ("x", "abc")
    assert cut_at_stop("x", ["abc"]) == ("x", None)


def test_no_stop_strings_need_no_check() -> None:
    assert make_stop_check(BYTE_LEVEL, []) is None


class CountingDecoder:
    def __init__(self) -> None:
        self.num_decoded = 0

    def decode(self, token_ids: list[int]) -> str:
        self.num_decoded += len(token_ids)
        return BYTE_LEVEL.decode(token_ids)


@pytest.mark.parametrize("text", ["the a" * 400, "é" * 1000, "🎉" * 500], ids=["words", "merged", "bytes"])
def test_the_cost_of_a_token_does_not_grow_with_the_text(text: str) -> None:
    decoder = CountingDecoder()
    make = make_stop_check(decoder, ["never"])
    assert make is not None
    check = make()
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids

    assert not any(check(token_id) for token_id in ids)

    assert decoder.num_decoded <= 20 * len(ids)


def test_damaged_text_stays_cheap() -> None:
    decoder = CountingDecoder()
    make = make_stop_check(decoder, ["never"])
    assert make is not None
    check = make()
    lone_byte = BYTE_LEVEL.encode("é" + "🎉", add_special_tokens=False).ids[-1]

    assert not any(check(lone_byte) for _ in range(4000))

    assert decoder.num_decoded <= 60 * 4000
