"""Installs pgqueuer's tables and enqueues argv[1] jobs. PG* variables say where."""

import asyncio
import sys

import asyncpg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def main(count: int) -> None:
    connection = await asyncpg.connect()
    queries = Queries(AsyncpgDriver(connection))
    if not await connection.fetchval("SELECT to_regclass('pgqueuer') IS NOT NULL"):
        await queries.install()
    for start in range(0, count, 5000):
        size = min(5000, count - start)
        await queries.enqueue(["noop"] * size, [None] * size, [0] * size)
    await connection.close()


asyncio.run(main(int(sys.argv[1])))
