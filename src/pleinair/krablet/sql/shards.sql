-- name: load_shards
-- Every shard with its place, in order; on the first shard. Served by the primary key.
SELECT shard, place FROM pleinair.shards ORDER BY shard;

-- name: load_slots
-- The slot map; on the first shard. Served by the primary key.
SELECT slot, shard FROM pleinair.slots ORDER BY slot;

-- name: load_here
-- Which database and shard this server is; one row.
SELECT database, shard FROM pleinair.here;

-- name: owned_here
-- The slots that live on this server, as 1024 bits; one row.
SELECT owned::text FROM pleinair.here;

-- name: save_shard
INSERT INTO pleinair.shards (shard, place) VALUES (%(shard)s, %(place)s)
ON CONFLICT (shard) DO UPDATE SET place = EXCLUDED.place;

-- name: delete_shard
DELETE FROM pleinair.shards WHERE shard = %(shard)s;

-- name: assign_slots
-- Gives slots to a shard, in the map of the first shard; served by the primary key.
INSERT INTO pleinair.slots (slot, shard) SELECT unnest(%(slots)s::integer[]), %(shard)s
ON CONFLICT (slot) DO UPDATE SET shard = EXCLUDED.shard;

-- name: become_shard
-- What a server is told when it joins. Its tokens follow those of all others, offset by its number.
UPDATE pleinair.here SET database = %(database)s, shard = %(shard)s, owned = %(owned)s::bit(1024);

-- name: offset_tokens
ALTER SEQUENCE pleinair.claim_tokens RESTART WITH {start};

-- name: require_slots
-- Refuses to go on when a slot of the rows about to be written is not here any more.
SELECT pleinair.require_slots(%(wanted)s::bit(1024));

-- name: own_slots
UPDATE pleinair.here SET owned = owned | %(slots)s::bit(1024);

-- name: disown_slots
UPDATE pleinair.here SET owned = owned & ~ (%(slots)s::bit(1024));

-- name: lock_slots
-- Waits until no write that checked its slots is under way, and holds new ones back until the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('pleinair.slots'));

-- name: lock_writers
-- Waits until no statement writes to a table, and holds new ones back until the transaction ends; reading goes on.
LOCK TABLE {table} IN EXCLUSIVE MODE;

-- name: begin_moves
INSERT INTO pleinair.moves (slot, source, target) SELECT unnest(%(slots)s::integer[]), %(source)s, %(target)s;

-- name: end_moves
DELETE FROM pleinair.moves WHERE slot = ANY (%(slots)s);

-- name: load_moves
SELECT source, target, array_agg(slot ORDER BY slot) FROM pleinair.moves GROUP BY source, target ORDER BY source, target;

-- name: create_watch
-- Notes every change of a row whose slot is being copied.
CREATE TRIGGER pleinair_moving_new AFTER INSERT OR UPDATE ON {table} FOR EACH ROW
WHEN (pleinair.slot_of(NEW.{key}::text) = ANY ({slots})) EXECUTE FUNCTION pleinair.note_change({key_name});
CREATE TRIGGER pleinair_moving_old AFTER DELETE ON {table} FOR EACH ROW
WHEN (pleinair.slot_of(OLD.{key}::text) = ANY ({slots})) EXECUTE FUNCTION pleinair.note_change({key_name});

-- name: drop_watch
DROP TRIGGER IF EXISTS pleinair_moving_new ON {table};
DROP TRIGGER IF EXISTS pleinair_moving_old ON {table};

-- name: create_staging
-- Rows on their way wait here, where nobody claims them.
DROP TABLE IF EXISTS {staging};
CREATE TABLE {staging} (LIKE {table} INCLUDING DEFAULTS);
ALTER TABLE {staging} ADD PRIMARY KEY ({key});

-- name: drop_staging
DROP TABLE IF EXISTS {staging};

-- name: copy_out
-- Served by the slot index.
COPY (SELECT {columns} FROM {table} WHERE pleinair.slot_of({key}::text) = ANY ({slots})) TO STDOUT (FORMAT BINARY);

-- name: copy_in
COPY {staging} ({columns}) FROM STDIN (FORMAT BINARY);

-- name: take_changes
-- Takes the changes noted so far.
DELETE FROM pleinair.changes RETURNING table_name, key;

-- name: forget_changes
TRUNCATE pleinair.changes;

-- name: copy_changed_out
COPY (SELECT {columns} FROM {table} WHERE {key} = ANY ({keys}::{key_type}[])) TO STDOUT (FORMAT BINARY);

-- name: unstage_rows
DELETE FROM {staging} WHERE {key} = ANY (%(keys)s::{key_type}[]);

-- name: remove_moved
-- Served by the slot index.
DELETE FROM {table} WHERE pleinair.slot_of({key}::text) = ANY (%(slots)s::integer[]);

-- name: promote_staging
INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging};

-- name: shard_facts
-- Version, size, and how far the furthest replica lags; served by the system catalogs.
SELECT current_setting('server_version'), pg_database_size(current_database()),
       (SELECT max(extract(epoch FROM replay_lag))::double precision FROM pg_stat_replication),
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())::integer;

-- name: count_slot_rows
-- Rows in a set of slots, by a scan of the table.
SELECT count(*) FROM {table} WHERE pleinair.slot_of({key}::text) = ANY (%(slots)s::integer[]);

-- name: try_mover_lock
SELECT pg_try_advisory_lock(hashtext('pleinair.moves'));

-- name: create_slot_index
CREATE INDEX CONCURRENTLY {slot_index} ON {table} (pleinair.slot_of({key}::text));

-- name: drop_slot_index
DROP INDEX IF EXISTS {slot_index};
