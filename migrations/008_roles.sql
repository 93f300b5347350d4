-- Least privilege: a role for each kind of work, and views for readers of some tenants. Works by `psql -f` and by
-- `audit-consumer migrate`, again too.
--
-- What holds, by the database itself:
--   * audit_writer (daemons, spool drain, import) inserts events and moves positions; audit_admin does what operators
--     do. Neither may UPDATE, DELETE or TRUNCATE events, under whatever partition's name.
--   * audit_reader has no right on any table. It reads views named reader_*, which show the rows of the tenants that
--     reader_tenants names for the login (session_user: SET ROLE does not change it, and only a superuser may change
--     the session's authorization). They are security barriers: a condition of the reader's sees no other row first.
--   * Whoever may read the table events itself sees all in these views, and so does a login with the tenant `*`.
--     What has no tenant (positions, dead letters, gaps, actions, sources) is for those only.
-- Row level security is not used: PostgreSQL refuses COPY FROM a client into a table that has it.
--
-- The role that migrates owns the schema: audit_migrate, if deploy/sql/roles.sql was run before. The roles of 001,
-- audit_events_write (writer and admin in one) and audit_events_read (every table), stay as they are.

CREATE TABLE IF NOT EXISTS audit_events.reader_tenants (
    role   name NOT NULL,
    tenant text NOT NULL,
    PRIMARY KEY (role, tenant)
);
COMMENT ON TABLE audit_events.reader_tenants IS
    'Whose events a login with the role audit_reader sees; tenant `*`: every tenant''s';

-- Views ------------------------------------------------------------------------------------------------------

CREATE OR REPLACE VIEW audit_events.reader_scope WITH (security_barrier = true, security_invoker = false) AS
SELECT ARRAY(SELECT t.tenant FROM audit_events.reader_tenants AS t WHERE t.role = session_user) AS tenants,
       has_table_privilege(session_user, 'audit_events.events'::regclass, 'SELECT')
       OR EXISTS (SELECT FROM audit_events.reader_tenants AS t WHERE t.role = session_user AND t.tenant = '*')
       AS is_all;
COMMENT ON VIEW audit_events.reader_scope IS 'What the login of this session may read; one row';

-- Each scalar subquery is asked once for a statement, not for each row.
CREATE OR REPLACE VIEW audit_events.reader_events WITH (security_barrier = true, security_invoker = false) AS
SELECT e.* FROM audit_events.events AS e
 WHERE (SELECT is_all FROM audit_events.reader_scope)
    OR e.tenant_id = ANY ((SELECT tenants FROM audit_events.reader_scope)::text[]);
COMMENT ON VIEW audit_events.reader_events IS 'events, of the tenants of this login';

CREATE OR REPLACE VIEW audit_events.reader_purview_export WITH (security_barrier = true, security_invoker = false) AS
SELECT p.* FROM audit_events.purview_export AS p
 WHERE (SELECT is_all FROM audit_events.reader_scope)
    OR p.tenant_id = ANY ((SELECT tenants FROM audit_events.reader_scope)::text[]);
COMMENT ON VIEW audit_events.reader_purview_export IS 'purview_export, of the tenants of this login';

CREATE OR REPLACE VIEW audit_events.reader_o365_export WITH (security_barrier = true, security_invoker = false) AS
SELECT o.* FROM audit_events.o365_export AS o
 WHERE (SELECT is_all FROM audit_events.reader_scope)
    OR o.tenant_id = ANY ((SELECT tenants FROM audit_events.reader_scope)::text[]);
COMMENT ON VIEW audit_events.reader_o365_export IS 'o365_export, of the tenants of this login';

CREATE OR REPLACE VIEW audit_events.reader_trust_summary WITH (security_barrier = true, security_invoker = false) AS
SELECT actor,
       count(*) AS total_operations,
       avg(trust_score) AS avg_trust_score,
       count(*) FILTER (WHERE status = 'Success') AS successful_ops,
       count(*) FILTER (WHERE status = 'Failure') AS failed_ops,
       count(*) FILTER (WHERE bypass_llm) AS llm_bypassed,
       max(timestamp) AS last_activity
  FROM audit_events.reader_events GROUP BY actor;
COMMENT ON VIEW audit_events.reader_trust_summary IS 'Trust by actor, from the events of the tenants of this login';

CREATE OR REPLACE VIEW audit_events.reader_positions WITH (security_barrier = true, security_invoker = false) AS
SELECT s.cluster_id, s.topic, s.topic_id, s.created_at, s.retired_at, o.*
  FROM audit_events.consumer_offsets AS o JOIN audit_events.streams AS s USING (stream_id)
 WHERE (SELECT is_all FROM audit_events.reader_scope);
COMMENT ON VIEW audit_events.reader_positions IS
    'Positions and their account with their topics; empty for a login that does not read every tenant';

CREATE OR REPLACE VIEW audit_events.reader_dead_letters WITH (security_barrier = true, security_invoker = false) AS
SELECT d.* FROM audit_events.dead_letter_states AS d WHERE (SELECT is_all FROM audit_events.reader_scope);
COMMENT ON VIEW audit_events.reader_dead_letters IS
    'Dead letters without what they hold; empty for a login that does not read every tenant';

CREATE OR REPLACE VIEW audit_events.reader_gaps WITH (security_barrier = true, security_invoker = false) AS
SELECT s.topic, g.* FROM audit_events.offset_gaps AS g JOIN audit_events.streams AS s USING (stream_id)
 WHERE (SELECT is_all FROM audit_events.reader_scope);
COMMENT ON VIEW audit_events.reader_gaps IS
    'Declared gaps with their topics; empty for a login that does not read every tenant';

CREATE OR REPLACE VIEW audit_events.reader_actions WITH (security_barrier = true, security_invoker = false) AS
SELECT a.at, a.kind, a.action, a.actor, a.reason
  FROM (SELECT at, 'position' AS kind, action, actor, reason FROM audit_events.offset_actions
        UNION ALL SELECT at, 'dead letter', action, actor, reason FROM audit_events.dead_letter_actions
        UNION ALL SELECT at, 'day file', action, actor, reason FROM audit_events.projection_actions) AS a
 WHERE (SELECT is_all FROM audit_events.reader_scope);
COMMENT ON VIEW audit_events.reader_actions IS
    'What was done by hand: who, when, why; empty for a login that does not read every tenant';

CREATE OR REPLACE VIEW audit_events.reader_sources WITH (security_barrier = true, security_invoker = false) AS
SELECT f.* FROM audit_events.federated_sources AS f WHERE (SELECT is_all FROM audit_events.reader_scope);
COMMENT ON VIEW audit_events.reader_sources IS
    'The registry of federated sources; empty for a login that does not read every tenant';

-- Roles ------------------------------------------------------------------------------------------------------

-- Makes the roles that are missing, where the caller may, and grants each of them what its work takes. Returns those
-- that are missing still; `audit-consumer migrate` calls it each time, so they may be made later.
CREATE OR REPLACE FUNCTION audit_events.grant_roles() RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name text;
    missing   text[] := '{}';
BEGIN
    FOREACH role_name IN ARRAY ARRAY['audit_writer', 'audit_admin', 'audit_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION
                WHEN insufficient_privilege THEN missing := missing || role_name;
                WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;

    IF NOT 'audit_writer' = ANY (missing) THEN
        GRANT USAGE ON SCHEMA audit_events TO audit_writer;
        GRANT SELECT ON ALL TABLES IN SCHEMA audit_events TO audit_writer;
        REVOKE ALL ON audit_events.reader_tenants FROM audit_writer;
        GRANT INSERT ON audit_events.events, audit_events.dead_letters, audit_events.duplicates,
            audit_events.offset_gaps, audit_events.offset_actions, audit_events.streams,
            audit_events.consumer_offsets, audit_events.spool_ranges, audit_events.projection_cursors,
            audit_events.projection_instances, audit_events.projection_segments, audit_events.projection_pending,
            audit_events.imports TO audit_writer;
        GRANT UPDATE ON audit_events.consumer_offsets, audit_events.projection_cursors,
            audit_events.projection_instances TO audit_writer;
        GRANT UPDATE (relayed_at, relay_partition, relay_offset) ON audit_events.dead_letters TO audit_writer;
        GRANT UPDATE (closed_at) ON audit_events.offset_gaps TO audit_writer;
        GRANT UPDATE, DELETE ON audit_events.spool_ranges TO audit_writer;
        GRANT DELETE ON audit_events.projection_segments, audit_events.projection_pending TO audit_writer;
        GRANT EXECUTE ON FUNCTION audit_events.ensure_partition, audit_events.ensure_partitions_ahead
            TO audit_writer;
    END IF;

    IF NOT 'audit_admin' = ANY (missing) THEN
        GRANT USAGE ON SCHEMA audit_events TO audit_admin;
        GRANT SELECT ON ALL TABLES IN SCHEMA audit_events TO audit_admin;
        -- offsets adopt, offsets declare-gap. DELETE on spool_ranges: for the lock that keeps spools from changing
        -- while a gap is declared, and to forget a spool that is gone for good.
        GRANT INSERT ON audit_events.streams, audit_events.offset_gaps, audit_events.offset_actions TO audit_admin;
        GRANT UPDATE (retired_at, group_id) ON audit_events.streams TO audit_admin;
        GRANT UPDATE (group_id, epoch, next_offset, absent, committed_at) ON audit_events.consumer_offsets
            TO audit_admin;
        GRANT DELETE ON audit_events.spool_ranges TO audit_admin;
        -- dlq redrive, dlq discard; dlq resume is an offset action.
        GRANT INSERT ON audit_events.dead_letter_actions TO audit_admin;
        -- projections adopt.
        GRANT INSERT ON audit_events.projection_pending, audit_events.projection_actions TO audit_admin;
        GRANT UPDATE (confirmed, run_id) ON audit_events.projection_instances TO audit_admin;
        GRANT DELETE ON audit_events.projection_segments TO audit_admin;
        -- sources add, enable, disable; who reads what.
        GRANT INSERT, UPDATE ON audit_events.federated_sources TO audit_admin;
        GRANT INSERT, DELETE ON audit_events.reader_tenants TO audit_admin;
    END IF;

    IF NOT 'audit_reader' = ANY (missing) THEN
        GRANT USAGE ON SCHEMA audit_events TO audit_reader;
        GRANT SELECT ON audit_events.reader_scope, audit_events.reader_events, audit_events.reader_purview_export,
            audit_events.reader_o365_export, audit_events.reader_trust_summary, audit_events.reader_positions,
            audit_events.reader_dead_letters, audit_events.reader_gaps, audit_events.reader_actions,
            audit_events.reader_sources, audit_events.partition_ranges TO audit_reader;
    END IF;

    -- The roles of 001 see the new views. All that there are, so that a role is named only where it is.
    FOR role_name IN SELECT rolname FROM pg_roles WHERE rolname IN ('audit_events_write', 'audit_events_read') LOOP
        EXECUTE format('GRANT SELECT ON audit_events.reader_scope, audit_events.reader_events,
            audit_events.reader_purview_export, audit_events.reader_o365_export, audit_events.reader_trust_summary,
            audit_events.reader_positions, audit_events.reader_dead_letters, audit_events.reader_gaps,
            audit_events.reader_actions, audit_events.reader_sources TO %I', role_name);
    END LOOP;
    PERFORM audit_events.grant_as_parent(inhrelid) FROM pg_inherits WHERE inhparent = 'audit_events.events'::regclass;
    RETURN missing;
END $$;
COMMENT ON FUNCTION audit_events.grant_roles IS
    'Makes the roles that are missing and grants what they need; returns those that could not be made';
REVOKE EXECUTE ON FUNCTION audit_events.grant_roles FROM PUBLIC;

DO $$
DECLARE
    missing text[] := audit_events.grant_roles();
BEGIN
    IF cardinality(missing) > 0 THEN
        RAISE NOTICE 'roles were not made: %', array_to_string(missing, ', ')
            USING HINT = 'As a role with CREATEROLE: CREATE ROLE .. NOLOGIN for each; then as this role: '
                         'SELECT audit_events.grant_roles()';
    END IF;
END $$;
