-- A shard's part of every job: the signed order, ranges of keys still to do, and why rows failed.
CREATE SEQUENCE IF NOT EXISTS pleinair.pluck_tokens;

CREATE TABLE IF NOT EXISTS pleinair.pluck_jobs (
    id uuid PRIMARY KEY,
    header text NOT NULL,
    signature text NOT NULL,
    function bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('preparing', 'running', 'paused', 'cancelled', 'done')),
    reason text,
    errors_allowed bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);

CREATE TABLE IF NOT EXISTS pleinair.pluck_batches (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job uuid NOT NULL REFERENCES pleinair.pluck_jobs (id) ON DELETE CASCADE,
    after text,
    up_to text,
    single boolean NOT NULL DEFAULT FALSE,
    expected bigint NOT NULL,
    done bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    lost integer NOT NULL DEFAULT 0,
    tried_at timestamptz,
    not_before timestamptz,
    leased_until timestamptz,
    token bigint,
    worker text,
    finished_at timestamptz
);

CREATE INDEX IF NOT EXISTS pluck_batches_due
ON pleinair.pluck_batches (job, tried_at NULLS FIRST, number) WHERE finished_at IS NULL;

CREATE TABLE IF NOT EXISTS pleinair.pluck_errors (
    job uuid NOT NULL REFERENCES pleinair.pluck_jobs (id) ON DELETE CASCADE,
    key text NOT NULL,
    exception text NOT NULL,
    message text NOT NULL,
    traceback text NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    final boolean NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job, key)
);

CREATE TABLE IF NOT EXISTS pleinair.pluck_refusals (
    job uuid NOT NULL REFERENCES pleinair.pluck_jobs (id) ON DELETE CASCADE,
    worker text NOT NULL,
    reason text NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job, worker)
);
