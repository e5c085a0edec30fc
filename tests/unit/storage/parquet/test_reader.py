import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import InputInvalid
from storage.parquet.reader import open_input

PROMPTS = pa.table({"prompt": [f"question number {i}, of some length" for i in range(1000)], "n": range(1000)})


def write(path: Path, table: pa.Table = PROMPTS, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def refusal(*paths: str) -> InputInvalid:
    """The refusal at opening or, at the latest, while reading."""
    with pytest.raises(InputInvalid) as caught:
        for _ in open_input(paths).batches(100):
            pass
    return caught.value


def test_a_file_is_read_in_order_in_batches(tmp_path):
    path = write(tmp_path / "in.parquet", row_group_size=300)

    opened = open_input([path])

    assert opened.num_rows == 1000
    assert pa.Table.from_batches(opened.batches(128)).equals(PROMPTS)
    assert max(batch.num_rows for batch in opened.batches(128)) == 128


def test_only_the_named_columns_are_read(tmp_path):
    opened = open_input([write(tmp_path / "in.parquet")])

    assert next(opened.batches(10, columns=["n"])).schema.names == ["n"]


def test_a_directory_and_a_glob_hold_the_same_files_sorted_by_name(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / "in" / f"{name}.parquet", pa.table({"prompt": [name]}))
    write(tmp_path / "in" / "_hidden.parquet", pa.table({"other": [1]}))

    folder = open_input([str(tmp_path / "in")])
    matched = open_input([str(tmp_path / "in" / "[a-z]*.parquet")])

    assert [batch["prompt"][0].as_py() for batch in folder.batches(10)] == ["a", "b", "c"]
    assert folder == matched


def test_a_file_named_twice_counts_once(tmp_path):
    path = write(tmp_path / "in.parquet")

    assert open_input([path, str(tmp_path / "*.parquet")]).num_rows == 1000


def test_links_count_by_their_own_names(tmp_path):
    (tmp_path / "in").mkdir()
    for name, blob in (("part-0", "ff"), ("part-1", "00")):
        write(tmp_path / "blobs" / blob, pa.table({"prompt": [name]}))
        (tmp_path / "in" / f"{name}.parquet").symlink_to(tmp_path / "blobs" / blob)

    opened = open_input([str(tmp_path / "in")])

    assert [batch["prompt"][0].as_py() for batch in opened.batches(10)] == ["part-0", "part-1"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    assert open_input([write(tmp_path / "in[1].parquet")]).num_rows == 1000


def test_categories_are_read_as_plain_values_and_foreign_metadata_is_left_behind(tmp_path):
    table = pa.table({"kind": pa.array(["x", "y", "x"]).dictionary_encode()}).replace_schema_metadata({"pandas": "{}"})

    opened = open_input([write(tmp_path / "in.parquet", table)])

    assert opened.schema == pa.schema([("kind", pa.string())])
    assert opened.schema.metadata is None
    assert next(opened.batches(10))["kind"].to_pylist() == ["x", "y", "x"]


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    here, there = write(tmp_path / "a" / "in.parquet"), write(tmp_path / "b" / "in.parquet")

    assert open_input([here]).fingerprint == open_input([there]).fingerprint


def test_a_changed_value_of_the_same_length_changes_the_fingerprint(tmp_path):
    changed = PROMPTS.set_column(1, "n", pa.array([*range(999), 0]))
    here = write(tmp_path / "a" / "in.parquet")
    there = write(tmp_path / "b" / "in.parquet", changed)

    assert open_input([here]).fingerprint != open_input([there]).fingerprint


def test_the_order_of_files_is_part_of_the_fingerprint(tmp_path):
    one, two = write(tmp_path / "1.parquet"), write(tmp_path / "2.parquet")

    assert open_input([one, two]).fingerprint != open_input([two, one]).fingerprint


@pytest.mark.parametrize("path", ["absent.parquet", "absent/*.parquet", "s3://bucket/in.parquet"])
def test_a_missing_file_is_refused_by_name(tmp_path, path):
    error = refusal(path if "://" in path else str(tmp_path / path))

    assert error.code == "missing_file"
    assert path in str(error)


def test_a_directory_without_parquet_names_a_way_out(tmp_path):
    write(tmp_path / "deep" / "in.parquet")

    error = refusal(str(tmp_path))

    assert error.code == "missing_file"
    assert "**" in str(error)


@pytest.mark.parametrize("content", [b"", b"x", b"prompt\nhello\n" * 10], ids=["nothing", "a byte", "csv"])
def test_another_format_is_not_parquet(tmp_path, content):
    path = tmp_path / "in.parquet"
    path.write_bytes(content)

    error = refusal(str(path))

    assert error.code == "not_parquet"
    assert str(path) in str(error)


@pytest.mark.parametrize("kept", [5, 11, 12, 400, -1, -4, -9])
def test_a_file_cut_anywhere_is_truncated(tmp_path, kept):
    path = Path(write(tmp_path / "in.parquet"))
    path.write_bytes(path.read_bytes()[:kept])

    assert refusal(str(path)).code == "truncated"


@pytest.mark.parametrize("length", [0, 7, 1 << 31, 0xFFFFFFFF])
def test_a_footer_of_the_wrong_length_is_truncated(tmp_path, length):
    path = Path(write(tmp_path / "in.parquet"))
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", length) + b"PAR1")

    assert refusal(str(path)).code == "truncated"


@pytest.mark.parametrize("options", [{"write_page_checksum": True}, {"compression": "zstd"}], ids=["crc", "zstd"])
def test_a_damaged_page_is_met_while_reading(tmp_path, options):
    path = Path(write(tmp_path / "in.parquet", row_group_size=300, use_dictionary=False, **options))
    second = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    middle = second.data_page_offset + second.total_compressed_size // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)

    error = refusal(str(path))

    assert error.code == "truncated"
    assert "after row 600" in str(error)


def test_text_that_is_not_utf8_is_damage(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())

    assert refusal(write(tmp_path / "in.parquet", pa.table({"prompt": raw}))).code == "truncated"


def test_no_rows_are_refused(tmp_path):
    assert refusal(write(tmp_path / "in.parquet", PROMPTS.slice(0, 0))).code == "empty"


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        ({"prompt": ["a"], "n": ["1"]}, "column 'n' is string there and int64"),
        ({"prompt": ["a"]}, "column 'n' is missing there"),
        ({"n": [1], "prompt": ["a"]}, "another order"),
    ],
)
def test_files_of_different_schemas_are_refused_with_the_column(tmp_path, other, detail):
    error = refusal(write(tmp_path / "1.parquet"), write(tmp_path / "2.parquet", pa.table(other)))

    assert error.code == "wrong_type"
    assert detail in str(error)
    assert "2.parquet" in str(error)


def test_two_columns_of_one_name_are_ambiguous(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])

    assert refusal(write(tmp_path / "in.parquet", table)).code == "ambiguous_columns"


def test_an_input_that_vanishes_while_it_is_read_is_missing(tmp_path):
    path = write(tmp_path / "in.parquet")
    opened = open_input([path])
    Path(path).unlink()

    with pytest.raises(InputInvalid) as caught:
        next(opened.batches(10))

    assert caught.value.code == "missing_file"
