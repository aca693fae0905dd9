-- name: claim_rows
-- Takes due rows, least recently tried first, and stamps them with one lease and one token; served by <table>_<stage>_ready.
-- LIMIT is a literal and the update goes through key = ANY(ARRAY(..)): with LIMIT $1 or a join, a generic plan hashes the whole table.
-- A row whose worker died twice while holding it is claimed alone, so that a row that kills its worker takes no other row with it.
-- The delay of a failed attempt is charged here and refunded on completion: a worker that dies cannot charge it.
WITH due AS MATERIALIZED (
    SELECT {key}, {token} IS NOT NULL AND {attempts} >= 2 AS suspect
    FROM {table}
    WHERE ({ready})
      AND ({leased_until} IS NULL OR {leased_until} <= now())
      AND ({not_before} IS NULL OR {not_before} <= now())
    ORDER BY {tried_at} NULLS FIRST
    LIMIT {batch}
    FOR UPDATE SKIP LOCKED
), placed AS (
    SELECT {key}, suspect, row_number() OVER () AS place, first_value(suspect) OVER () AS first_is_suspect FROM due
)
UPDATE {table}
SET {tried_at} = now(),
    {attempts} = {attempts} + 1,
    {error} = CASE WHEN {token} IS NULL THEN {error} ELSE 'LeaseExpired: the worker that held this row died or hung' END,
    {leased_until} = now() + make_interval(secs => %(lease_seconds)s),
    {not_before} = now() + pleinair.retry_delay({attempts} + 1),
    {token} = (SELECT nextval('pleinair.claim_tokens'))
WHERE {key} = ANY (ARRAY(SELECT {key} FROM placed WHERE place = 1 OR NOT (suspect OR first_is_suspect)))
RETURNING {token}, {attempts}, {columns};

-- name: hold_rows
-- Locks the rows of a claim in key order, as every writer does, so that settling them never deadlocks: a join locks rows
-- in whatever order its plan finds them. The primary key serves.
SELECT count(*) FROM (
    SELECT FROM {table} WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s ORDER BY {key} FOR UPDATE
) AS held;

-- name: complete_rows
-- Writes results where the token still holds; the primary key serves.
-- A result that leaves its row ready counts as a failed attempt, or the row would be claimed again at once, for ever.
UPDATE {table}
SET {results},
    {leased_until} = NULL,
    {token} = NULL,
    ({attempts}, {error}, {not_before}) = (
        SELECT CASE WHEN still_ready THEN {table}.{attempts} ELSE 0 END,
               CASE WHEN still_ready THEN 'StillReady: the result leaves the row ready, so the stage would never end' END,
               CASE WHEN still_ready THEN {table}.{not_before} END
        FROM (SELECT ({ready}) AS still_ready FROM (SELECT {written}) AS written) AS outcome
    )
FROM (SELECT {values} FROM unnest({arrays}) AS given ({names})) AS result ({names})
WHERE {table}.{key} = result."given 0" AND {table}.{token} = %(token)s
RETURNING {table}.{error} IS NULL;

-- name: fail_rows
-- Writes errors where the token still holds and lets the rows wait, longer after every attempt; the primary key serves.
UPDATE {table}
SET {error} = failure.error,
    {leased_until} = NULL,
    {token} = NULL,
    {not_before} = now() + pleinair.retry_delay({table}.{attempts})
FROM unnest(%(keys)s::{key_type}[], %(errors)s::text[]) AS failure (key, error)
WHERE {table}.{key} = failure.key AND {table}.{token} = %(token)s;

-- name: renew_lease
-- The heartbeat: moves the lease, never tried_at; the primary key serves.
UPDATE {table}
SET {leased_until} = now() + make_interval(secs => %(lease_seconds)s)
WHERE {key} = ANY (ARRAY(
    SELECT {key} FROM {table}
    WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s ORDER BY {key} FOR UPDATE
));

-- name: release_rows
-- Gives rows back untried, for a worker that leaves; the primary key serves.
UPDATE {table}
SET {leased_until} = NULL, {token} = NULL, {not_before} = NULL, {attempts} = greatest({attempts} - 1, 0)
WHERE {key} = ANY (ARRAY(
    SELECT {key} FROM {table}
    WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s ORDER BY {key} FOR UPDATE
));

-- name: stage_depth
-- What a stage still has to do, by state; served by <table>_<stage>_ready, and proportional to the rows in it.
-- Every row is counted once: leased, or stuck (failed too often), or waiting for its delay, or claimable.
SELECT count(*) FILTER (WHERE state = 'claimable'),
       count(*) FILTER (WHERE state = 'leased'),
       count(*) FILTER (WHERE state = 'waiting'),
       count(*) FILTER (WHERE state = 'stuck')
FROM (
    SELECT CASE
        WHEN {attempts} > %(give_up_after)s THEN 'stuck'
        WHEN {leased_until} > now() THEN 'leased'
        WHEN {attempts} >= %(give_up_after)s THEN 'stuck'
        WHEN {not_before} > now() THEN 'waiting'
        ELSE 'claimable'
    END AS state
    FROM {table} WHERE ({ready})
) AS pending;

-- name: stuck_rows
-- The rows that keep failing, worst first; served by <table>_<stage>_ready.
SELECT {key}::text, {attempts}, {error}, {tried_at}, {not_before}
FROM {table}
WHERE ({ready}) AND {attempts} >= %(attempts)s AND ({leased_until} IS NULL OR {leased_until} <= now())
ORDER BY {attempts} DESC, {tried_at}
LIMIT {limit};

-- name: retry_rows
-- Lets rows that failed be tried at once, as if for the first time; served by <table>_<stage>_ready.
UPDATE {table}
SET {attempts} = 0, {not_before} = NULL
WHERE {key} = ANY (ARRAY(
    SELECT {key} FROM {table}
    WHERE ({ready}) AND {attempts} > 0 AND ({leased_until} IS NULL OR {leased_until} <= now())
    FOR UPDATE SKIP LOCKED
));

-- name: stage_stats
-- The whole state of a stage; reads the whole table.
SELECT count(*) FILTER (WHERE pending AND NOT leased),
       count(*) FILTER (WHERE leased),
       count(*) FILTER (WHERE NOT pending AND tried_at IS NOT NULL),
       count(*) FILTER (WHERE pending AND error IS NOT NULL),
       coalesce(max(attempts) FILTER (WHERE pending), 0),
       count(*) FILTER (WHERE recent)
           / greatest(1, extract(epoch FROM now() - min(tried_at) FILTER (WHERE recent)))::double precision,
       extract(epoch FROM now() - min(tried_at) FILTER (WHERE pending))::double precision
FROM (
    SELECT *, NOT pending AND NOT leased AND tried_at > now() - interval '5 minutes' AS recent
    FROM (
        SELECT ({ready}) IS TRUE AS pending, coalesce({leased_until} > now(), FALSE) AS leased,
               {tried_at} AS tried_at, {attempts} AS attempts, {error} AS error
        FROM {table}
    ) AS state
) AS judged;
