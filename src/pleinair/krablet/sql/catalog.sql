-- name: catalog_exists
-- True when the catalog is complete; served by the system catalogs. The last object made is the one looked for.
SELECT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = to_regclass('pleinair.tables') AND attname = 'merge' AND NOT attisdropped
);

-- name: lock_schema
-- Makes declarations of two processes take turns until the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('pleinair.schema'));

-- name: create_catalog
-- The catalog: what is declared, the source of fencing tokens, and the delay after an attempt.
CREATE SCHEMA IF NOT EXISTS pleinair;

CREATE SEQUENCE IF NOT EXISTS pleinair.claim_tokens;

CREATE OR REPLACE FUNCTION pleinair.retry_delay(attempts integer) RETURNS interval
LANGUAGE sql VOLATILE
RETURN make_interval(secs => least(3600, 2 ^ least(greatest(attempts, 1), 12)) * (0.8 + 0.4 * random()));

CREATE TABLE IF NOT EXISTS pleinair.tables (
    name text PRIMARY KEY,
    key text NOT NULL,
    columns jsonb NOT NULL,
    declared_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS pleinair.stages (
    table_name text NOT NULL REFERENCES pleinair.tables (name),
    name text NOT NULL,
    ready text NOT NULL,
    writes text[] NOT NULL,
    reads text[],
    batch integer NOT NULL,
    lease_seconds double precision NOT NULL,
    place integer GENERATED ALWAYS AS IDENTITY,
    declared_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, name)
);

ALTER TABLE pleinair.tables ADD COLUMN IF NOT EXISTS merge jsonb NOT NULL DEFAULT '{}';

-- name: column_types
-- The columns a table has, with their types as Postgres prints them; served by the system catalogs.
SELECT attname, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
ORDER BY attnum;

-- name: primary_key
-- The columns of a table's primary key; served by the system catalogs.
SELECT attname
FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
WHERE indrelid = to_regclass(%(table)s) AND indisprimary;

-- name: create_table
-- A table with nothing but its key; columns are added one by one.
CREATE TABLE {table} ({key} {type} PRIMARY KEY);

-- name: add_column
-- A nullable column, or one with a constant default: no rewrite of the table.
ALTER TABLE {table} ADD COLUMN {column} {type};

-- name: save_table
-- Columns are pairs [name, type] in the order of declaration; merge holds the rules other than `last`.
INSERT INTO pleinair.tables (name, key, columns, merge)
VALUES (%(name)s, %(key)s, %(columns)s, %(merge)s)
ON CONFLICT (name) DO UPDATE SET columns = EXCLUDED.columns, merge = EXCLUDED.merge;

-- name: load_table
-- One declared table; served by the primary key.
SELECT key, columns, merge FROM pleinair.tables WHERE name = %(name)s;

-- name: list_tables
SELECT name FROM pleinair.tables ORDER BY declared_at, name;

-- name: index_exists
SELECT to_regclass(%(index)s) IS NOT NULL;

-- name: drop_ready_index
DROP INDEX IF EXISTS {index};

-- name: create_ready_index
-- The queue: the rows a stage still has to do, least recently tried first. It makes a claim cost the same at any table size.
CREATE INDEX {index} ON {table} ({tried_at} NULLS FIRST) WHERE ({ready});

-- name: save_stage
INSERT INTO pleinair.stages (table_name, name, ready, writes, reads, batch, lease_seconds)
VALUES (%(table)s, %(name)s, %(ready)s, %(writes)s, %(reads)s, %(batch)s, %(lease_seconds)s)
ON CONFLICT (table_name, name) DO UPDATE
SET ready = EXCLUDED.ready, writes = EXCLUDED.writes, reads = EXCLUDED.reads,
    batch = EXCLUDED.batch, lease_seconds = EXCLUDED.lease_seconds;

-- name: load_stage
-- One declared stage; served by the primary key.
SELECT ready, writes, reads, batch, lease_seconds
FROM pleinair.stages WHERE table_name = %(table)s AND name = %(name)s;

-- name: list_stages
-- Every declared stage in the order of declaration.
SELECT table_name, name FROM pleinair.stages ORDER BY place;
