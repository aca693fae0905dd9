-- name: table_columns
-- The columns of a table: name, type id, whether an array, the type as printed, whether the key, whether text sorts by its bytes.
SELECT
    attname,
    atttypid::bigint,
    typcategory = 'A',
    format_type(atttypid, atttypmod),
    attnum = ANY (coalesce(indkey::int2[], '{{}}')) AND cardinality(indkey::int2[]) = 1,
    CASE attcollation
        WHEN 'pg_catalog."default"'::regcollation THEN
            (SELECT datcollate IN ('C', 'POSIX') FROM pg_database WHERE datname = current_database())
        ELSE attcollation IN ('pg_catalog."C"'::regcollation, 'pg_catalog."POSIX"'::regcollation)
    END
FROM pg_attribute
JOIN pg_type ON pg_type.oid = atttypid
LEFT JOIN pg_index ON indrelid = attrelid AND indisprimary
WHERE attrelid = to_regclass({table}) AND attnum > 0 AND NOT attisdropped
ORDER BY attnum;

-- name: array_types
-- Which of these types are arrays; served by the primary key of the system catalog.
SELECT oid::bigint FROM pg_type WHERE typcategory = 'A' AND oid = ANY ({types}::oid[]);

-- name: scan_rows
-- What one shard gives to a scan. The line ends keep a comment in the condition from swallowing what follows.
SELECT {columns} FROM {table} WHERE (
{where}
) {group} {order} {limit};

-- name: get_rows
-- Rows by key; the primary key serves.
SELECT {columns} FROM {table} WHERE {key} = ANY ({keys});

-- name: may_read_here
-- Whether this server is a shard, and whether this role may see what it owns; served by the system catalogs.
SELECT count(*) > 0, coalesce(bool_and(has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT')), FALSE)
FROM pg_class WHERE relname = 'here' AND relnamespace = to_regnamespace('pleinair');

-- name: owned_here
-- Which warehouse this server is of, and the slots it owns, as 1024 bits; one row.
SELECT database::text, owned::text FROM pleinair.here;

-- name: explain
-- The plan of a statement, which is not run.
EXPLAIN (FORMAT JSON, COSTS OFF) {statement};

-- name: no_ordered_scans
-- Until the transaction ends, no plan gets its order from an index: an order then shows in the plan as a sort.
SELECT set_config('enable_indexscan', 'off', true), set_config('enable_indexonlyscan', 'off', true);

-- name: select_as
-- A statement of a person with its columns cast; the names inside are ours, for theirs may repeat.
SELECT {columns} FROM (
{statement}
) AS given ({names});

-- name: declared_tables
-- Every declared table with its columns as JSON, in the order of declaration.
SELECT name, key, columns::text FROM pleinair.tables ORDER BY declared_at, name;

-- name: declared_stages
-- Every declared stage with the columns it writes as JSON, in the order of declaration.
SELECT table_name, name, ready, to_json(writes)::text FROM pleinair.stages ORDER BY place;
