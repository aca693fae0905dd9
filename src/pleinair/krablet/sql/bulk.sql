-- name: create_arriving
-- Where rows arrive before they are merged: the columns of the table that are given.
CREATE TEMPORARY TABLE arriving ON COMMIT DROP AS SELECT {columns} FROM {table} LIMIT 0;

-- name: copy_rows
COPY {table} ({columns}) FROM STDIN (FORMAT CSV);

-- name: upsert_arrived
-- Rows arrive sorted by key and are read in that order, so two loads never deadlock; the primary key serves.
INSERT INTO {table} ({columns}) SELECT {columns} FROM arriving ON CONFLICT ({key}) DO UPDATE SET {assignments};

-- name: insert_arrived
-- As above, leaving rows that exist alone.
INSERT INTO {table} ({columns}) SELECT {columns} FROM arriving ON CONFLICT ({key}) DO NOTHING;
