-- The schema of audit-consumer. Works by `psql -f` and by `audit-consumer migrate`, in any order and again:
-- every statement makes what is missing and leaves what is there.
--
-- What is where: events, dead_letters and duplicates hold every record read, each in one of the three;
-- consumer_offsets holds the positions and their account, streams whose they are; offset_gaps and offset_actions
-- what was declared or done by hand; spool_ranges and projection_cursors how far each instance is;
-- federated_sources the source registry; partitioning one setting. The protocol: ARCHITECTURE.md.
--
-- What holds, by the database itself:
--   * events: an event is (audit_id, timestamp); a record's coordinates (stream, partition, offset) stand once.
--   * consumer_offsets: first_offset + events + duplicates + dead_letters + absent = next_offset. Every record
--     below a position is an event, a counted duplicate or a dead letter; `absent` counts offsets that hold no
--     record a reader may see, and those of declared gaps.
--   * events (by whatever partition's name), duplicates and offset_actions are append only; of dead_letters only
--     the relay's columns change and no row goes. For the owner too, by statement triggers, which INSERT and COPY
--     pay nothing for; they guard against mistakes, not against an owner who disables them. Retention is
--     DETACH or DROP of a time partition.
-- By grants only, so not for the owner: of offset_gaps only closed_at changes.
--
-- Advisory lock taken here: hashtextextended('audit_events.ensure_partition', 0), by the maker of a partition.

CREATE SCHEMA IF NOT EXISTS audit_events;

-- Events -----------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS audit_events.events (
    audit_id           uuid        NOT NULL,
    correlation_id     uuid        NOT NULL,
    timestamp          timestamptz NOT NULL,
    stream_id          uuid        NOT NULL,
    source_offset      bigint      NOT NULL,
    ingested_at        timestamptz NOT NULL DEFAULT now(),
    source_partition   integer     NOT NULL,
    duration_ms        integer     CHECK (duration_ms >= 0),
    bypass_llm         boolean     NOT NULL DEFAULT false,
    purview_compatible boolean     NOT NULL DEFAULT true,
    operation          text        NOT NULL,
    command            text        NOT NULL,
    args               text,
    actor              text        NOT NULL,
    status             text        NOT NULL CHECK (status IN ('Success', 'Failure', 'Pending')),
    result_signature   text        NOT NULL DEFAULT '200',
    client_app         text        NOT NULL DEFAULT 'ritual-cli',
    caller_ip_address  inet        NOT NULL DEFAULT '127.0.0.1',
    federated_source   text        NOT NULL DEFAULT 'local',
    query_intent       text,
    trust_score        numeric     NOT NULL DEFAULT 0.80 CHECK (trust_score BETWEEN 0 AND 1),
    metadata           jsonb       NOT NULL DEFAULT '{}',
    schema_version     text        NOT NULL DEFAULT '2.0',
    tenant_id          text        NOT NULL DEFAULT 'spel-local-forge',
    extra              jsonb,
    PRIMARY KEY (audit_id, timestamp),
    UNIQUE (stream_id, source_partition, source_offset, timestamp)
) PARTITION BY RANGE (timestamp);
COMMENT ON TABLE audit_events.events IS
    'Audit events, each once. Append only. Partitioned by time; events_default takes what has no partition.';
COMMENT ON COLUMN audit_events.events.extra IS
    'Top-level fields that the schema does not know, and the full text of a time finer than a microsecond';

CREATE INDEX IF NOT EXISTS events_correlation_id ON audit_events.events (correlation_id);
CREATE INDEX IF NOT EXISTS events_actor_timestamp ON audit_events.events (actor, timestamp);
CREATE INDEX IF NOT EXISTS events_timestamp_brin ON audit_events.events USING brin (timestamp);
-- For searches inside metadata. It costs more than all other indexes together (throughput falls to a third):
--   CREATE INDEX events_metadata ON audit_events.events USING gin (metadata jsonb_path_ops);

CREATE TABLE IF NOT EXISTS audit_events.events_default PARTITION OF audit_events.events DEFAULT;
COMMENT ON TABLE audit_events.events_default IS
    'Events whose time has no partition: older than 10 years or more than 2 months ahead';

-- Time partitions --------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS audit_events.partitioning (
    is_only            boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    partition_interval text    NOT NULL CHECK (partition_interval IN ('day', 'week', 'month'))
);
COMMENT ON TABLE audit_events.partitioning IS 'How long a time partition of events is; one row';
INSERT INTO audit_events.partitioning (partition_interval) VALUES ('month') ON CONFLICT DO NOTHING;

-- A bound is printed by the session's DateStyle and TimeZone, and some prints are read back as another time
-- (`IST`): so they are fixed here. Printing and reading takes most of the time: `names` (or NULL: all) saves it.
CREATE OR REPLACE FUNCTION audit_events.partition_bounds(names text[])
RETURNS TABLE (partition_name text, lower timestamptz, upper timestamptz, is_default boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
SELECT c.relname::text,
       CASE WHEN b.bound LIKE '%FROM (MINVALUE)%' THEN '-infinity'
            ELSE (regexp_match(b.bound, 'FROM \(''([^'']+)''\)'))[1] END::timestamptz,
       CASE WHEN b.bound LIKE '%TO (MAXVALUE)%' THEN 'infinity'
            ELSE (regexp_match(b.bound, 'TO \(''([^'']+)''\)'))[1] END::timestamptz,
       b.bound = 'DEFAULT'
  FROM pg_inherits AS i
  JOIN pg_class AS c ON c.oid = i.inhrelid
 CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) AS b
 WHERE i.inhparent = 'audit_events.events'::regclass AND (names IS NULL OR c.relname = ANY (names))
$$;
CREATE OR REPLACE VIEW audit_events.partition_ranges AS
SELECT partition_name, lower, upper, is_default FROM audit_events.partition_bounds(NULL);
COMMENT ON VIEW audit_events.partition_ranges IS 'The time partitions of events and what they hold';

-- Refuses what the statement trigger on it would change. INSERT and COPY pay nothing for it.
CREATE OR REPLACE FUNCTION audit_events.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: it is append only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege',
              DETAIL = CASE TG_TABLE_NAME WHEN 'dead_letters' THEN 'Only the relay''s columns change.' ELSE '' END;
END $$;

CREATE OR REPLACE FUNCTION audit_events.protect(target regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target AND tgname = 'append_only') THEN
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                        FOR EACH STATEMENT EXECUTE FUNCTION audit_events.refuse_change()', target);
    END IF;
END $$;

-- Who may do something to events by the parent's name may do it by the partition's.
CREATE OR REPLACE FUNCTION audit_events.grant_as_parent(target regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT a.privilege_type,
               CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role_name
          FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
         WHERE c.oid = 'audit_events.events'::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %s TO %s', granted.privilege_type, target, granted.role_name);
    END LOOP;
END $$;

-- Returns the range of the partition that holds `at`, and makes that partition first where there is none: for
-- times from 10 years back to 2 months ahead. NULL: the default partition takes the row. Runs as its owner, so
-- that a role which may only insert can have partitions made.
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
    -- By the names it would have for each interval; else it is clipped, made by hand or not there.
    SELECT tstzrange(r.lower, r.upper) INTO found
      FROM audit_events.partition_bounds(ARRAY(SELECT 'events_p' || to_char(date_trunc(s, at), 'YYYYMMDD')
                                                 FROM unnest(ARRAY['day', 'week', 'month']) AS s)) AS r
     WHERE r.lower <= at AND at < r.upper;
    IF found IS NOT NULL THEN RETURN found; END IF;
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
    -- The interval may have been another one before: keep clear of the neighbours.
    SELECT greatest(low, max(r.upper)) INTO low FROM audit_events.partition_ranges AS r WHERE r.upper <= at;
    SELECT least(high, min(r.lower)) INTO high FROM audit_events.partition_ranges AS r WHERE r.lower > at;
    -- A detached partition may have kept its name.
    base := 'events_p' || to_char(low, 'YYYYMMDD');
    name := base;
    WHILE to_regclass(format('audit_events.%I', name)) IS NOT NULL LOOP
        copies := copies + 1;
        name := base || '_' || copies;
    END LOOP;

    -- The parent before the default partition, as everyone locks them. Locked by ATTACH only, a deadlock:
    -- 1. ANALYZE locks events; 2. we lock events_default; 3. it waits for events_default; 4. ATTACH for events.
    -- COPY and INSERT are not kept out by this lock.
    LOCK TABLE ONLY audit_events.events IN SHARE UPDATE EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE audit_events.%I (LIKE audit_events.events INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE audit_events.%I ADD CONSTRAINT in_range CHECK (timestamp >= %L AND timestamp < %L)',
                   name, low, high);
    -- Nobody may add rows to the default partition between the move and the attachment. A session that holds it
    -- makes us wait for lock_timeout at most, and the caller tries again.
    LOCK TABLE ONLY audit_events.events_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE 'SELECT NOT EXISTS (SELECT FROM audit_events.events_default WHERE timestamp >= $1 AND timestamp < $2)'
       INTO is_empty USING low, high;
    IF NOT is_empty THEN
        EXECUTE format('INSERT INTO audit_events.%I SELECT * FROM audit_events.events_default
                         WHERE timestamp >= $1 AND timestamp < $2', name) USING low, high;
        ALTER TABLE audit_events.events_default DISABLE TRIGGER append_only;
        EXECUTE 'DELETE FROM audit_events.events_default WHERE timestamp >= $1 AND timestamp < $2' USING low, high;
        ALTER TABLE audit_events.events_default ENABLE TRIGGER append_only;
    END IF;
    EXECUTE format('ALTER TABLE audit_events.events ATTACH PARTITION audit_events.%I FOR VALUES FROM (%L) TO (%L)',
                   name, low, high);
    EXECUTE format('ALTER TABLE audit_events.%I DROP CONSTRAINT in_range', name);
    PERFORM audit_events.protect(format('audit_events.%I', name)::regclass);
    PERFORM audit_events.grant_as_parent(format('audit_events.%I', name)::regclass);
    RETURN tstzrange(low, high);
END $$;
COMMENT ON FUNCTION audit_events.ensure_partition IS
    'The range of the partition for a time, made if missing; NULL: the default partition';

CREATE OR REPLACE FUNCTION audit_events.ensure_partitions_ahead() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    step            text;
    at              timestamptz;
    found           tstzrange;
    partition_count integer := 0;
BEGIN
    SELECT partition_interval INTO STRICT step FROM audit_events.partitioning;
    at := date_trunc(step, now()) - ('1 ' || step)::interval;
    -- From end to end, and not by steps of the interval: a clipped partition is shorter.
    WHILE at <= now() + interval '2 months' LOOP
        found := audit_events.ensure_partition(at);
        EXIT WHEN found IS NULL;
        partition_count := partition_count + 1;
        at := upper(found);
    END LOOP;
    RETURN partition_count;
END $$;
COMMENT ON FUNCTION audit_events.ensure_partitions_ahead IS
    'Makes the partitions from one interval ago to 2 months ahead; returns how many are there';

-- Positions --------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS audit_events.streams (
    stream_id  uuid        PRIMARY KEY,
    cluster_id text        NOT NULL,
    topic      text        NOT NULL,
    topic_id   uuid        NOT NULL,
    group_id   text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);
COMMENT ON TABLE audit_events.streams IS
    'Incarnations of topics; stream_id is the UUIDv5 of the other three. Retired: an operator adopted a newer one';

CREATE TABLE IF NOT EXISTS audit_events.consumer_offsets (
    group_id            text    NOT NULL,
    stream_id           uuid    NOT NULL REFERENCES audit_events.streams,
    partition           integer NOT NULL CHECK (partition >= 0),
    epoch               bigint  NOT NULL DEFAULT 0,
    first_offset        bigint  NOT NULL CHECK (first_offset >= 0),
    next_offset         bigint  NOT NULL,
    events              bigint  NOT NULL DEFAULT 0 CHECK (events >= 0),
    duplicates          bigint  NOT NULL DEFAULT 0 CHECK (duplicates >= 0),
    dead_letters        bigint  NOT NULL DEFAULT 0 CHECK (dead_letters >= 0),
    absent              bigint  NOT NULL DEFAULT 0 CHECK (absent >= 0),
    owner_instance      uuid,
    owner_pid           integer,
    owner_backend_start timestamptz,
    claimed_at          timestamptz,
    released_at         timestamptz,
    committed_at        timestamptz,
    PRIMARY KEY (group_id, stream_id, partition),
    CONSTRAINT consumer_offsets_account
        CHECK (first_offset + events + duplicates + dead_letters + absent = next_offset)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE audit_events.consumer_offsets IS
    'The only authority on what was stored: next_offset is the next offset to read. Owners claim with an epoch';

CREATE TABLE IF NOT EXISTS audit_events.dead_letters (
    dead_letter_id    bigint      GENERATED ALWAYS AS IDENTITY,
    stream_id         uuid        NOT NULL REFERENCES audit_events.streams,
    source_partition  integer     NOT NULL,
    source_offset     bigint      NOT NULL,
    group_id          text        NOT NULL,
    topic             text        NOT NULL,
    reason            text        NOT NULL,
    detail            text        NOT NULL,
    sqlstate          text,
    record_timestamp  timestamptz,
    record_key        bytea,
    payload           bytea,
    headers           jsonb       NOT NULL DEFAULT '[]',
    payload_len_bytes bigint,
    correlation_id    uuid,
    audit_id          uuid,
    created_at        timestamptz NOT NULL DEFAULT now(),
    relayed_at        timestamptz,
    relay_partition   integer,
    relay_offset      bigint,
    PRIMARY KEY (stream_id, source_partition, source_offset)
);
COMMENT ON TABLE audit_events.dead_letters IS
    'Records that are no events, as they came, with a stable reason code';
COMMENT ON COLUMN audit_events.dead_letters.headers IS
    'In order: {"key": text (or "key_base64"), "value": base64 or null}';
CREATE INDEX IF NOT EXISTS dead_letters_unrelayed
    ON audit_events.dead_letters (stream_id, source_partition, source_offset) WHERE relayed_at IS NULL;

CREATE TABLE IF NOT EXISTS audit_events.duplicates (
    stream_id        uuid        NOT NULL REFERENCES audit_events.streams,
    source_partition integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    audit_id         uuid        NOT NULL,
    timestamp        timestamptz NOT NULL,
    kept_stream_id   uuid        NOT NULL,
    kept_partition   integer     NOT NULL,
    kept_offset      bigint      NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream_id, source_partition, source_offset)
);
COMMENT ON TABLE audit_events.duplicates IS
    'Records whose event was stored before with the same content, and where that one stands';

CREATE TABLE IF NOT EXISTS audit_events.offset_gaps (
    gap_id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id     text        NOT NULL,
    stream_id    uuid        NOT NULL REFERENCES audit_events.streams,
    partition    integer     NOT NULL,
    start_offset bigint      NOT NULL,
    end_offset   bigint      NOT NULL,
    reason       text        NOT NULL,
    declared_by  text        NOT NULL,
    declared_at  timestamptz NOT NULL DEFAULT now(),
    closed_at    timestamptz,
    CHECK (start_offset < end_offset),
    UNIQUE (stream_id, partition, start_offset)
);
COMMENT ON TABLE audit_events.offset_gaps IS
    'Ranges [start, end) whose records Kafka had deleted before we read them; counted in absent, shown apart';

CREATE TABLE IF NOT EXISTS audit_events.offset_actions (
    action_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id  text        NOT NULL,
    stream_id uuid        NOT NULL,
    partition integer,
    action    text        NOT NULL CHECK (action IN ('adopt', 'adopt_from_group', 'declare_gap', 'fill_gap')),
    actor     text        NOT NULL,
    reason    text        NOT NULL,
    details   jsonb       NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_events.offset_actions IS 'What was done to positions by hand: who, when, why';

CREATE TABLE IF NOT EXISTS audit_events.spool_ranges (
    instance_id  uuid        NOT NULL,
    stream_id    uuid        NOT NULL,
    partition    integer     NOT NULL,
    start_offset bigint      NOT NULL,
    end_offset   bigint      NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance_id, stream_id, partition, start_offset)
);
COMMENT ON TABLE audit_events.spool_ranges IS 'Ranges that an instance holds in its spool: never declared as gaps';

CREATE TABLE IF NOT EXISTS audit_events.projection_cursors (
    sink         text   NOT NULL CHECK (sink IN ('purview', 'trust')),
    instance_id  uuid   NOT NULL,
    stream_id    uuid   NOT NULL,
    partition    integer NOT NULL,
    next_offset  bigint NOT NULL,
    intent       jsonb,
    confirmed_at timestamptz,
    PRIMARY KEY (sink, instance_id, stream_id, partition)
);
COMMENT ON TABLE audit_events.projection_cursors IS 'How far an instance has written its day files';

-- Federated sources ------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS audit_events.federated_sources (
    source_id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    source_name        text        NOT NULL UNIQUE,
    source_type        text        NOT NULL,
    auth_type          text        NOT NULL,
    handler_path       text        NOT NULL,
    audit_enabled      boolean     NOT NULL DEFAULT true,
    purview_compatible boolean     NOT NULL DEFAULT true,
    metadata           jsonb       NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_events.federated_sources IS
    'The OAuth source registry: names where credentials live, holds none';
INSERT INTO audit_events.federated_sources (source_name, source_type, auth_type, handler_path) VALUES
    ('local', 'native', 'none', 'local'),
    ('kafka', 'stream', 'none', 'kafka')
ON CONFLICT (source_name) DO NOTHING;

-- Views ------------------------------------------------------------------------------------------------------

-- The Azure Monitor resource-log common schema. A metadata key that would shadow a property is prefixed; metadata
-- that is no object (a row inserted by hand) stands whole under `metadata`; an unknown duration is left out.
CREATE OR REPLACE VIEW audit_events.purview_export AS
SELECT e.audit_id, e.timestamp, e.correlation_id, e.tenant_id, e.actor, e.operation,
       jsonb_build_object(
           'time', to_char(e.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           'resourceId', '/tenants/' || e.tenant_id || '/providers/audit-consumer',
           'tenantId', e.tenant_id,
           'operationName', e.operation,
           'operationVersion', e.schema_version,
           'category', 'FederatedQuery',
           'resultType', e.status,
           'resultSignature', e.result_signature,
           'callerIpAddress', host(e.caller_ip_address),
           'correlationId', e.correlation_id::text,
           'level', CASE e.status WHEN 'Failure' THEN 'Error' ELSE 'Informational' END,
           'identity', jsonb_build_object('claim', jsonb_build_array(jsonb_build_object(
               'typ', 'http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn',
               'val', e.actor || '@local'))),
           'properties', p.properties || (
               SELECT coalesce(jsonb_object_agg(
                          CASE WHEN p.properties ? m.key THEN 'metadata.' || m.key ELSE m.key END, m.value), '{}')
                 FROM jsonb_each(CASE jsonb_typeof(e.metadata) WHEN 'object' THEN e.metadata
                                 ELSE jsonb_build_object('metadata', e.metadata) END) AS m))
       || CASE WHEN e.duration_ms IS NULL THEN '{}' ELSE jsonb_build_object('durationMs', e.duration_ms) END
       AS purview_log
  FROM audit_events.events AS e
 CROSS JOIN LATERAL (SELECT jsonb_build_object(
           'resource', e.command, 'command', e.command, 'args', e.args, 'clientApp', e.client_app,
           'schemaVersion', e.schema_version, 'auditId', e.audit_id, 'tenantId', e.tenant_id,
           'federatedSource', e.federated_source, 'bypassLLM', e.bypass_llm, 'queryIntent', e.query_intent,
           'trustScore', e.trust_score) AS properties) AS p
 WHERE e.purview_compatible;
COMMENT ON VIEW audit_events.purview_export IS
    'Events as Azure resource logs (common schema); purview_compatible ones only';

CREATE OR REPLACE VIEW audit_events.trust_summary AS
SELECT actor,
       count(*) AS total_operations,
       avg(trust_score) AS avg_trust_score,
       count(*) FILTER (WHERE status = 'Success') AS successful_ops,
       count(*) FILTER (WHERE status = 'Failure') AS failed_ops,
       count(*) FILTER (WHERE bypass_llm) AS llm_bypassed,
       max(timestamp) AS last_activity
  FROM audit_events.events GROUP BY actor;
COMMENT ON VIEW audit_events.trust_summary IS 'Trust by actor';

-- Protection and roles ---------------------------------------------------------------------------------------

DO $$
BEGIN
    PERFORM audit_events.protect(t) FROM unnest(ARRAY['audit_events.events', 'audit_events.duplicates',
        'audit_events.offset_actions']::regclass[]) AS t;
    -- Partitions attached by hand are covered by the next run.
    PERFORM audit_events.protect(inhrelid) FROM pg_inherits WHERE inhparent = 'audit_events.events'::regclass;

    -- Dead letters: only the relay's columns change, no row goes. By the statement's columns, as comparing rows
    -- would read every payload again when it is marked.
    IF NOT EXISTS (SELECT FROM pg_trigger
                    WHERE tgrelid = 'audit_events.dead_letters'::regclass AND tgname = 'append_only') THEN
        CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE OR UPDATE OF
                dead_letter_id, stream_id, source_partition, source_offset, group_id, topic, reason, detail, sqlstate,
                record_timestamp, record_key, payload, headers, payload_len_bytes, correlation_id, audit_id, created_at
            ON audit_events.dead_letters FOR EACH STATEMENT EXECUTE FUNCTION audit_events.refuse_change();
    END IF;
END $$;

-- They run as their owner: for those who are named only.
REVOKE EXECUTE ON FUNCTION audit_events.ensure_partition, audit_events.ensure_partitions_ahead FROM PUBLIC;

-- The application's roles, where we may make them. A managed database may refuse: then grant by hand as below.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['audit_events_write', 'audit_events_read'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'role % was not made: %', role_name, SQLERRM;
                WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_write') THEN
        GRANT USAGE ON SCHEMA audit_events TO audit_events_write;
        GRANT SELECT ON ALL TABLES IN SCHEMA audit_events TO audit_events_write;
        GRANT INSERT ON audit_events.events, audit_events.dead_letters, audit_events.duplicates,
            audit_events.offset_gaps, audit_events.offset_actions, audit_events.streams,
            audit_events.consumer_offsets, audit_events.spool_ranges, audit_events.projection_cursors,
            audit_events.federated_sources TO audit_events_write;
        GRANT UPDATE ON audit_events.consumer_offsets, audit_events.projection_cursors,
            audit_events.federated_sources TO audit_events_write;
        GRANT UPDATE (retired_at, group_id) ON audit_events.streams TO audit_events_write;
        GRANT UPDATE (relayed_at, relay_partition, relay_offset) ON audit_events.dead_letters TO audit_events_write;
        GRANT UPDATE (closed_at) ON audit_events.offset_gaps TO audit_events_write;
        GRANT UPDATE, DELETE ON audit_events.spool_ranges TO audit_events_write;
        GRANT EXECUTE ON FUNCTION audit_events.ensure_partition, audit_events.ensure_partitions_ahead
            TO audit_events_write;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_read') THEN
        GRANT USAGE ON SCHEMA audit_events TO audit_events_read;
        GRANT SELECT ON ALL TABLES IN SCHEMA audit_events TO audit_events_read;
    END IF;
    PERFORM audit_events.grant_as_parent(inhrelid) FROM pg_inherits WHERE inhparent = 'audit_events.events'::regclass;
END $$;
