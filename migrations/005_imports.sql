-- Imports: what was taken from the predecessor's table and files. Works by `psql -f` and by `audit-consumer migrate`,
-- again too.
--
-- An import is a stream like any other (`streams.topic` is `import:<table or file>`, group and cluster are `import`),
-- whose offsets are the numbers of rows or lines. Numbers mean something only while the source stays as it was, so
-- what it was is recorded before its first row is stored; an import of something else under the same name is refused.

CREATE TABLE IF NOT EXISTS audit_events.imports (
    stream_id    uuid        PRIMARY KEY,
    kind         text        NOT NULL CHECK (kind IN ('table', 'file')),
    source       text        NOT NULL,
    record_count bigint      NOT NULL CHECK (record_count >= 0),
    len_bytes    bigint      CHECK (len_bytes >= 0),
    fingerprint  text        NOT NULL,
    actor        text        NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'file') = (len_bytes IS NOT NULL))
);
COMMENT ON TABLE audit_events.imports IS
    'What each import was of when it began: rows or lines, length and fingerprint; append only';
COMMENT ON COLUMN audit_events.imports.record_count IS 'Rows of a table, lines of a file';
COMMENT ON COLUMN audit_events.imports.fingerprint IS
    'Of a file its SHA-256; of a table the sum of hashes of its rows, whatever their order';

DO $$
BEGIN
    PERFORM audit_events.protect('audit_events.imports'::regclass);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_write') THEN
        GRANT SELECT, INSERT ON audit_events.imports TO audit_events_write;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_read') THEN
        GRANT SELECT ON audit_events.imports TO audit_events_read;
    END IF;
END $$;
