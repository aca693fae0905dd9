-- name: claim_fresh
-- Takes rows that never failed, in key order from where the worker's sweep stands, and stamps them with one lease and one
-- token; served by <table>_<stage>_ready. Neither index of the stage holds a column that is written here, so the update
-- stays on its page where there is room, and dead entries before the sweep are never met again.
-- LIMIT is a literal and the update goes through ctid = ANY(ARRAY(..)): with LIMIT $1 or a join, a generic plan hashes the whole table.
-- A locked row stays where it is, so its ctid finds it again for less than its key. One that was changed between this
-- statement's snapshot and the lock is not found: it stays as it is, for the next claim.
-- A row whose worker died twice while holding it is claimed alone, so that a row that kills its worker takes no other row with it.
WITH due AS MATERIALIZED (
    SELECT ctid AS row, {key}, {token} IS NOT NULL AND {attempts} >= 2 AS suspect
    FROM {table}
    WHERE ({ready})
      AND {not_before} IS NULL
      AND ({leased_until} IS NULL OR {leased_until} <= now())
      AND {after}
      AND NOT (SELECT paused FROM pleinair.stages WHERE table_name = {table_name} AND name = {stage_name})
    ORDER BY {order}
    LIMIT {batch}
    FOR NO KEY UPDATE SKIP LOCKED
), placed AS (
    SELECT row, {key}, suspect, row_number() OVER () AS place, first_value(suspect) OVER () AS first_is_suspect FROM due
)
{lease}

-- name: claim_again
-- Takes rows that failed and whose delay is over, the longest over first; served by <table>_<stage>_again.
WITH due AS MATERIALIZED (
    SELECT ctid AS row, {key}, {token} IS NOT NULL AND {attempts} >= 2 AS suspect
    FROM {table}
    WHERE ({ready})
      AND {not_before} <= now()
      AND ({leased_until} IS NULL OR {leased_until} <= now())
      AND NOT (SELECT paused FROM pleinair.stages WHERE table_name = {table_name} AND name = {stage_name})
    ORDER BY {not_before}
    LIMIT {batch}
    FOR NO KEY UPDATE SKIP LOCKED
), placed AS (
    SELECT row, {key}, suspect, row_number() OVER () AS place, first_value(suspect) OVER () AS first_is_suspect FROM due
)
{lease}

-- name: lease_placed
-- The second half of both claims, by ctid. A worker that died may have been killed by the row: its lease
-- lasts as long as the delay after a failure, at least, for a worker that dies cannot charge that delay itself.
UPDATE {table}
SET {tried_at} = now(),
    {attempts} = {attempts} + 1,
    {error} = CASE WHEN {token} IS NULL THEN {error} ELSE 'LeaseExpired: the worker that held this row died or hung' END,
    {leased_until} = now() + greatest(
        make_interval(secs => %(lease_seconds)s),
        CASE WHEN {token} IS NOT NULL THEN pleinair.retry_delay({attempts} + 1) END
    ),
    {token} = (SELECT nextval('pleinair.claim_tokens'))
WHERE ctid = ANY (ARRAY(SELECT row FROM placed WHERE place = 1 OR NOT (suspect OR first_is_suspect)))
RETURNING {columns}, {attempts}, {token}, (SELECT {key} FROM placed ORDER BY place DESC LIMIT 1);

-- name: key_bounds
-- Keys that split the table evenly, as the planner's statistics know them; none before the first ANALYZE.
SELECT histogram_bounds::text::text[]
FROM pg_stats
WHERE schemaname = ANY (current_schemas(FALSE)) AND tablename = %(table)s AND attname = %(key)s;

-- name: hold_rows
-- Locks the rows of a claim in key order, for a claim of which some rows are completed and some failed; the primary key serves.
SELECT count(*) FROM (
    SELECT FROM {table}
    WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s
    ORDER BY {key} FOR NO KEY UPDATE
) AS held;

-- name: complete_rows
-- Writes results where the token still holds; the primary key serves. Rows are locked in key order first, as every writer
-- does, so that two writers never deadlock: the update alone locks them in whatever order its plan finds them. Then they
-- are found by ctid; a row whose lease was renewed between snapshot and lock is not, and is asked for once more.
-- A result that leaves its row ready counts as a failed attempt, or the row would be claimed again at once, for ever.
WITH held AS MATERIALIZED (
    SELECT ctid AS row FROM {table}
    WHERE {key} = ANY (%(given_0)s::{key_type}[]) AND {token} = %(token)s
    ORDER BY {key} FOR NO KEY UPDATE
)
UPDATE {table}
SET {results},
    {leased_until} = NULL,
    {token} = NULL,
    ({attempts}, {error}, {not_before}) = (
        SELECT CASE WHEN still_ready THEN {table}.{attempts} ELSE 0 END,
               CASE WHEN still_ready THEN 'StillReady: the result leaves the row ready, so the stage would never end' END,
               CASE WHEN still_ready THEN now() + pleinair.retry_delay({table}.{attempts}) END
        FROM (SELECT ({ready}) AS still_ready FROM (SELECT {written}) AS written) AS outcome
    )
