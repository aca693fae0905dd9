"""What README and docs tell people to type is what the command line takes, and their Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from pleinair import krablet
from pleinair.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    joined = page.read_text().replace("\\\n", " ")  # a command may go on in the next line
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", joined, re.MULTILINE | re.DOTALL)  # in pairs, whatever they hold
    return [body for kind, body in fences if re.fullmatch(language, kind)]


def commands() -> list[str]:
    lines = [line.strip() for page in PAGES for block in blocks(page, "(?:sh)?") for line in block.splitlines()]
    return sorted({line.split("  #")[0].strip() for line in lines if line.startswith("pleinair ")})


def test_the_pages_name_commands() -> None:
    assert len(commands()) >= 4


@pytest.mark.parametrize("line", commands())
def test_a_command_in_the_docs_is_one_the_command_line_takes(line: str) -> None:
    assert callable(build_parser().parse_args(shlex.split(line)[1:]).run)


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "README.md", "python"))))
def test_the_readmes_python_runs(
    number: int, database: krablet.Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = blocks(ROOT / "README.md", "python")[number].replace("connect()", f"connect({database.dsn!r})")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "1\n"
