-- Spreads audit_events.events over the workers of a Citus cluster, by audit_id. All else stays on the coordinator:
-- positions, dead letters, duplicates, gaps, day files' cursors. A batch is one transaction as before, which Citus then
-- commits on all nodes that it touched by two-phase commit.
-- docs/OPERATIONS.md, "Where one PostgreSQL ends", says when.
--
--   psql "$DATABASE_URL" -f deploy/sql/citus.sql        # as the owner of the schema, after `audit-consumer migrate`
--
-- Do it before the first event: distributing copies every row and keeps writers out meanwhile. It is one transaction: it
-- happens or it doesn't. There is no way back but a dump and a restore.
--
-- WHAT WAS TRIED AND WHAT WAS NOT. No package of Citus was at hand. On a plain PostgreSQL 15, with a function in place of
-- Citus's create_distributed_table that does nothing: this file, and then a daemon with events, upstream duplicates, dead
-- letters and a new time partition; `audit-consumer verify` found nothing. NOT TRIED: anything on Citus itself. What is
-- said of it here is from the source of its version 13.2.2. Try it on a copy, with `make bench` and `verify`, before you trust it.
--
-- WHAT IT COSTS
--   * Citus wants the distribution column in every unique key, so the key of the source's coordinates gets audit_id: a
--     record at an offset has one audit_id, and positions keep a record from being stored twice as before, but the
--     database alone would no longer refuse a second row of the same coordinates with another audit_id. `verify` finds it.
--   * Citus takes no statement triggers on a distributed table: events are append only by grants alone, so not for the
--     owner. duplicates, offset_actions and dead_letters, which are local, keep their triggers.
--   * A time partition that is made later no longer takes rows out of events_default: it is not made while such rows are
--     there, and they stay where they are.
--   * What asks for offsets and not for an audit_id asks all workers: `verify`, and the day files, each second. Without
--     need of these set PURVIEW_LOG=off and TRUST_LOG=off.
--   * `psql -f` of migration 001, or a later migration that speaks of these functions, would undo parts 2 and 3.

\set ON_ERROR_STOP on
BEGIN;

-- 1. The key of the source's coordinates. Its first three columns stay first, for those who look for offsets.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint
                 WHERE conrelid = 'audit_events.events'::regclass AND contype = 'u' LOOP
        EXECUTE format('ALTER TABLE audit_events.events DROP CONSTRAINT %I', name);
    END LOOP;
END $$;
ALTER TABLE audit_events.events ADD CONSTRAINT events_source_audit_id_key
    UNIQUE (stream_id, source_partition, source_offset, timestamp, audit_id);

-- 2. Append only by grants.
CREATE OR REPLACE FUNCTION audit_events.protect(target regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF target = 'audit_events.events'::regclass
       OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = target AND inhparent = 'audit_events.events'::regclass) THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target AND tgname = 'append_only') THEN
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                        FOR EACH STATEMENT EXECUTE FUNCTION audit_events.refuse_change()', target);
    END IF;
END $$;
DO $$
DECLARE
    target regclass;
BEGIN
    FOR target IN SELECT relid FROM pg_partition_tree('audit_events.events') LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS append_only ON %s', target);
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON %s FROM PUBLIC', target);
    END LOOP;
END $$;

-- 3. Time partitions, as in migration 001, but made as partitions from the start and only where no row must move.
CREATE OR REPLACE FUNCTION audit_events.ensure_partition(at timestamptz) RETURNS tstzrange
LANGUAGE plpgsql STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    found    tstzrange;
    step     text;
    low      timestamptz;
    high     timestamptz;
    base     text;
    name     text;
    copies   integer := 1;
    is_empty boolean;
BEGIN
    SELECT tstzrange(r.lower, r.upper) INTO found FROM audit_events.partition_ranges AS r
     WHERE r.lower <= at AND at < r.upper;
    IF found IS NOT NULL THEN RETURN found; END IF;
    IF at < now() - interval '10 years' OR at > now() + interval '2 months' THEN RETURN NULL; END IF;

    -- One maker at a time; whoever waited finds the partition made.
    PERFORM pg_advisory_xact_lock(hashtextextended('audit_events.ensure_partition', 0));
    SELECT tstzrange(r.lower, r.upper) INTO found FROM audit_events.partition_ranges AS r
     WHERE r.lower <= at AND at < r.upper;
    IF found IS NOT NULL THEN RETURN found; END IF;

    SELECT partition_interval INTO STRICT step FROM audit_events.partitioning;
    low := date_trunc(step, at);
    high := low + ('1 ' || step)::interval;
    SELECT greatest(low, max(r.upper)) INTO low FROM audit_events.partition_ranges AS r WHERE r.upper <= at;
    SELECT least(high, min(r.lower)) INTO high FROM audit_events.partition_ranges AS r WHERE r.lower > at;
    EXECUTE 'SELECT NOT EXISTS (SELECT FROM audit_events.events_default WHERE timestamp >= $1 AND timestamp < $2)'
       INTO is_empty USING low, high;
    IF NOT is_empty THEN RETURN NULL; END IF;

    base := 'events_p' || to_char(low, 'YYYYMMDD');
    name := base;
    WHILE to_regclass(format('audit_events.%I', name)) IS NOT NULL LOOP
        copies := copies + 1;
        name := base || '_' || copies;
    END LOOP;
    EXECUTE format('CREATE TABLE audit_events.%I PARTITION OF audit_events.events FOR VALUES FROM (%L) TO (%L)',
                   name, low, high);
    PERFORM audit_events.grant_as_parent(format('audit_events.%I', name)::regclass);
    RETURN tstzrange(low, high);
END $$;

-- 4. Citus. Shards of one audit_id's hash hold all of its time partitions.
SELECT create_distributed_table('audit_events.events', 'audit_id');

COMMIT;