FROM (SELECT {values} FROM unnest({arrays}) AS given ({names})) AS result ({names})
WHERE {table}.{key} = result."given 0" AND {table}.ctid = ANY (ARRAY(SELECT row FROM held))
RETURNING {table}.{error} IS NULL;

-- name: fail_rows
-- Writes errors where the token still holds and lets the rows wait, longer after every attempt; the primary key serves.
WITH held AS MATERIALIZED (
    SELECT {key} FROM {table}
    WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s
    ORDER BY {key} FOR NO KEY UPDATE
)
UPDATE {table}
SET {error} = failure.error,
    {leased_until} = NULL,
    {token} = NULL,
    {not_before} = now() + pleinair.retry_delay({table}.{attempts})
FROM unnest(%(keys)s::{key_type}[], %(errors)s::text[]) AS failure (key, error)
WHERE {table}.{key} = failure.key AND {table}.{key} = ANY (ARRAY(SELECT {key} FROM held));

-- name: renew_lease
-- The heartbeat: moves the lease, never tried_at; the primary key serves. The longer lease of a row that may have killed
-- its worker is not made shorter, or the row would be back, first of all, the moment it has killed the next.
UPDATE {table}
SET {leased_until} = greatest({leased_until}, now() + make_interval(secs => %(lease_seconds)s))
WHERE {key} = ANY (ARRAY(
    SELECT {key} FROM {table}
    WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s ORDER BY {key} FOR NO KEY UPDATE
));

-- name: release_rows
-- Gives rows back untried, for a worker that leaves; the primary key serves.
UPDATE {table}
SET {leased_until} = NULL, {token} = NULL, {attempts} = greatest({attempts} - 1, 0)
WHERE {key} = ANY (ARRAY(
    SELECT {key} FROM {table}
    WHERE {key} = ANY (%(keys)s::{key_type}[]) AND {token} = %(token)s ORDER BY {key} FOR NO KEY UPDATE
));

-- name: held_by_dead
-- Whether the worker that held a row before died or hung, as the claim noted; the primary key serves.
SELECT {error} LIKE 'LeaseExpired:%%' FROM {table} WHERE {key} = %(key)s AND {token} = %(token)s;

-- name: stage_depth
-- What a stage still has to do, by state; served by <table>_<stage>_ready and _again, and proportional to the rows in them.
-- The two halves are what the two indexes hold. Every row is counted once: leased, or stuck (failed too often), or waiting for its delay, or claimable.
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
    FROM (
        SELECT {attempts}, {leased_until}, {not_before} FROM {table} WHERE ({ready}) AND {not_before} IS NULL
        UNION ALL
        SELECT {attempts}, {leased_until}, {not_before} FROM {table} WHERE ({ready}) AND {not_before} IS NOT NULL
    ) AS pending
) AS judged;

-- name: stuck_rows
-- The rows that keep failing, worst first; served by <table>_<stage>_ready and _again. A row that is being tried once more
-- has failed one time less than it was tried; stage_depth counts it alike.
SELECT {key}::text, {attempts}, {error}, {tried_at}, {not_before}
FROM (
    SELECT {key}, {attempts}, {error}, {tried_at}, {leased_until}, {not_before}
    FROM {table} WHERE ({ready}) AND {not_before} IS NULL
    UNION ALL
    SELECT {key}, {attempts}, {error}, {tried_at}, {leased_until}, {not_before}
    FROM {table} WHERE ({ready}) AND {not_before} IS NOT NULL
) AS pending
WHERE {attempts} > %(attempts)s
   OR {attempts} = %(attempts)s AND ({leased_until} IS NULL OR {leased_until} <= now())
ORDER BY {attempts} DESC, {tried_at}
LIMIT {limit};

-- name: stage_errors
-- The failures of rows still to do, by exception, the most frequent first; served by <table>_<stage>_again and _ready.
SELECT kind, count(*), min(attempts), max(attempts), (array_agg(key ORDER BY attempts DESC))[1],
       (array_agg(error ORDER BY attempts DESC))[1]
FROM (
    SELECT split_part({error}, ':', 1) AS kind, {attempts} AS attempts, {key}::text AS key, {error} AS error
    FROM {table} WHERE ({ready}) AND {not_before} IS NOT NULL AND {error} IS NOT NULL
    UNION ALL
    SELECT split_part({error}, ':', 1), {attempts}, {key}::text, {error}
    FROM {table} WHERE ({ready}) AND {not_before} IS NULL AND {error} IS NOT NULL
) AS failing
GROUP BY kind ORDER BY count(*) DESC, kind;

-- name: retry_rows
-- Lets rows that failed be tried at once, as if for the first time; served by <table>_<stage>_again and _ready.
UPDATE {table}
SET {attempts} = 0, {not_before} = NULL
WHERE {key} = ANY (ARRAY(
    SELECT {key} FROM {table}
    WHERE ({ready}) AND {not_before} IS NULL AND {attempts} > 0 AND ({leased_until} IS NULL OR {leased_until} <= now())
    FOR UPDATE SKIP LOCKED
) || ARRAY(
    SELECT {key} FROM {table}
    WHERE ({ready}) AND {not_before} IS NOT NULL AND ({leased_until} IS NULL OR {leased_until} <= now())
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
