"""SQL dumps in the form Wikimedia publishes them, read back to what was written."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.curation.entities.dumps import read_dump
from pleinair.records.errors import SourceError
from tests.curation.entities.dump_files import Value, write_table

TITLES = st.text(st.sampled_from("ab_(),\t'\"\\;\n\r\x1anrZ0é`NUL"), max_size=12)


def rows(path: Path, table: str, *columns: str) -> list[tuple[Value, ...]]:
    found = [row for batch in read_dump(path, table, columns) for row in batch.to_pylist()]
    return [
        tuple(row[name].decode() if isinstance(row[name], bytes) else row[name] for name in columns) for row in found
    ]


@settings(max_examples=150)
@given(titles=st.lists(TITLES, min_size=1, max_size=8), lines=st.booleans())
def test_any_title_comes_out_as_it_went_in(titles: list[str], lines: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = [(number, number % 3 - 1, title) for number, title in enumerate(titles)]
        path = write_table(Path(folder), "linktarget", written, lines=lines, rows_per_insert=3)
        assert rows(path, "linktarget", "lt_id", "lt_namespace", "lt_title") == written


def test_null_differs_from_the_word_null_and_from_nothing(tmp_path: Path) -> None:
    values: list[tuple[Value, ...]] = [(1, "a", "NULL", None), (2, "b", "", 0.5), (3, "it's", "x),(y", None)]
    path = write_table(tmp_path, "page_props", values)
    assert rows(path, "page_props", "pp_page", "pp_value", "pp_propname") == [
        (1, "NULL", "a"),
        (2, "", "b"),
        (3, "x),(y", "it's"),
    ]
    assert rows(path, "page_props", "pp_sortkey") == [(None,), ("0.5",), (None,)]


def test_columns_are_found_by_the_order_of_create_table(tmp_path: Path) -> None:
    path = write_table(tmp_path, "pagelinks", [(1, 0, 7), (2, 0, 8)], create="pagelinks-targets")
    assert rows(path, "pagelinks", "pl_target_id", "pl_from") == [(7, 1), (8, 2)]
    path = write_table(tmp_path, "pagelinks", [(1, 0, "A", 4, None), (2, 0, "B", 4, 9)], create="pagelinks-both")
    assert rows(path, "pagelinks", "pl_target_id", "pl_from_namespace") == [(None, 4), (9, 4)]


def test_a_file_that_is_cut_off_or_of_another_table_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path, "linktarget", [(number, 0, f"title {number * 7919 % 977}") for number in range(5000)])
    with pytest.raises(SourceError, match="of `linktarget`|not of `page`"):
        rows(path, "page", "page_id")
    with pytest.raises(SourceError, match="no column 'lt_size', only lt_id, lt_namespace, lt_title"):
        rows(path, "linktarget", "lt_size")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="damaged or cut off"):
        rows(path, "linktarget", "lt_id")
    plain = tmp_path / "tinywiki-20240501-linktarget.sql"
    plain.write_bytes(gzip.decompress(whole)[:4000])
    with pytest.raises(SourceError, match="ends inside a statement"):
        rows(plain, "linktarget", "lt_id")
    plain.write_bytes(gzip.decompress(whole).replace(b"(17,0,", b"(17,"))
    with pytest.raises(SourceError, match="a statement cannot be read"):
        rows(plain, "linktarget", "lt_id")
