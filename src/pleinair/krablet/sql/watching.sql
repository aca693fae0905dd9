-- name: pause_stage
-- Served by the primary key; a claim that is under way is not called back.
UPDATE pleinair.stages SET paused = %(paused)s WHERE table_name = %(table)s AND name = %(stage)s;

-- name: limit_stage
-- Served by the primary key. NULL takes the limit off.
UPDATE pleinair.stages SET rows_per_second = %(rows_per_second)s, tokens = 0, tokens_at = clock_timestamp()
WHERE table_name = %(table)s AND name = %(stage)s;

-- name: stage_control
-- Served by the primary key.
SELECT paused, rows_per_second FROM pleinair.stages WHERE table_name = %(table)s AND name = %(stage)s;

-- name: allow_claim
SELECT pleinair.allow_claim(%(table)s, %(stage)s, %(wanted)s);

-- name: greet
-- A worker says that it lives; served by the primary key. Losing this in a crash of the server costs nothing.
INSERT INTO pleinair.workers (worker, host, pid, stages) VALUES (%(worker)s, %(host)s, %(pid)s, %(stages)s)
ON CONFLICT (worker) DO UPDATE SET seen_at = now(), stages = EXCLUDED.stages;

-- name: log_work
-- Adds what a worker did to this minute; served by the primary key.
INSERT INTO pleinair.work_log (table_name, stage, minute, worker, completed, failed, lost)
VALUES (%(table)s, %(stage)s, date_trunc('minute', now()), %(worker)s, %(completed)s, %(failed)s, %(lost)s)
ON CONFLICT (table_name, stage, minute, worker) DO UPDATE
SET completed = work_log.completed + EXCLUDED.completed,
    failed = work_log.failed + EXCLUDED.failed,
    lost = work_log.lost + EXCLUDED.lost;

-- name: say_goodbye
DELETE FROM pleinair.workers WHERE worker = %(worker)s;

-- name: forget_old_work
-- Workers unseen for an hour and work of more than a week ago.
WITH gone AS (DELETE FROM pleinair.workers WHERE seen_at < now() - interval '1 hour')
DELETE FROM pleinair.work_log WHERE minute < now() - interval '7 days';

-- name: live_workers
SELECT worker, host, pid, stages, extract(epoch FROM now() - started_at)::double precision,
       extract(epoch FROM now() - seen_at)::double precision
FROM pleinair.workers WHERE seen_at > now() - make_interval(secs => %(seconds)s) ORDER BY host, pid;

-- name: recent_work
-- What each stage did in the last minutes, and since the log began; served by the primary key.
SELECT table_name, stage,
       coalesce(sum(completed) FILTER (WHERE minute > now() - interval '5 minutes'), 0) / 300.0,
       coalesce(sum(failed) FILTER (WHERE minute > now() - interval '5 minutes'), 0) / 300.0,
       sum(completed)::bigint, sum(failed)::bigint, sum(lost)::bigint
FROM pleinair.work_log GROUP BY table_name, stage;

-- name: estimated_depth
-- About how many rows a stage has still to do, from the planner's statistics of its two indexes: no row is read.
SELECT (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass(%(ready)s)),
       (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass(%(again)s));

-- name: stage_gauges
-- What a stage still has to do, by state, and how it fares; served by <table>_<stage>_ready and _again, and proportional to
-- the rows in them: never sent more often than its own duration allows.
SELECT count(*) FILTER (WHERE {token} IS NULL AND coalesce({not_before} <= now(), TRUE)),
       count(*) FILTER (WHERE {leased_until} > now()),
       count(*) FILTER (WHERE {token} IS NULL AND {not_before} > now()),
       count(*) FILTER (WHERE {token} IS NOT NULL AND {leased_until} <= now()),
       count(*) FILTER (WHERE {attempts} >= %(stuck_after)s AND {token} IS NULL),
       coalesce(max({attempts}), 0),
       extract(epoch FROM now() - min({tried_at}))::double precision
FROM (
    SELECT {token}, {attempts}, {leased_until}, {not_before}, {tried_at} FROM {table} WHERE ({ready}) AND {not_before} IS NULL
    UNION ALL
    SELECT {token}, {attempts}, {leased_until}, {not_before}, {tried_at} FROM {table} WHERE ({ready}) AND {not_before} IS NOT NULL
) AS pending;
