"""Declared tables and queue stages, as the first shard's catalog has them."""

from __future__ import annotations

import json
from typing import Any

from pleinair.krablet.queries import query
from pleinair.krablet.reading.copy_stream import Wire, reading
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.pools import ReadPools


def list_tables(pools: ReadPools) -> list[dict[str, Any]]:
    """Name, key, columns with types, and stages with `ready` and `writes`, of every declared table."""
    with reading(pools.shards[0], Run()) as wire:
        return _listed(wire)


def _listed(wire: Wire) -> list[dict[str, Any]]:
    if wire.rows(query("catalog", "first_floor_exists").as_bytes()) != [("t",)]:
        return []
    stages: dict[str, list[dict[str, Any]]] = {}
    for table, name, ready, writes in wire.rows(query("scan", "declared_stages").as_bytes()):
        stage = {"name": name, "ready": ready, "writes": json.loads(writes or "[]")}
        stages.setdefault(str(table), []).append(stage)
    return [
        {"name": name, "key": key, "columns": dict(json.loads(columns or "[]")), "stages": stages.get(str(name), [])}
        for name, key, columns in wire.rows(query("scan", "declared_tables").as_bytes())
    ]
