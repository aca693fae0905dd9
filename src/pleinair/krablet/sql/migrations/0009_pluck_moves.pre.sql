-- Batches that came with slots from another shard: only keys of these slots are theirs, and only once the slots are here.
-- `without`: slots that came later, with batches of their own for what was still to do of them.
ALTER TABLE pleinair.pluck_batches ADD COLUMN slots bit(1024), ADD COLUMN without bit(1024) NOT NULL DEFAULT 0::bit(1024);

-- Whose rows a job is over, for moves; what workers believe is in the signed header. `incomplete`: rows of it moved to a
-- server that does not have it.
ALTER TABLE pleinair.pluck_jobs
    ADD COLUMN table_name text,
    ADD COLUMN key text,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN incomplete boolean NOT NULL DEFAULT FALSE;
