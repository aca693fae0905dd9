-- By which rule the funnel merges each column, where it is not the last value that stays.
ALTER TABLE pleinair.tables ADD COLUMN merge jsonb NOT NULL DEFAULT '{}';
