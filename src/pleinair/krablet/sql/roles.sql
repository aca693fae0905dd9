-- name: role_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s);

-- name: create_role
-- A role that can log in and nothing else.
CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- name: set_password
-- {password} is a SCRAM verifier: a server logs statements, and shows them to others, as they are.
ALTER ROLE {role} PASSWORD {password};

-- name: powers
-- Why rights cannot be taken from a role; NULL if they can.
SELECT CASE
    WHEN rolsuper THEN 'is a superuser'
    WHEN pg_has_role(rolname, 'pg_read_server_files', 'MEMBER') THEN 'may read files of the server'
    WHEN pg_has_role(rolname, 'pg_write_server_files', 'MEMBER') THEN 'may write files of the server'
    WHEN pg_has_role(rolname, 'pg_execute_server_program', 'MEMBER') THEN 'may run programs on the server'
    WHEN rolname = current_user THEN 'is the one that gives the rights'
    WHEN pg_has_role(rolname, (SELECT nspowner FROM pg_namespace WHERE nspname = 'pleinair'), 'MEMBER')
        THEN 'may act as the owner'
END
FROM pg_roles WHERE rolname = %(role)s;

-- name: record_role
INSERT INTO pleinair.roles (role, kind) VALUES (%(role)s, %(kind)s) ON CONFLICT (role) DO UPDATE SET kind = EXCLUDED.kind;

-- name: list_roles
-- The roles that were given rights here, those dropped since left out.
SELECT role, kind FROM pleinair.roles WHERE role IN (SELECT rolname FROM pg_roles) ORDER BY role;

-- name: declared_tables
SELECT name, key, columns FROM pleinair.tables ORDER BY name;

-- name: declared_stages
-- Every stage with the columns a worker writes, and those that counting its rows reads: what its indexes depend on is
-- what its condition and its order name.
SELECT table_name, writes || state,
       ARRAY(
           SELECT DISTINCT attname::text
           FROM pg_depend JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
           WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
             AND objid IN (to_regclass(table_name || '_' || name || '_ready'), to_regclass(table_name || '_' || name || '_again'))
             AND refobjid = to_regclass(table_name)
           UNION SELECT unnest(state) ORDER BY 1
       )
FROM pleinair.stages, LATERAL (
    SELECT array_agg(name || suffix) AS state
    FROM unnest('{_tried_at,_attempts,_error,_leased_until,_not_before,_token}'::text[]) AS suffix
) AS state_columns
ORDER BY table_name, name;

-- name: held_relations
-- What a role was given among the catalog's tables and the declared ones, whoever gave it.
SELECT nspname, relname
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE (nspname = 'pleinair' OR pg_class.oid IN (SELECT to_regclass(name) FROM pleinair.tables))
  AND relkind IN ('r', 'p', 'S')
  AND EXISTS (
      SELECT FROM aclexplode(relacl) WHERE grantee = %(role)s::regrole
      UNION ALL
      SELECT FROM pg_attribute, aclexplode(attacl) WHERE attrelid = pg_class.oid AND grantee = %(role)s::regrole
  );

-- name: revoke_relation
REVOKE ALL ON {table} FROM {role};

-- name: grant_connect
-- Where a database lets nobody in by default, and this login may let others in.
SELECT has_database_privilege(current_database(), 'CONNECT WITH GRANT OPTION'), current_database();

-- name: let_in
GRANT CONNECT ON DATABASE {database} TO {role};

-- name: grant_catalog
-- What every program reads: which tables and stages there are, and where rows live.
GRANT USAGE ON SCHEMA pleinair TO {role};
GRANT SELECT ON pleinair.migrations, pleinair.tables, pleinair.stages, pleinair.here, pleinair.shards, pleinair.slots,
    pleinair.moves TO {role};

