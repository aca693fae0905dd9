-- name: migrations_exist
-- True when this server has a catalog of today's form; served by the system catalogs.
SELECT to_regclass('pleinair.migrations') IS NOT NULL;

-- name: first_floor_exists
-- True for a catalog made before migrations were recorded; it is what the first migration makes.
SELECT to_regclass('pleinair.stages') IS NOT NULL;

-- name: lock_schema
-- Makes declarations of two processes take turns until the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('pleinair.schema'));

-- name: create_migrations
CREATE SCHEMA IF NOT EXISTS pleinair;
CREATE TABLE IF NOT EXISTS pleinair.migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());

-- name: list_migrations
SELECT name FROM pleinair.migrations;

-- name: record_migration
INSERT INTO pleinair.migrations (name) VALUES (%(name)s) ON CONFLICT DO NOTHING;

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

-- name: leave_our_schema
-- For a session that began before migration 0007: the embedded login is called like our schema, which is no place for tables.
SELECT set_config('search_path', 'public', FALSE)
WHERE current_user = 'pleinair' AND current_setting('search_path') = '"$user", public';

-- name: create_table
-- A table with nothing but its key; columns are added one by one. A claim writes no indexed column, so with room on its
-- page it costs no index entry: a fifth of every page is kept free.
CREATE TABLE {table} ({key} {type} PRIMARY KEY) WITH (fillfactor = 80);

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

-- name: wait_briefly_for_locks
-- Until the transaction ends: whoever waits for a table's lock makes everybody after it wait as well. Less than the second
-- after which Postgres looks for deadlocks, so that an index build that waits for us is not what it ends.
SELECT set_config('lock_timeout', '200ms', TRUE);

-- name: index_is_valid
-- Whether an index is there and whole; one whose concurrent build was killed is there and not valid.
SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%(index)s)), FALSE);

-- name: table_bytes
SELECT coalesce(pg_table_size(to_regclass(%(table)s)), 0);

-- name: try_builder_lock
-- Of this session, not of a transaction: a concurrent build cannot run in one.
SELECT pg_try_advisory_lock(hashtext('pleinair.indexes'), hashtext(%(table)s));

-- name: free_builder_lock
SELECT pg_advisory_unlock(hashtext('pleinair.indexes'), hashtext(%(table)s));

-- name: notice_dead_client
-- Ends a statement whose client is gone, on systems that can tell; an index build would go on for hours.
SELECT set_config('client_connection_check_interval', '1s', FALSE);

-- name: create_empty_copy
CREATE TEMPORARY TABLE {copy} (LIKE {table}) ON COMMIT DROP;

-- name: drop_index
DROP INDEX IF EXISTS {index};

-- name: drop_index_beside_writers
DROP INDEX CONCURRENTLY IF EXISTS {index};

-- name: rename_index
ALTER INDEX {index} RENAME TO {name};

-- name: create_ready_index
-- The queue: the rows a stage still has to do and that never failed, in the order they are taken. A claim costs the same
-- at any table size. It holds no column that a claim writes, so claims do not touch it.
CREATE INDEX {concurrently} {index} ON {table} ({order}) WHERE ({ready}) AND {not_before} IS NULL;

-- name: create_again_index
-- The end of the queue: the rows that failed, by the time they may be tried again.
CREATE INDEX {concurrently} {index} ON {table} ({not_before}) WHERE ({ready}) AND {not_before} IS NOT NULL;

-- name: save_stage
INSERT INTO pleinair.stages (table_name, name, ready, writes, reads, batch, lease_seconds, ordering)
VALUES (%(table)s, %(name)s, %(ready)s, %(writes)s, %(reads)s, %(batch)s, %(lease_seconds)s, %(ordering)s)
ON CONFLICT (table_name, name) DO UPDATE
SET ready = EXCLUDED.ready, writes = EXCLUDED.writes, reads = EXCLUDED.reads,
    batch = EXCLUDED.batch, lease_seconds = EXCLUDED.lease_seconds, ordering = EXCLUDED.ordering;

-- name: load_stage
-- One declared stage; served by the primary key.
SELECT ready, writes, reads, batch, lease_seconds, ordering
FROM pleinair.stages WHERE table_name = %(table)s AND name = %(name)s;

-- name: list_stages
-- Every declared stage in the order of declaration.
SELECT table_name, name FROM pleinair.stages ORDER BY place;

-- name: backend_is_active
-- Whether a connection's statement is under way; one that waits for its client is not.
SELECT state = 'active' FROM pg_stat_activity WHERE pid = %(pid)s;
