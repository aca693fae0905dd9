-- The embedded server's login is called like this schema, so by the default search path its tables came to lie among ours,
-- and a table called `workers` could not be declared at all. People's relations and functions move to `public`, unless one
-- of that name is there, and the login looks for names there from now on.
DO $$
DECLARE
    theirs record;
BEGIN
    IF current_user <> 'pleinair' OR current_setting('search_path') <> '"$user", public' THEN
        RETURN;
    END IF;
    FOR theirs IN
        SELECT relname, CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                     ELSE 'TABLE' END AS kind
        FROM pg_class
        WHERE relnamespace = 'pleinair'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
          AND relname <> ALL ('{migrations,tables,stages,claim_tokens,here,shards,slots,moves,changes,workers,work_log}')
          AND (relname !~ '^(funnel|pluck)_' OR relname IN (SELECT name FROM pleinair.tables))
          AND relname NOT IN (SELECT 'incoming_' || name FROM pleinair.tables)
          AND to_regclass(format('public.%I', relname)) IS NULL
          -- A sequence that belongs to a column moves with its table.
          AND NOT EXISTS (
              SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype IN ('a', 'i')
          )
    LOOP
        EXECUTE format('ALTER %s pleinair.%I SET SCHEMA public', theirs.kind, theirs.relname);
    END LOOP;
    FOR theirs IN
        SELECT oid::regprocedure AS signature FROM pg_proc
        WHERE pronamespace = 'pleinair'::regnamespace AND prokind IN ('f', 'p')
          AND proname !~ '^(funnel|pluck)_'
          AND proname <> ALL ('{retry_delay,slot_of,note_change,require_slots,allow_claim,throughput}')
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET SCHEMA public', theirs.signature);
    END LOOP;
    EXECUTE format('ALTER ROLE pleinair IN DATABASE %I SET search_path = public', current_database());
END $$;
