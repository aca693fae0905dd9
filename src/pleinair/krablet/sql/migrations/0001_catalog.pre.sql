-- The first floor: what is declared, the source of fencing tokens, and the delay after an attempt.
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
