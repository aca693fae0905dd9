-- What the funnel remembers of every client: how far its numbered mutations are applied, and which of them failed, until
-- the client has said that it knows. A client's row is written in every flush, so half of each page is left free for that.
CREATE TABLE IF NOT EXISTS pleinair.funnel_clients (
    client text PRIMARY KEY,
    incarnation text NOT NULL,
    applied bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS pleinair.funnel_failures (
    client text NOT NULL REFERENCES pleinair.funnel_clients (client) ON DELETE CASCADE,
    number bigint NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (client, number)
);

-- The fence of every flush: moves clients from `expected` to `reached`, or raises PF001 and with it undoes the flush. A row
-- that another flush holds is waited for and then judged as that flush left it. Clients arrive sorted; two funnels that
-- serve the same clients may still deadlock, which is retried. An acknowledgement means durable, so no flush commits
-- asynchronously. The primary key serves.
CREATE OR REPLACE FUNCTION pleinair.funnel_advance(
    clients text[], incarnations text[], expected bigint[], reached bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moved bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', TRUE) WHERE current_setting('synchronous_commit') = 'off';
    UPDATE pleinair.funnel_clients AS known
    SET applied = flushed.reached, seen_at = now()
    FROM unnest(clients, incarnations, expected, reached) AS flushed (client, incarnation, expected, reached)
    WHERE known.client = flushed.client AND known.incarnation = flushed.incarnation
      AND known.applied = flushed.expected;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> cardinality(clients) THEN
        RAISE EXCEPTION USING ERRCODE = 'PF001', MESSAGE = 'a client of this flush is not where the funnel left it';
    END IF;
END $$;
