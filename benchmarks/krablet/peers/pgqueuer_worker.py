"""A pgqueuer process at the settings that were fastest here; ends when it is killed. PG* variables say where."""

import asyncio
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver


async def main() -> None:
    async with asyncpg.create_pool(min_size=4, max_size=10) as pool:
        queue = PgQueuer(AsyncpgPoolDriver(pool))

        @queue.entrypoint("noop")
        async def noop(job: object) -> None:
            return None

        print("ready", flush=True)
        await queue.run(batch_size=250, dequeue_timeout=timedelta(seconds=1))


asyncio.run(main())
