-- Day files: how far the events of each partition are in Purview and trust logs, and what stands in which file.
-- Works by `psql -f` and by `audit-consumer migrate`, again too. The protocol: src/projector/mod.rs.
--
-- What holds, by the database itself:
--   * projection_cursors: one cursor for each sink and partition, shared by all instances; moved by compare-and-set
--     in the transaction that records who writes the offsets that it passes. So no two instances write the same ones.
--   * projection_instances: an instance has at most one intent that is not confirmed, for each sink.
--   * projection_segments: bytes [start, end) of a file are the lines of the events of these ranges, in this order,
--     on the file's day, by these rules. Recorded before they are written. Where one starts, none other does.
--   * projection_actions is append only.

-- The cursors of 001 were per instance and never used.
DO $$
BEGIN
    IF EXISTS (SELECT FROM information_schema.columns
                WHERE table_schema = 'audit_events' AND table_name = 'projection_cursors'
                  AND column_name = 'instance_id') THEN
        DROP TABLE audit_events.projection_cursors;
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS audit_events.projection_cursors (
    sink        text        NOT NULL CHECK (sink IN ('purview', 'trust')),
    stream_id   uuid        NOT NULL REFERENCES audit_events.streams,
    partition   integer     NOT NULL,
    next_offset bigint      NOT NULL CHECK (next_offset >= 0),
    moved_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, stream_id, partition)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE audit_events.projection_cursors IS
    'The next offset that no instance has intended to write, by sink and partition';

CREATE TABLE IF NOT EXISTS audit_events.projection_instances (
    sink             text        NOT NULL CHECK (sink IN ('purview', 'trust')),
    instance_id      uuid        NOT NULL,
    intended         bigint      NOT NULL DEFAULT 0,
    confirmed        bigint      NOT NULL DEFAULT 0,
    run_id           uuid,
    session_pid      integer,
    session_start    timestamptz,
    begun_at         timestamptz NOT NULL DEFAULT now(),
    intended_at      timestamptz,
    confirmed_at     timestamptz,
    PRIMARY KEY (sink, instance_id),
    CHECK (intended - confirmed IN (0, 1))
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE audit_events.projection_instances IS
    'Instances that write day files: the number of the latest intent, and of the latest that is on disk';
COMMENT ON COLUMN audit_events.projection_instances.run_id IS
    'The process that writes; null after `projections adopt`';

CREATE TABLE IF NOT EXISTS audit_events.projection_segments (
    sink            text        NOT NULL CHECK (sink IN ('purview', 'trust')),
    instance_id     uuid        NOT NULL,
    file_name       text        NOT NULL,
    start_len_bytes bigint      NOT NULL CHECK (start_len_bytes >= 0),
    end_len_bytes   bigint      NOT NULL,
    line_count      bigint      NOT NULL CHECK (line_count > 0),
    intent          bigint      NOT NULL,
    rules           jsonb       NOT NULL,
    stream_ids      uuid[]      NOT NULL,
    partitions      integer[]   NOT NULL,
    start_offsets   bigint[]    NOT NULL,
    end_offsets     bigint[]    NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, instance_id, file_name, start_len_bytes),
    CHECK (start_len_bytes < end_len_bytes),
    CHECK (cardinality(stream_ids) > 0 AND cardinality(stream_ids) = cardinality(partitions)
           AND cardinality(stream_ids) = cardinality(start_offsets)
           AND cardinality(stream_ids) = cardinality(end_offsets))
);
COMMENT ON TABLE audit_events.projection_segments IS
    'What the bytes of a day file are: the events of these ranges, in this order, on its day, rendered by these rules';
CREATE INDEX IF NOT EXISTS projection_segments_intent
    ON audit_events.projection_segments (sink, instance_id, intent);

CREATE TABLE IF NOT EXISTS audit_events.projection_pending (
    pending_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sink         text        NOT NULL CHECK (sink IN ('purview', 'trust')),
    stream_id    uuid        NOT NULL,
    partition    integer     NOT NULL,
    start_offset bigint      NOT NULL,
    end_offset   bigint      NOT NULL,
    cause        text        NOT NULL CHECK (cause IN ('adopted', 'gap_filled')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK (start_offset < end_offset)
);
COMMENT ON TABLE audit_events.projection_pending IS
    'Ranges behind the cursors that some instance must still write; whoever records an intent for one takes it out';

CREATE TABLE IF NOT EXISTS audit_events.projection_actions (
    action_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action      text        NOT NULL CHECK (action IN ('adopt')),
    sink        text        NOT NULL,
    instance_id uuid        NOT NULL,
    actor       text        NOT NULL,
    reason      text        NOT NULL,
    details     jsonb       NOT NULL,
    at          timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_events.projection_actions IS 'What was done to day files by hand: who, when, why';

-- The offsets of a declared gap are passed over, and belong to no segment. When a part of a gap is filled, its rows come
-- behind the cursors, so that part is written as a range of its own. The action names it, in the same transaction.
CREATE OR REPLACE FUNCTION audit_events.project_filled_gap() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO audit_events.projection_pending (sink, stream_id, partition, start_offset, end_offset, cause)
    SELECT s, NEW.stream_id, NEW.partition, (NEW.details->>'start_offset')::bigint,
           (NEW.details->>'end_offset')::bigint, 'gap_filled'
      FROM unnest(ARRAY['purview', 'trust']) AS s;
    RETURN NULL;
END $$;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger
                    WHERE tgrelid = 'audit_events.offset_actions'::regclass AND tgname = 'project_filled') THEN
        CREATE TRIGGER project_filled AFTER INSERT ON audit_events.offset_actions FOR EACH ROW
            WHEN (NEW.action = 'fill_gap')
            EXECUTE FUNCTION audit_events.project_filled_gap();
    END IF;
END $$;

DO $$
BEGIN
    PERFORM audit_events.protect('audit_events.projection_actions'::regclass);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_write') THEN
        GRANT SELECT, INSERT ON audit_events.projection_cursors, audit_events.projection_instances,
            audit_events.projection_segments, audit_events.projection_pending, audit_events.projection_actions
            TO audit_events_write;
        GRANT UPDATE ON audit_events.projection_cursors, audit_events.projection_instances TO audit_events_write;
        -- Segments are merged, and taken back by `projections adopt`; a pending range goes when it is intended.
        GRANT DELETE ON audit_events.projection_segments, audit_events.projection_pending TO audit_events_write;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_read') THEN
        GRANT SELECT ON audit_events.projection_cursors, audit_events.projection_instances,
            audit_events.projection_segments, audit_events.projection_pending, audit_events.projection_actions
            TO audit_events_read;
    END IF;
END $$;
