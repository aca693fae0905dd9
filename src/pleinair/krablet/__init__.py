"""krablet: a Postgres that is warehouse and queue at once.

    db = krablet.connect()
    images = db.table("images", key="path", columns={"path": "text", "contains_text": "boolean"})
    ocr = images.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])
    images.upsert(rows)
    krablet.work(ocr, read_text)

A table's rows are the queue: a stage's row is ready while the stage's condition holds for it. Nothing here needs torch.
"""

from pleinair.krablet import pluck
from pleinair.krablet.claims import Claim, Settled
from pleinair.krablet.database import Database, connect
from pleinair.krablet.stages import Depth, ErrorGroup, Stage, StageControl, StageSpec, StageStats, StuckRow
from pleinair.krablet.tables import Table
from pleinair.krablet.workers.loop import work
from pleinair.krablet.workers.progress import Progress, RunSummary, StageProgress
from pleinair.krablet.workers.supervisor import run_workers

__all__ = [
    "Claim",
    "Database",
    "Depth",
    "ErrorGroup",
    "Progress",
    "RunSummary",
    "Settled",
    "Stage",
    "StageControl",
    "StageProgress",
    "StageSpec",
    "StageStats",
    "StuckRow",
    "Table",
    "connect",
    "pluck",
    "run_workers",
    "work",
]
