"""Processes that seldom look for garbage still find it, and end without looking."""

from __future__ import annotations

import subprocess
import sys

CYCLE = """
class Cycle:
    def __init__(self, says):
        self.me, self.says = self, says
    def __del__(self):
        print(self.says)
kept = Cycle("looked at the end")
for number in range({count}):
    Cycle("looked at work") if number == 0 else [[]] * 9
    made = [[] for _ in range(99)]
    made.append(made)
"""


def said(count: int, before: str) -> str:
    code = f"{before}\n{CYCLE.format(count=count)}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_process_ends_without_looking_and_looks_while_it_makes_many_objects() -> None:
    seldom = "from pleinair.garbage import look_seldom; look_seldom()"
    assert "looked at the end" in said(1, "")
    assert said(1, seldom) == ""
    assert said(1000, seldom) == "looked at work\n"
