-- name: pluck_exists
-- True when this server can hold jobs; served by the system catalogs.
SELECT to_regclass('pleinair.pluck_refusals') IS NOT NULL;

-- name: shard_identity
-- Names this database among all databases, so that an order signed for one is refused in another.
SELECT system_identifier::text || '/' || current_database() FROM pg_control_system();

-- name: unique_key
-- The type of a column if it is never null and unique by itself: only then do ranges of it hold every row once.
-- With it the table's own schema and name, because a reader's search path may differ from ours.
SELECT format_type(atttypid, atttypmod), nspname, relname
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE attrelid = to_regclass(%(table)s) AND attname = %(key)s AND attnotnull
  AND EXISTS (
      SELECT FROM pg_index
      WHERE indrelid = attrelid AND indisunique AND indisvalid AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = attnum
  );

-- name: check_in_parentheses
-- The condition must be one expression between parentheses ...
SELECT FROM {table} WHERE ({where}
) LIMIT 0;

-- name: check_in_brackets
-- ... and between brackets. What passes both closes neither early: `1=1) OR (1=1` fails here, `1] || [1` fails above.
SELECT FROM {table} WHERE (ARRAY[{where}
])[1] LIMIT 0;

-- name: table_pages
-- How large the table is now, in pages, and how many rows a page held when it was last analysed; the system catalogs serve.
SELECT pg_relation_size(oid) / current_setting('block_size')::bigint,
       CASE WHEN relpages > 0 AND reltuples >= 0 THEN reltuples / relpages END::double precision
FROM pg_class WHERE oid = to_regclass(%(table)s);

-- name: count_sample
-- The rows of the sample, and those that match. REPEATABLE gives the next query the same pages.
SELECT count(*), count(*) FILTER (WHERE ({where}
))
FROM {table} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1);

-- name: sample_bounds
-- Every `stride`-th matching key of the sample, and every `scan`-th key at all, so that no range is mostly misses; the
-- last row only closes the count. A sampled page is as likely as any other, so a row's chance does not depend on width.
SELECT bound::text, matching FROM (
    SELECT {key} AS bound, matches,
           count(*) FILTER (WHERE matches) OVER before AS matching,
           row_number() OVER before AS place,
           lead({key}) OVER before IS NULL AS is_last
    FROM (
        SELECT {key}, ({where}
) IS TRUE AS matches FROM {table} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)
    ) AS sample
    WINDOW before AS (ORDER BY {key} ROWS UNBOUNDED PRECEDING)
) AS numbered
WHERE (matches AND matching %% {stride} = 0) OR place %% {scan} = 0 OR is_last
ORDER BY numbered.bound;

-- name: insert_job
INSERT INTO pleinair.pluck_jobs (id, header, signature, function, state, errors_allowed, table_name, key, expires_at)
VALUES (
    %(id)s, %(header)s, %(signature)s, %(function)s, 'preparing', %(errors_allowed)s, %(table)s, %(key)s,
    to_timestamp(%(expires_at)s)
);

-- name: insert_batches
INSERT INTO pleinair.pluck_batches (job, after, up_to, expected)
SELECT %(job)s, after, up_to, expected
FROM unnest(%(after)s::text[], %(up_to)s::text[], %(expected)s::bigint[]) AS range (after, up_to, expected);

-- name: delete_job
DELETE FROM pleinair.pluck_jobs WHERE id = %(id)s;

-- name: set_state
-- Resuming allows as many errors again; a job that ended stays as it ended.
UPDATE pleinair.pluck_jobs
SET state = %(state)s, reason = %(reason)s,
    finished_at = CASE WHEN %(state)s = 'cancelled' THEN now() END,
    errors_allowed = %(more_errors)s + (SELECT count(*) FROM pleinair.pluck_errors WHERE job = pluck_jobs.id)
WHERE id = %(id)s AND state = ANY (%(expected)s);

-- name: load_job
SELECT header, signature, state, reason FROM pleinair.pluck_jobs WHERE id = %(id)s;

-- name: load_function
SELECT function FROM pleinair.pluck_jobs WHERE id = %(id)s;

-- name: open_jobs
-- What a worker may work on, oldest first.
SELECT id::text, header, signature FROM pleinair.pluck_jobs WHERE state = 'running' ORDER BY created_at, id;

