-- name: be_durable
-- For this transaction: an acknowledgement means durable, and every setting but off keeps that promise.
SELECT set_config('synchronous_commit', 'on', TRUE) WHERE current_setting('synchronous_commit') = 'off';

-- name: load_table
-- One declared table with its rules; served by the primary key.
SELECT key, columns, merge FROM pleinair.tables WHERE name = %(name)s;

-- name: table_keys
-- The key of every declared table and its type: clients place rows by it.
SELECT name, key, (SELECT declared ->> 1 FROM jsonb_array_elements(columns) AS declared WHERE declared ->> 0 = key)
FROM pleinair.tables;

-- name: claim_clients
-- A client program begins: its row is made, or taken over from an earlier program, whose mutations are refused from then
-- on. Served by the primary key.
INSERT INTO pleinair.funnel_clients AS known (client, incarnation, applied)
SELECT client, incarnation, 0
FROM unnest(%(clients)s::text[], %(incarnations)s::text[]) AS begun (client, incarnation)
ORDER BY client
ON CONFLICT (client) DO UPDATE SET incarnation = EXCLUDED.incarnation, seen_at = now();

-- name: load_clients
-- Where clients stand; served by the primary key.
SELECT client, incarnation, applied FROM pleinair.funnel_clients WHERE client = ANY (%(clients)s::text[]);

-- name: load_failures
-- The failures that clients may not know of yet; served by the primary key.
SELECT client, number, reason FROM pleinair.funnel_failures WHERE client = ANY (%(clients)s::text[]);

-- name: advance_clients
-- First statement of every flush; see the function.
SELECT pleinair.funnel_advance(
    %(clients)s::text[], %(incarnations)s::text[], %(expected)s::bigint[], %(reached)s::bigint[]
);

-- name: upsert_merged_rows
-- Inserts rows or merges them into those that exist, each column by its rule. Keys arrive sorted, so two writers never
-- deadlock; the primary key serves.
INSERT INTO {table} AS stored ({columns})
SELECT {values} FROM unnest({arrays}) AS given ({names})
ON CONFLICT ({key}) DO UPDATE SET {assignments};

-- name: insert_missing_keys
-- Rows of which only the key is given; the primary key serves.
INSERT INTO {table} ({columns})
SELECT {values} FROM unnest({arrays}) AS given ({names})
ON CONFLICT ({key}) DO NOTHING;

-- name: record_failures
-- Failures are answers too: a mutation that failed and is sent again fails again, unapplied.
INSERT INTO pleinair.funnel_failures (client, number, reason)
SELECT * FROM unnest(%(clients)s::text[], %(numbers)s::bigint[], %(reasons)s::text[])
ON CONFLICT DO NOTHING;

-- name: forget_failures
-- The failures up to a number that their client knows of; served by the primary key.
DELETE FROM pleinair.funnel_failures AS failure
USING unnest(%(clients)s::text[], %(confirmed)s::bigint[]) AS known (client, confirmed)
WHERE failure.client = known.client AND failure.number <= known.confirmed;

-- name: touch_clients
-- Clients that are connected are not idle, even if they send nothing.
UPDATE pleinair.funnel_clients SET seen_at = now()
WHERE client = ANY (ARRAY(
    SELECT client FROM pleinair.funnel_clients WHERE client = ANY (%(clients)s::text[]) ORDER BY client FOR UPDATE
));

-- name: forget_clients
-- Clients idle for longer than the retention; reads the whole table, once an hour.
DELETE FROM pleinair.funnel_clients
WHERE client = ANY (ARRAY(
    SELECT client FROM pleinair.funnel_clients
    WHERE seen_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY client FOR UPDATE SKIP LOCKED
));

-- name: rule_last
EXCLUDED.{column};

-- name: rule_max
greatest(stored.{column}, EXCLUDED.{column});

-- name: rule_max_text
greatest(stored.{column} COLLATE "C", EXCLUDED.{column} COLLATE "C");

-- name: rule_min
least(stored.{column}, EXCLUDED.{column});

-- name: rule_min_text
least(stored.{column} COLLATE "C", EXCLUDED.{column} COLLATE "C");

-- name: rule_sum
CASE WHEN EXCLUDED.{column} IS NULL THEN stored.{column} ELSE coalesce(stored.{column}, 0) + EXCLUDED.{column} END;

-- name: rule_coalesce
coalesce(stored.{column}, EXCLUDED.{column});

-- name: rule_json_merge
-- What is not an object came here by another way and gives way.
CASE WHEN jsonb_typeof(stored.{column}) = 'object' THEN stored.{column} || coalesce(EXCLUDED.{column}, '{{}}')
     ELSE coalesce(EXCLUDED.{column}, stored.{column}) END;

-- name: rule_union
-- Elements in the order of their first appearance.
CASE WHEN EXCLUDED.{column} IS NULL THEN stored.{column} ELSE ARRAY(
    SELECT element FROM unnest(stored.{column} || EXCLUDED.{column}) WITH ORDINALITY AS listed (element, place)
    GROUP BY element ORDER BY min(place)
) END;
