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
-- Sets the given columns of rows that exist; the primary key serves.
UPDATE {table} SET {assignments}
FROM (SELECT {values} FROM unnest({arrays}) AS given ({names})) AS new ({columns})
WHERE {table}.{key} = new.{key};

-- name: read_rows
-- What matches a condition, for a server-side cursor.
SELECT {columns} FROM {table} WHERE ({where}) {order};

-- name: count_rows
SELECT count(*) FROM {table} WHERE ({where});