-- name: claim_batch
-- The due batch tried least recently, stamped with a lease and a token; served by pluck_batches_due. `lost` counts the
-- workers that died or hung while they held it.
WITH due AS MATERIALIZED (
    SELECT number FROM pleinair.pluck_batches
    WHERE job = %(job)s AND finished_at IS NULL
      AND (leased_until IS NULL OR leased_until <= now())
      AND (not_before IS NULL OR not_before <= now())
      AND (slots IS NULL OR slots & (SELECT owned FROM pleinair.here) = slots)
      AND EXISTS (SELECT FROM pleinair.pluck_jobs WHERE id = %(job)s AND state = 'running')
    ORDER BY tried_at NULLS FIRST, number
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
UPDATE pleinair.pluck_batches
SET tried_at = now(),
    leased_until = now() + make_interval(secs => %(lease_seconds)s),
    lost = lost + CASE WHEN token IS NULL THEN 0 ELSE 1 END,
    token = nextval('pleinair.pluck_tokens'),
    worker = %(worker)s
WHERE number = ANY (ARRAY(SELECT number FROM due))
RETURNING number, token, after, up_to, single, attempts, lost, expected, (coalesce(slots, ~ (0::bit(1024))) & ~ without)::text;

-- name: matching_keys
-- The keys of a range that match, in key order; the key's index serves. The key is qualified because `{key}::text` is
-- itself called {key}, and would be what is ordered by.
SELECT {key}::text FROM {table} WHERE {range} AND ({where}
) ORDER BY {table}.{key} LIMIT {limit};

-- name: read_rows
-- Rows of a batch that still match; the key's index serves.
SELECT {key}::text AS "pluck key", {columns} FROM {table}
WHERE {key} = ANY (%(keys)s::text[]::{key_type}[]) AND ({where}
) ORDER BY {table}.{key};

-- name: split_batch
-- What is past `cut` becomes a batch of its own, if the token still holds.
WITH kept AS (
    UPDATE pleinair.pluck_batches SET up_to = %(cut)s, expected = %(kept)s
    WHERE number = %(number)s AND token = %(token)s AND finished_at IS NULL
    RETURNING job, slots, without
)
INSERT INTO pleinair.pluck_batches (job, after, up_to, expected, slots, without)
SELECT job, %(cut)s, %(up_to)s, %(rest)s, slots, without FROM kept;

-- name: hold_batch
-- Locks a batch whose token still holds; false when what is to be settled was settled before, by a commit whose answer
-- was lost. With it the slots that the batch is for now.
SELECT after IS NOT DISTINCT FROM %(after)s, (coalesce(slots, ~ (0::bit(1024))) & ~ without)::text
FROM pleinair.pluck_batches
WHERE number = %(number)s AND token = %(token)s AND finished_at IS NULL
FOR UPDATE;

-- name: save_errors
-- Why rows failed. A row that failed as often as it may is final, and is not tried again.
INSERT INTO pleinair.pluck_errors AS saved (job, key, exception, message, traceback, final)
SELECT %(job)s, key, exception, message, traceback, 1 >= %(attempts)s
FROM unnest(%(keys)s::text[], %(exceptions)s::text[], %(messages)s::text[], %(tracebacks)s::text[])
    AS failure (key, exception, message, traceback)
ON CONFLICT (job, key) DO UPDATE
SET exception = EXCLUDED.exception, message = EXCLUDED.message, traceback = EXCLUDED.traceback,
    attempts = saved.attempts + 1, final = saved.attempts + 1 >= %(attempts)s, failed_at = now();

-- name: queue_retries
-- Every row that failed and may be tried again becomes a batch of its own, so that it holds up no other row.
INSERT INTO pleinair.pluck_batches (job, up_to, single, expected, attempts, tried_at, not_before)
SELECT job, key, TRUE, 1, attempts, now(), now() + make_interval(secs => least(600, 2 ^ attempts) * (0.8 + 0.4 * random()))
FROM pleinair.pluck_errors
WHERE job = %(job)s AND key = ANY (%(keys)s) AND NOT final;

-- name: forget_errors
-- Rows that succeeded after all.
DELETE FROM pleinair.pluck_errors WHERE job = %(job)s AND key = ANY (%(keys)s);

-- name: advance_batch
-- Moves the beginning of the range past what is settled, or ends the batch; renews the lease.
UPDATE pleinair.pluck_batches
SET after = CASE WHEN single THEN after ELSE coalesce(%(last)s, after) END,
    done = done + %(done)s,
    failed = failed + %(failed)s,
    lost = 0,
    leased_until = CASE WHEN %(finished)s THEN NULL ELSE now() + make_interval(secs => %(lease_seconds)s) END,
    token = CASE WHEN %(finished)s THEN NULL ELSE token END,
    finished_at = CASE WHEN %(finished)s THEN now() END
WHERE number = %(number)s AND token = %(token)s;

-- name: pause_after_errors
-- Stops a job that mostly fails before it has failed on everything.
UPDATE pleinair.pluck_jobs
SET state = 'paused', reason = 'too many rows failed'
WHERE id = %(job)s AND state = 'running'
  AND (SELECT count(*) FROM pleinair.pluck_errors WHERE job = %(job)s) >= errors_allowed;

-- name: release_batch
-- Gives a batch back, for a worker that leaves: it is the next to be claimed.
UPDATE pleinair.pluck_batches
SET leased_until = NULL, token = NULL, worker = NULL, tried_at = NULL
WHERE number = %(number)s AND token = %(token)s;

-- name: renew_batch
UPDATE pleinair.pluck_batches
SET leased_until = now() + make_interval(secs => %(lease_seconds)s)
WHERE number = %(number)s AND token = %(token)s;

-- name: look_at_batch
-- The state of the job while the token holds; no row when the batch passed to another worker. The primary keys serve.
SELECT state FROM pleinair.pluck_jobs
WHERE id = %(job)s
  AND EXISTS (SELECT FROM pleinair.pluck_batches WHERE number = %(number)s AND token = %(token)s);

-- name: finish_job
-- Ends a job with no open batch. Run after the commit that ended a batch: of two workers the later sees both ended.
UPDATE pleinair.pluck_jobs
SET state = 'done', finished_at = now()
WHERE id = %(job)s AND state IN ('running', 'paused')
  AND NOT EXISTS (SELECT FROM pleinair.pluck_batches WHERE job = %(job)s AND finished_at IS NULL);

-- name: job_state
SELECT state FROM pleinair.pluck_jobs WHERE id = %(job)s;

-- name: save_refusal
INSERT INTO pleinair.pluck_refusals (job, worker, reason) VALUES (%(job)s, %(worker)s, %(reason)s)
ON CONFLICT (job, worker) DO UPDATE SET reason = EXCLUDED.reason, refused_at = now();

-- name: list_refusals
SELECT worker, reason FROM pleinair.pluck_refusals WHERE job = %(job)s ORDER BY refused_at;

-- name: progress
-- One shard's part of a job: rows done, failed for good, waiting for another try, and the estimate of those to come.
SELECT job.state,
       coalesce(job.reason, CASE WHEN job.incomplete THEN 'rows moved to a shard that joined after it began' END),
       coalesce(sum(batch.done), 0)::bigint,
       (SELECT count(*) FROM pleinair.pluck_errors AS failure WHERE failure.job = job.id AND failure.final),
       (SELECT count(*) FROM pleinair.pluck_errors AS failure WHERE failure.job = job.id AND NOT failure.final),
       coalesce(sum(greatest(batch.expected - batch.done - batch.failed, 0)) FILTER (WHERE batch.finished_at IS NULL), 0)::bigint,
       count(batch.number) FILTER (WHERE batch.finished_at IS NULL),
       count(DISTINCT batch.worker) FILTER (WHERE batch.leased_until > now()),
       extract(epoch FROM coalesce(job.finished_at, now()) - job.created_at)::double precision
FROM pleinair.pluck_jobs AS job LEFT JOIN pleinair.pluck_batches AS batch ON batch.job = job.id
WHERE job.id = %(job)s
GROUP BY job.id;

-- name: error_groups
-- Failures by exception, each with its count and its latest row.
SELECT DISTINCT ON (exception)
       exception, count(*) OVER (PARTITION BY exception), count(*) FILTER (WHERE final) OVER (PARTITION BY exception),
       key, message, traceback
FROM pleinair.pluck_errors
WHERE job = %(job)s
ORDER BY exception, failed_at DESC;

-- name: sample_row
SELECT {columns} FROM {table} WHERE {key} = %(key)s::text::{key_type};

-- name: leaving_batches
-- What is still to do of slots that leave, for jobs over tables that are placed by the job's key.
SELECT job, after, up_to, single, attempts, not_before, part.slots::text
FROM pleinair.pluck_batches
CROSS JOIN LATERAL (
    SELECT %(slots)s::bit(1024) & CASE
        WHEN single THEN set_bit(0::bit(1024), pleinair.slot_of(up_to), 1)
        ELSE coalesce(pluck_batches.slots, ~ (0::bit(1024))) & ~ without
    END AS slots
) AS part
WHERE finished_at IS NULL AND part.slots <> 0::bit(1024) AND job IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
)
AND job IN (SELECT id FROM pleinair.pluck_jobs WHERE state IN ('preparing', 'running', 'paused'));

