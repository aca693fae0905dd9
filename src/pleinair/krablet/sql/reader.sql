-- name: powers
-- Why the role of this connection is more than a reader; NULL if it is not.
SELECT CASE
    WHEN rolsuper THEN 'is a superuser'
    WHEN pg_has_role(rolname, 'pg_read_server_files', 'MEMBER') THEN 'may read files of the server'
    WHEN pg_has_role(rolname, 'pg_write_server_files', 'MEMBER') THEN 'may write files of the server'
    WHEN pg_has_role(rolname, 'pg_execute_server_program', 'MEMBER') THEN 'may run programs on the server'
END
FROM pg_roles WHERE rolname = current_user;
