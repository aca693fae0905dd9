-- name: role_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s);

-- name: create_reader
-- A role that can log in and nothing else.
CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- name: set_password
ALTER ROLE {role} PASSWORD {password};

-- name: default_to_read_only
-- Not the guard (a session may change it), but what a psql of this role begins with.
ALTER ROLE {role} SET default_transaction_read_only = on;

-- name: readable_schemas
-- The schemas with tables of people: not pg_read_all_data, which opens the password hashes too.
SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema';

-- name: grant_schema
GRANT USAGE ON SCHEMA {schema} TO {role};

-- name: grant_tables
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};

-- name: grant_later_schemas
-- Schemas and, below, tables that the role running this makes later.
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {role};

-- name: grant_later_tables
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role};

-- name: search_path
-- Where the role running this finds tables: its own schema is found for it alone.
SELECT current_database(), replace(current_setting('search_path'), '"$user"', quote_ident(current_user));

-- name: search_there
ALTER ROLE {role} IN DATABASE {database} SET search_path = {path};

-- name: writing_functions
-- Functions that anyone may call and that write in a read-only transaction: large objects, before version 16.
SELECT format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(pg_proc.oid))
FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE nspname = 'pg_catalog' AND current_setting('server_version_num')::int < 160000
    AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_unlink', 'lo_truncate',
        'lo_truncate64', 'lo_open');

-- name: revoke_function
REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;

-- name: powers
-- Why the role of this connection is more than a reader; NULL if it is not.
SELECT CASE
    WHEN rolsuper THEN 'is a superuser'
    WHEN pg_has_role(rolname, 'pg_read_server_files', 'MEMBER') THEN 'may read files of the server'
    WHEN pg_has_role(rolname, 'pg_write_server_files', 'MEMBER') THEN 'may write files of the server'
    WHEN pg_has_role(rolname, 'pg_execute_server_program', 'MEMBER') THEN 'may run programs on the server'
END
FROM pg_roles WHERE rolname = current_user;
