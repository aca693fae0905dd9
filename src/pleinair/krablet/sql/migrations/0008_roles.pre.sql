-- The logins that were given their rights here, so that a table or stage declared later gives them theirs.
CREATE TABLE pleinair.roles (
    role text PRIMARY KEY,
    kind text NOT NULL
);
