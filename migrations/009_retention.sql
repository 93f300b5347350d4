-- Retention: whole time partitions of events are dropped, never rows. Works by `psql -f` and by `audit-consumer migrate`,
-- again too.
--
-- What holds, by the database itself:
--   * retention_actions and retention_counts are append only: who dropped or held what, when and why; and how many rows
--     of which stream and partition went. The transaction that drops a time partition writes both.
--   * So for each stream and partition: rows in events + retention_counts.events = consumer_offsets.events.
--   * legal_holds: what is held now. A time partition with an event that one of them names is not dropped.
-- Advisory lock taken by `retention apply`: hashtextextended('audit_events.retention', 0), one drop at a time.
-- Only the owner of events can drop a time partition; `audit-consumer retention apply` is how it is recorded.

CREATE TABLE IF NOT EXISTS audit_events.legal_holds (
    kind    text        NOT NULL CHECK (kind IN ('tenant', 'actor', 'correlation_id')),
    value   text        NOT NULL,
    actor   text        NOT NULL,
    reason  text        NOT NULL,
    held_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, value)
);
COMMENT ON TABLE audit_events.legal_holds IS
    'Whose events must stay: no time partition is dropped that holds one';

CREATE TABLE IF NOT EXISTS audit_events.retention_actions (
    action_id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action         text        NOT NULL CHECK (action IN ('drop', 'hold', 'release')),
    partition_name text,
    lower_bound    timestamptz,
    upper_bound    timestamptz,
    event_count    bigint,
    actor          text        NOT NULL,
    login          text        NOT NULL DEFAULT session_user,
    reason         text        NOT NULL,
    details        jsonb       NOT NULL,
    at             timestamptz NOT NULL DEFAULT now(),
    CHECK ((action = 'drop') = (partition_name IS NOT NULL AND lower_bound IS NOT NULL AND upper_bound IS NOT NULL
                                AND event_count IS NOT NULL))
);
COMMENT ON TABLE audit_events.retention_actions IS 'Time partitions dropped, legal holds set and lifted: who, when, why';

CREATE TABLE IF NOT EXISTS audit_events.retention_counts (
    action_id     bigint  NOT NULL REFERENCES audit_events.retention_actions,
    stream_id     uuid    NOT NULL,
    partition     integer NOT NULL,
    events        bigint  NOT NULL CHECK (events > 0),
    low_offset    bigint  NOT NULL,
    high_offset   bigint  NOT NULL,
    purview_lines bigint  NOT NULL CHECK (purview_lines >= 0),
    trust_lines   bigint  NOT NULL CHECK (trust_lines >= 0),
    PRIMARY KEY (action_id, stream_id, partition)
);
COMMENT ON TABLE audit_events.retention_counts IS
    'Events that went with a dropped time partition, and how many of them have a line in a day file';

CREATE OR REPLACE VIEW audit_events.reader_actions WITH (security_barrier = true, security_invoker = false) AS
SELECT a.at, a.kind, a.action, a.actor, a.reason
  FROM (SELECT at, 'position' AS kind, action, actor, reason FROM audit_events.offset_actions
        UNION ALL SELECT at, 'dead letter', action, actor, reason FROM audit_events.dead_letter_actions
        UNION ALL SELECT at, 'day file', action, actor, reason FROM audit_events.projection_actions
        UNION ALL SELECT at, 'retention', action, actor, reason FROM audit_events.retention_actions) AS a
 WHERE (SELECT is_all FROM audit_events.reader_scope);

-- What 008's grant_roles does not know of; `audit-consumer migrate` calls both.
CREATE OR REPLACE FUNCTION audit_events.grant_retention() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name text;
BEGIN
    FOR role_name IN SELECT rolname FROM pg_roles
                      WHERE rolname IN ('audit_writer', 'audit_admin', 'audit_events_write', 'audit_events_read') LOOP
        EXECUTE format('GRANT SELECT ON audit_events.legal_holds, audit_events.retention_actions,
            audit_events.retention_counts TO %I', role_name);
    END LOOP;
    FOR role_name IN SELECT rolname FROM pg_roles WHERE rolname = 'audit_admin' LOOP
        EXECUTE format('GRANT INSERT, DELETE ON audit_events.legal_holds TO %I', role_name);
        EXECUTE format('GRANT INSERT ON audit_events.retention_actions TO %I', role_name);
    END LOOP;
END $$;
COMMENT ON FUNCTION audit_events.grant_retention IS 'Grants the roles that there are what retention takes';
REVOKE EXECUTE ON FUNCTION audit_events.grant_retention FROM PUBLIC;

DO $$
BEGIN
    PERFORM audit_events.protect('audit_events.retention_actions'::regclass);
    PERFORM audit_events.protect('audit_events.retention_counts'::regclass);
    PERFORM audit_events.grant_retention();
END $$;
