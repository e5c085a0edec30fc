import pytest

from storage import layout


@pytest.mark.parametrize("key", ["data/part-00000.parquet", layout.PLAN, "manifest.json"])
def test_our_own_names_are_safe_keys(key):
    assert layout.is_safe_key(key)


@pytest.mark.parametrize(
    "key", ["", ".", "..", "/data/x", "../x", "data/../../x", "data/../x", "data//x", "data/", "./x", "a\\b", "a\0b"]
)
def test_names_that_lead_elsewhere_or_nowhere_are_not(key):
    assert not layout.is_safe_key(key)


def test_the_shard_of_a_file_is_in_its_name():
    assert layout.shard_of(layout.segment(42, 3, 7)) == 42
    assert layout.shard_of(layout.shard_file(123456, 1)) == 123456
