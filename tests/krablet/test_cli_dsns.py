"""Connection strings on the command line: from files, and never with a password unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pleinair.cli.main import build_parser


def given(*words: str) -> list[str]:
    dsns: list[str] = build_parser().parse_args(["krablet", "status", *words]).dsn
    return dsns


def test_connection_strings_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "shards"
    file.write_text("postgresql://ada:hunter2@a\n\n postgresql://b \n")
    expected = ["postgresql://ada:hunter2@a", "postgresql://b", "postgresql://c"]
    assert given("--dsn", f"@{file}", "--dsn", "postgresql://c") == expected
    assert capsys.readouterr().err == "", "a file is no command line"


@pytest.mark.parametrize("dsn", ["postgresql://ada:hunter2@host/db", "host=host user=ada password=hunter2"])
def test_a_password_on_the_command_line_is_pointed_at(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert given("--dsn", dsn) == [dsn]
    told = capsys.readouterr().err
    assert told.startswith("pleinair: other users can read the password on this command line: @FILE")
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["krablet", "status", "--dsn", "@{folder}/none"], "none cannot be read: No such file or directory"),
        (["krablet", "status", "--dsn", "@{folder}/empty"], "empty holds no connection string"),
        (
            ["krablet", "shard", "add", "--server", "@{folder}/two"],
            "two holds 2 connection strings: one is wanted here",
        ),
    ],
)
def test_a_file_that_names_no_database_is_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "two").write_text("postgresql://a\npostgresql://b\n")
    with pytest.raises(SystemExit):
        build_parser().parse_args([word.format(folder=tmp_path) for word in words])
    assert told in capsys.readouterr().err