-- name: grant_worker
-- Tokens of claims, the rate limit of a stage, and the log of who works. While slots move, a trigger notes in `changes`
-- what a worker writes.
GRANT USAGE ON SEQUENCE pleinair.claim_tokens TO {role};
GRANT UPDATE (tokens, tokens_at) ON pleinair.stages TO {role};
GRANT INSERT ON pleinair.changes TO {role};
GRANT SELECT, INSERT, DELETE, UPDATE (stages, seen_at) ON pleinair.workers TO {role};
GRANT SELECT, INSERT, DELETE, UPDATE (completed, failed, lost) ON pleinair.work_log TO {role};

-- name: grant_funnel
-- What is remembered of clients.
GRANT INSERT ON pleinair.changes TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON pleinair.funnel_clients TO {role};
GRANT SELECT, INSERT, DELETE ON pleinair.funnel_failures TO {role};

-- name: grant_pluck
-- Jobs, submitted and done. Whether a job may run is decided by its signature.
GRANT INSERT ON pleinair.changes TO {role};
GRANT USAGE ON SEQUENCE pleinair.pluck_tokens TO {role};
GRANT SELECT, INSERT, DELETE, UPDATE (state, reason, finished_at, errors_allowed) ON pleinair.pluck_jobs TO {role};
GRANT SELECT, INSERT, UPDATE ON pleinair.pluck_batches, pleinair.pluck_refusals TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON pleinair.pluck_errors TO {role};

-- name: grant_metrics
GRANT SELECT ON pleinair.workers, pleinair.work_log TO {role};

-- name: grant_reader
GRANT SELECT ON pleinair.workers, pleinair.work_log TO {role};

-- name: grant_written
-- A table that a funnel writes: its declared columns, never the state of claims, and never its key anew.
GRANT SELECT ({columns}), INSERT ({columns}) ON {table} TO {role};

-- name: grant_updates
GRANT UPDATE ({columns}) ON {table} TO {role};

-- name: grant_select
GRANT SELECT ON {table} TO {role};

-- name: grant_counted
GRANT SELECT ({columns}) ON {table} TO {role};

-- name: readable_tables
-- Tables and views of people that this login may give to others.
SELECT nspname, relname
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pleinair')
  AND relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_has_role(relowner, 'USAGE');

-- name: readable_schemas
SELECT nspname FROM pg_namespace
WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pleinair') AND pg_has_role(nspowner, 'USAGE');

-- name: grant_schema
GRANT USAGE ON SCHEMA {schema} TO {role};

-- name: grant_later_schemas
-- Schemas and, below, tables that the role running this makes later.
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {role};

-- name: grant_later_tables
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role};

-- name: default_to_read_only
-- Not the guard (a session may change it), but what a psql of this role begins with.
ALTER ROLE {role} SET default_transaction_read_only = on;

-- name: search_path
-- Where the role running this finds tables, if another role would not find them: its own schema is found for it alone.
SELECT current_database(), replace(current_setting('search_path'), '"$user"', quote_ident(current_user))
WHERE current_schemas(FALSE) <> '{public}';

-- name: search_there
ALTER ROLE {role} IN DATABASE {database} SET search_path = {path};

-- name: writing_functions
-- Functions that anyone may call and that write in a read-only transaction: large objects, before version 16.
SELECT format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(pg_proc.oid))
FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE nspname = 'pg_catalog' AND current_setting('server_version_num')::int < 160000
    AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_unlink', 'lo_truncate',
        'lo_truncate64', 'lo_open');

-- name: revoke_function
REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;

-- name: statistics_may_be_given
-- How far replicas lag is shown to this role alone.
SELECT rolsuper FROM pg_roles WHERE rolname = current_user;

-- name: grant_statistics
GRANT pg_read_all_stats TO {role};

-- name: catalog_owner
SELECT rolname, rolname = %(role)s FROM pg_namespace JOIN pg_roles ON pg_roles.oid = nspowner WHERE nspname = 'pleinair';

-- name: grant_owner
-- To declare tables here: the catalog's schema is made by the first declaration.
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO {role};
GRANT USAGE, CREATE ON SCHEMA public TO {role};
