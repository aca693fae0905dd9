-- Shards: which slots of the key space live here; on the first shard also where all the others are.
ALTER TABLE pleinair.stages ADD COLUMN ordering text;

-- Tokens of different shards never meet, as rows move with their claims: shard n counts n, n + 4096, n + 8192 ...
ALTER SEQUENCE pleinair.claim_tokens INCREMENT BY 4096 RESTART WITH 1099511627776;

CREATE FUNCTION pleinair.slot_of(key text) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ('x' || left(encode(sha256(convert_to(key, 'UTF8')), 'hex'), 4))::bit(16)::integer & 1023;

CREATE TABLE pleinair.here (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    database uuid NOT NULL DEFAULT gen_random_uuid(),
    shard integer NOT NULL DEFAULT 0,
    owned bit(1024) NOT NULL DEFAULT ~ (0::bit(1024))
);
INSERT INTO pleinair.here DEFAULT VALUES;

CREATE TABLE pleinair.shards (
    shard integer PRIMARY KEY,
    place text NOT NULL UNIQUE,
    joined_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE pleinair.slots (
    slot integer PRIMARY KEY,
    shard integer NOT NULL
);

CREATE TABLE pleinair.moves (
    slot integer PRIMARY KEY,
    source integer NOT NULL,
    target integer NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);

-- Keys of rows that changed while their slot is being copied to another shard.
CREATE TABLE pleinair.changes (
    table_name text NOT NULL,
    key text NOT NULL
);

CREATE FUNCTION pleinair.note_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pleinair.changes (table_name, key)
    VALUES (TG_TABLE_NAME, (to_jsonb(coalesce(NEW, OLD)) ->> TG_ARGV[0]));
    RETURN NULL;
END $$;

-- Refuses a write that was sent here by an old slot map. The lock is held to the end of the transaction, and a move takes
-- it exclusively, so no slot leaves between this check and the write.
CREATE FUNCTION pleinair.require_slots(wanted bit(1024)) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('pleinair.slots'));
    IF (SELECT (owned & wanted) <> wanted FROM pleinair.here) THEN
        RAISE EXCEPTION 'a slot of these rows is not on this shard' USING ERRCODE = 'PL001';
    END IF;
END $$;
