"""What of a function travels, and what it says it needs."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pleinair.krablet.pluck.function import check_runs_here, named_modules, pack, python_version
from pleinair.records.errors import RefusedError

LOAD = "import pickle, sys; print(pickle.loads(open(sys.argv[1], 'rb').read())(20))"


def test_imports_inside_functions_closures_and_methods_are_found() -> None:
    import numpy as np

    def inner(rows: Any) -> Any:
        import psycopg.rows

        return psycopg.rows

    def outer(rows: Any) -> Any:
        return [inner(rows), np.zeros(3), (lambda: __import__("x"))()]

    class Actor:
        @staticmethod
        def load() -> Any:
            from hypothesis import strategies

            return strategies

        def __call__(self, rows: Any) -> Any:
            return outer(rows)

    assert named_modules(outer) >= {"psycopg.rows", "numpy"}
    assert pack(outer).packages.keys() == {"numpy", "psycopg"}
    assert pack(functools.partial(Actor)).packages.keys() == {"numpy", "psycopg", "hypothesis"}


@pytest.fixture
def local_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules beside a notebook, each using the next, that no worker has."""
    (tmp_path / "beside_c.py").write_text("import math\ndef three(): return 3 + 10 * int(math.sqrt(1))\n")
    (tmp_path / "beside_a.py").write_text("import beside_b\nTEN = 10\ndef work(n): return beside_b.double(n) + TEN\n")
    (tmp_path / "beside_b.py").write_text("import beside_c\ndef double(n): return 2 * n + beside_c.three()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module


def test_a_function_of_a_module_beside_the_notebook_travels_whole(
    local_modules: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    packed = pack(local_modules("beside_a").work)
    assert packed.packages == {}
    (tmp_path / "function").write_bytes(packed.data)
    command = [sys.executable, "-P", "-c", LOAD, str(tmp_path / "function")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert ended.stdout == "63\n", ended.stderr


def test_a_function_of_an_installed_package_travels_by_name() -> None:
    import numpy as np

    packed = pack(np.sort)
    assert packed.packages.keys() == {"numpy"}
    assert len(packed.data) < 100


def test_the_same_python_and_packages_are_accepted() -> None:
    check_runs_here(python_version(), {"numpy": "0.0"})
    with pytest.raises(RefusedError, match="made with Python 2.7 and this worker runs"):
        check_runs_here("2.7", {})
