-- name: create_arriving
-- Where rows arrive before they are merged: the table's columns that are given, and the order they came in.
CREATE TEMPORARY TABLE arriving ON COMMIT DROP AS SELECT {columns} FROM {table} LIMIT 0;

-- name: number_arriving
ALTER TABLE arriving ADD COLUMN {place} bigint GENERATED ALWAYS AS IDENTITY;

-- name: copy_rows
COPY {table} ({columns}) FROM STDIN (FORMAT CSV);

-- name: upsert_arrived
-- Keys in order, so that two loads never deadlock; of a key that arrived twice the later row stays. The primary key serves.
INSERT INTO {table} ({columns})
SELECT DISTINCT ON ({key}) {columns} FROM arriving ORDER BY {key}, {place} DESC
ON CONFLICT ({key}) DO UPDATE SET {assignments};

-- name: insert_arrived
-- As above, leaving rows that exist alone.
INSERT INTO {table} ({columns})
SELECT DISTINCT ON ({key}) {columns} FROM arriving ORDER BY {key}, {place} DESC
ON CONFLICT ({key}) DO NOTHING;