-- name: job_states
-- The jobs over tables that are placed by the job's key.
SELECT id, state FROM pleinair.pluck_jobs WHERE id IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
);

-- name: leave_out
-- What is done of slots that come is not done again by ranges that are open here.
UPDATE pleinair.pluck_batches SET without = without | %(slots)s::bit(1024)
WHERE job = ANY (%(jobs)s::uuid[]) AND finished_at IS NULL AND NOT single;

-- name: leaving_errors
SELECT job, key, exception, message, traceback, attempts, final, failed_at
FROM pleinair.pluck_errors
WHERE get_bit(%(slots)s::bit(1024), pleinair.slot_of(key)) = 1 AND job IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
);

-- name: forget_errors_that_left
DELETE FROM pleinair.pluck_errors
WHERE job = ANY (%(jobs)s::uuid[]) AND get_bit(%(slots)s::bit(1024), pleinair.slot_of(key)) = 1 AND job IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
);

-- name: trim_batches
UPDATE pleinair.pluck_batches SET slots = slots & ~ (%(slots)s::bit(1024))
WHERE job = ANY (%(jobs)s::uuid[]) AND finished_at IS NULL AND slots & %(slots)s::bit(1024) <> 0::bit(1024);

-- name: forget_batches_that_left
DELETE FROM pleinair.pluck_batches
WHERE job = ANY (%(jobs)s::uuid[]) AND finished_at IS NULL AND job IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
)
  AND (slots = 0::bit(1024) OR (single AND get_bit(%(slots)s::bit(1024), pleinair.slot_of(up_to)) = 1));

