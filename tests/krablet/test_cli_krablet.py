"""`pleinair krablet ...` and `pleinair sql ...`, through their parsers."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from shutil import rmtree
from xml.etree import ElementTree

import pytest

from pleinair import krablet
from pleinair.cli.krablet import register
from pleinair.cli.sql import register_sql
from pleinair.krablet.postgres.embedded import running
from pleinair.krablet.reading.requests import ReadError
from pleinair.krablet.watching.dag import draw
from pleinair.records.errors import ConfigError
from tests.krablet.conftest import Pictures


def pleinair(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="pleinair")
    subparsers = parser.add_subparsers(required=True)
    register(subparsers)
    register_sql(subparsers)
    args = parser.parse_args(arguments)
    return int(args.run(args))


def test_up_leaves_the_server_running_and_down_stops_it(
    stopped_server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(stopped_server)
    assert pleinair("krablet", "status", "--directory", directory) == 1
    assert "is not running; start it with: pleinair krablet up" in capsys.readouterr().out
    assert pleinair("krablet", "up", "--directory", directory) == 0
    server = running(stopped_server)
    assert server is not None
    assert f"DSN: {server.dsn}\n" in capsys.readouterr().out
    assert pleinair("krablet", "down", "--directory", directory) == 0
    assert capsys.readouterr().out == f"Postgres in {directory} stopped\n"
    assert running(stopped_server) is None


def test_the_home_of_other_verbs_names_the_same_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pleinair("krablet", "status", "--home", str(tmp_path)) == 1
    assert f"Postgres in {tmp_path}/postgres is not running" in capsys.readouterr().out


@pytest.mark.slow
def test_embedded_servers_join_take_their_share_and_leave(capsys: pytest.CaptureFixture[str]) -> None:
    parent = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    parent.chmod(0o755)
    at = ["--directory", str(parent / "postgres")]
    try:
        assert pleinair("krablet", "up", "--shards", "2", *at) == 0
        with krablet.connect(directory=parent / "postgres") as database:
            table = database.table("files", key="path", columns={"path": "text"})
            assert table.insert_missing({"path": f"file-{number}"} for number in range(100)) == 100
        assert pleinair("krablet", "shard", "add", *at) == 0
        assert pleinair("krablet", "shard", "rebalance", *at) == 0
        capsys.readouterr()
        assert pleinair("krablet", "shards", *at) == 0
        lines = capsys.readouterr().out.splitlines()[2:]
        assert [line.split()[-1] for line in lines] == ["342", "341", "341"]
        assert pleinair("krablet", "shard", "drain", "1", *at) == 0
        assert pleinair("krablet", "shard", "remove", "1", *at) == 0
        with krablet.connect(directory=parent / "postgres") as database:
            assert [shard.number for shard in database.shards] == [0, 2]
            assert database.declared_table("files").count() == 100
    finally:
        assert pleinair("krablet", "down", *at) == 0
        rmtree(parent)


def test_a_file_of_sql_runs_once_on_every_shard(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "2026-11-add-notes.sql").write_text("CREATE TABLE notes (a int);\nCREATE INDEX ON notes (a);\n")
    for expected in ("run on 1 of 1 shards", "run on 0 of 1 shards"):
        words = ["krablet", "migrate", str(tmp_path / "2026-11-add-notes.sql"), "--dsn", pictures.database.dsn]
        assert pleinair(*words) == 0
        assert expected in capsys.readouterr().out


def test_status_shows_every_stage_with_its_rows(pictures: Pictures, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.add(5)
    pictures.ocr.complete(pictures.ocr.claim(2), [{"contains_text": True}, ValueError("bad")])
    assert pleinair("krablet", "status", "--dsn", pictures.database.dsn) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "ready", "leased", "done", "failed", "attempts", "rows/s", "oldest", "try"]
    assert row.split()[:6] == ["images.ocr", "4", "0", "1", "1", "1"]


def test_worker_does_stages_with_functions_that_are_named(
    pictures: Pictures, functions_on_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures.add(20)
    words = ["krablet", "worker", f"images.ocr={functions_on_path}:has_odd_number_later", "--slots", "4"]
    assert pleinair(*words, "--processes", "1", "--batch", "2", "--dsn", pictures.database.dsn) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["images.ocr", "20", "0", "0"]
    with pytest.raises(ConfigError, match=r"'images.ocr' does not say .*: write TABLE.STAGE=MODULE:FUNCTION"):
        pleinair("krablet", "worker", "images.ocr", "--dsn", pictures.database.dsn)


def test_stuck_lists_failing_rows_with_their_errors_and_can_let_them_be_tried_again(
    pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures.add(1)
    pictures.ocr.fail(pictures.ocr.claim(), ValueError("truncated file"))
    assert pleinair("krablet", "stuck", "--attempts", "1", "--dsn", pictures.database.dsn) == 0
    assert "images.ocr  picture-00000         1  ValueError: truncated file" in capsys.readouterr().out
    assert pleinair("krablet", "stuck", "--retry", "--dsn", pictures.database.dsn) == 0
    assert capsys.readouterr().out == "1 rows will be tried again at once\n"
    assert pictures.ocr.claim() is not None


def test_dag_hangs_a_stage_below_the_ones_it_waits_for(pictures: Pictures, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.add(3)
    pictures.table.stage("measure", ready="length IS NULL AND contains_text", writes=["length"])
    pictures.table.stage("rename", ready="path = 'length' AND contains_text AND length > 3", writes=["path"])
    assert pleinair("krablet", "dag", "--dsn", pictures.database.dsn) == 0
    assert capsys.readouterr().out.splitlines() == [
        "images",
        "+- ocr  -> contains_text  3 pending",
        "   +- measure  -> length  0 pending",
        "      +- rename (also after ocr)  -> path  0 pending",
    ]


def test_a_cycle_of_conditions_is_drawn_all_the_same(pictures: Pictures) -> None:
    first = pictures.table.stage("a", ready="length IS NULL AND path IS NULL", writes=["length"])
    second = pictures.table.stage("b", ready="length > 0 AND path IS NULL", writes=["path"])
    assert draw([first, second]) == ["images", "+- b (also after a)  -> path", "   +- a  -> length"]


def test_sql_prints_an_aligned_table(pictures: Pictures, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.add(3)
    query = "SELECT image_name, length, 'a%b' AS text FROM images ORDER BY 1;"
    assert pleinair("sql", query, "--limit", "2", "--dsn", pictures.database.dsn) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "image_name     length  text\n"
        "-------------  ------  ----\n"
        "picture-00000          a%b\n"
        "picture-00001          a%b\n"
    )
    assert printed.err == "... and more rows; raise --limit to see more than 2\n"
    assert pleinair("sql", "SELECT length FROM images WHERE FALSE", "--dsn", pictures.database.dsn) == 0
    assert capsys.readouterr().out == "length\n------\n"


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("DELETE FROM images", "the statement gives no rows: give one SELECT"),
        (
            "WITH gone AS (DELETE FROM images RETURNING *) SELECT * FROM gone",
            "cannot execute (SELECT|DELETE) in a read-only transaction",
        ),
        ("SELECT setval('pleinair.claim_tokens', 1)", "cannot execute setval\\(\\) in a read-only transaction"),
        ("SELECT 1; DELETE FROM images", "cannot insert multiple commands into a prepared statement"),
        ("SELEC 1", "syntax error"),
    ],
)
def test_sql_that_is_not_one_select_is_refused(pictures: Pictures, query: str, complaint: str) -> None:
    pictures.add(1)
    with pytest.raises(ReadError, match=complaint):
        pleinair("sql", query, "--dsn", pictures.database.dsn)
    assert pictures.table.count() == 1


def test_the_drawing_has_a_box_per_stage_and_an_arrow_per_direct_dependency(pictures: Pictures, tmp_path: Path) -> None:
    pictures.add(1200)
    table = pictures.table
    table.stage("measure", ready="length IS NULL AND contains_text", writes=["length"])
    table.stage("last", ready="path IS NULL AND length > 0 AND contains_text", writes=["path"])
    assert pleinair("krablet", "dag", "--svg", str(tmp_path / "dag.svg"), "--dsn", pictures.database.dsn) == 0
    drawing = ElementTree.parse(tmp_path / "dag.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in drawing.iter(f"{space}text")]
    assert texts[:2] == ["images", "ocr"]
    assert "1,200 to do" in texts
    assert len(list(drawing.iter(f"{space}rect"))) == 3
    assert len([path for path in drawing.iter(f"{space}path") if path.get("class") == "edge"]) == 2
