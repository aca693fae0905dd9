-- name: upsert_rows
-- Inserts rows or sets the given columns of those that exist. Keys arrive sorted, so two writers never deadlock; the primary key serves.
INSERT INTO {table} ({columns})
SELECT {values} FROM unnest({arrays}) AS given ({names})
ON CONFLICT ({key}) DO UPDATE SET {assignments};

-- name: insert_missing_rows
-- Inserts the rows whose key is new and leaves the others alone; the primary key serves.
INSERT INTO {table} ({columns})
SELECT {values} FROM unnest({arrays}) AS given ({names})
ON CONFLICT ({key}) DO NOTHING;

-- name: update_rows
-- Sets the given columns of rows that exist, locked in key order first: the join would lock them in any order.
-- The primary key serves.
WITH held AS MATERIALIZED (
    SELECT {key} FROM {table} WHERE {key} = ANY (%(given_0)s::{key_type}[]) ORDER BY {key} FOR UPDATE
)
UPDATE {table} SET {assignments}
FROM (SELECT {values} FROM unnest({arrays}) AS given ({names})) AS new ({columns})
WHERE {table}.{key} = new.{key} AND {table}.{key} = ANY (ARRAY(SELECT {key} FROM held));
