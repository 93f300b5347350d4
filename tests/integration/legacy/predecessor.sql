-- The predecessor's schema (toilville/audit-event-system, migrations/001_initial_schema.sql), written anew: columns, types,
-- defaults, constraints and the names of indexes as there. @schema@ is core and @events@ audit_events there; its README
-- names the same table audit_events.events.
CREATE SCHEMA IF NOT EXISTS @schema@;

CREATE TABLE @schema@.@events@ (
    audit_id uuid PRIMARY KEY,
    correlation_id uuid NOT NULL,
    timestamp timestamptz NOT NULL DEFAULT now(),
    duration_ms integer,
    operation text NOT NULL,
    status text NOT NULL CHECK (status IN ('Success', 'Failure', 'Pending')),
    result_signature text DEFAULT '200',
    actor text NOT NULL,
    client_app text DEFAULT 'ritual-cli',
    caller_ip_address inet DEFAULT '127.0.0.1',
    command text NOT NULL,
    args text,
    federated_source text DEFAULT 'local',
    query_intent text,
    bypass_llm boolean DEFAULT false,
    trust_score numeric(3, 2) DEFAULT 0.80,
    purview_compatible boolean DEFAULT true,
    metadata jsonb DEFAULT '{}',
    schema_version text DEFAULT '2.0',
    tenant_id text DEFAULT 'spel-local-forge',
    CONSTRAINT audit_id_unique UNIQUE (audit_id)
);
CREATE INDEX idx_audit_timestamp ON @schema@.@events@ (timestamp DESC);
CREATE INDEX idx_audit_correlation ON @schema@.@events@ (correlation_id);
CREATE INDEX idx_audit_actor ON @schema@.@events@ (actor);
CREATE INDEX idx_audit_metadata_gin ON @schema@.@events@ USING gin (metadata);

CREATE TABLE @schema@.federated_sources (
    source_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    source_name text UNIQUE NOT NULL,
    source_type text NOT NULL,
    auth_type text NOT NULL,
    handler_path text NOT NULL,
    audit_enabled boolean DEFAULT true,
    purview_compatible boolean DEFAULT true,
    created_at timestamptz DEFAULT now(),
    metadata jsonb DEFAULT '{}'
);
INSERT INTO @schema@.federated_sources (source_name, source_type, auth_type, handler_path, metadata) VALUES
    ('notion', 'rest', 'oauth2', 'handlers/notion.sh', '{"mcp_compatible": true}'),
    ('local', 'native', 'none', 'bin/ritual', '{"primary": true}');

CREATE TABLE @schema@.oauth_tokens (
    token_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    actor text NOT NULL,
    source_name text NOT NULL REFERENCES @schema@.federated_sources (source_name),
    access_token text NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT oauth_actor_source_unique UNIQUE (actor, source_name)
);

CREATE VIEW @schema@.purview_audit_log AS
SELECT jsonb_build_object('time', timestamp, 'operationName', operation, 'correlationId', correlation_id) AS purview_log
  FROM @schema@.@events@ ORDER BY timestamp DESC;

CREATE VIEW @schema@.trust_summary AS
SELECT actor, count(*) AS total_operations, avg(trust_score) AS avg_trust_score, max(timestamp) AS last_activity
  FROM @schema@.@events@ GROUP BY actor;

CREATE FUNCTION @schema@.export_purview_logs(limit_count integer DEFAULT 100) RETURNS TABLE (purview_json jsonb)
LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY SELECT purview_log FROM @schema@.purview_audit_log LIMIT limit_count; END $$;
