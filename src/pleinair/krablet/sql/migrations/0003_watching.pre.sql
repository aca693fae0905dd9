-- What a person sets on a running stage, and what workers say of themselves.
ALTER TABLE pleinair.stages
    ADD COLUMN paused boolean NOT NULL DEFAULT FALSE,
    ADD COLUMN rows_per_second double precision,
    ADD COLUMN tokens double precision NOT NULL DEFAULT 0,
    ADD COLUMN tokens_at timestamptz NOT NULL DEFAULT now();

-- How many of `wanted` rows may be claimed now: a token bucket that saves up one second at most.
CREATE FUNCTION pleinair.allow_claim(of_table text, of_stage text, wanted integer) RETURNS integer
LANGUAGE sql VOLATILE AS $$
    WITH filled AS (
        SELECT least(rows_per_second, tokens + rows_per_second * extract(epoch FROM clock_timestamp() - tokens_at)) AS level
        FROM pleinair.stages WHERE table_name = of_table AND name = of_stage FOR UPDATE
    ), granted AS (
        SELECT level, greatest(0, least(wanted, floor(greatest(level, 0))))::integer AS rows FROM filled
    ), taken AS (
        UPDATE pleinair.stages SET tokens = granted.level - granted.rows, tokens_at = clock_timestamp()
        FROM granted WHERE table_name = of_table AND name = of_stage AND granted.level IS NOT NULL
    )
    SELECT coalesce((SELECT CASE WHEN level IS NULL THEN wanted ELSE rows END FROM granted), wanted)
$$;

-- Workers on this warehouse; on the first shard.
CREATE TABLE pleinair.workers (
    worker uuid PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    stages text[] NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);

-- What they did, by the minute; on the first shard.
CREATE TABLE pleinair.work_log (
    table_name text NOT NULL,
    stage text NOT NULL,
    minute timestamptz NOT NULL,
    worker uuid NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    lost bigint NOT NULL,
    PRIMARY KEY (table_name, stage, minute, worker)
);

-- Rows a second that a stage completed over the last five minutes.
CREATE FUNCTION pleinair.throughput(of_table text, of_stage text) RETURNS double precision
LANGUAGE sql STABLE
RETURN (
    SELECT coalesce(sum(completed), 0) / 300.0 FROM pleinair.work_log
    WHERE table_name = of_table AND stage = of_stage AND minute > now() - interval '5 minutes'
);