-- name: note_incomplete
UPDATE pleinair.pluck_jobs SET incomplete = TRUE WHERE id = ANY (%(jobs)s::uuid[]);

-- name: known_jobs
SELECT id FROM pleinair.pluck_jobs WHERE id = ANY (%(jobs)s::uuid[]);

-- name: receive_batch
INSERT INTO pleinair.pluck_batches (job, after, up_to, single, attempts, not_before, slots, expected)
VALUES (%s, %s, %s, %s, %s, %s, %s::bit(1024), 0);

-- name: receive_error
INSERT INTO pleinair.pluck_errors (job, key, exception, message, traceback, attempts, final, failed_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING;

-- name: reopen_job
UPDATE pleinair.pluck_jobs SET state = %(state)s, finished_at = NULL WHERE id = %(job)s AND state = 'done';

-- name: forget_received_batches
DELETE FROM pleinair.pluck_batches
WHERE slots & %(slots)s::bit(1024) <> 0::bit(1024) AND finished_at IS NULL AND job IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
);

-- name: forget_received_errors
DELETE FROM pleinair.pluck_errors
WHERE get_bit(%(slots)s::bit(1024), pleinair.slot_of(key)) = 1 AND job IN (
    SELECT id FROM pleinair.pluck_jobs
    JOIN unnest(%(tables)s::text[], %(keys)s::text[]) AS placed (name, key)
        ON to_regclass(table_name) = to_regclass(quote_ident(placed.name)) AND pluck_jobs.key = placed.key
);

-- name: is_placed
-- Whether rows of a table are on the shard that owns the slot of this column.
SELECT EXISTS (
    SELECT FROM pleinair.tables WHERE to_regclass(quote_ident(name)) = to_regclass(%(table)s) AND key = %(key)s
);

-- name: keep_slots
-- Lets no slot leave until the transaction ends.
SELECT pg_advisory_xact_lock_shared(hashtext('pleinair.slots'));

-- name: forget_jobs
-- Jobs that ended, or expired, long ago.
DELETE FROM pleinair.pluck_jobs
WHERE greatest(finished_at, expires_at) < now() - make_interval(days => %(days)s);
