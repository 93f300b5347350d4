-- Exports: events as Purview logs and as Office 365 records, and the registry of federated sources. Works by
-- `psql -f` and by `audit-consumer migrate`, again too.
--
-- The views give what `audit-consumer export purview` and `export o365` give for the default settings, row by row
-- the same JSON; src/model/projection tells the rules. Neither shows events that are not purview_compatible.

-- A key of metadata beside the properties of a Purview log: one of ours, or one of ours behind any number of
-- `metadata.`, gets one more `metadata.`; every other stays as it is. So no two meet and none shadows ours.
CREATE OR REPLACE FUNCTION audit_events.metadata_property(key text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN key ~ ('^(metadata\.)*(resource|command|args|clientApp|schemaVersion|auditId|tenantId'
                        || '|federatedSource|bypassLLM|queryIntent|trustScore)$')
            THEN 'metadata.' || key ELSE key END;
COMMENT ON FUNCTION audit_events.metadata_property IS 'The name of a key of metadata in the properties of a Purview log';

-- The Azure Monitor resource-log common schema. Metadata that is no object (a row inserted by hand) stands whole
-- under `metadata`; an unknown duration is left out.
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
           'properties', jsonb_build_object(
               'resource', e.command, 'command', e.command, 'args', e.args, 'clientApp', e.client_app,
               'schemaVersion', e.schema_version, 'auditId', e.audit_id, 'tenantId', e.tenant_id,
               'federatedSource', e.federated_source, 'bypassLLM', e.bypass_llm, 'queryIntent', e.query_intent,
               'trustScore', e.trust_score)
               || (SELECT coalesce(jsonb_object_agg(audit_events.metadata_property(m.key), m.value), '{}')
                     FROM jsonb_each(CASE jsonb_typeof(e.metadata) WHEN 'object' THEN e.metadata
                                     ELSE jsonb_build_object('metadata', e.metadata) END) AS m))
       || CASE WHEN e.duration_ms IS NULL THEN '{}' ELSE jsonb_build_object('durationMs', e.duration_ms) END
       AS purview_log
  FROM audit_events.events AS e
 WHERE e.purview_compatible;
COMMENT ON VIEW audit_events.purview_export IS
    'Events as Azure resource logs (common schema); purview_compatible ones only';

-- The common schema of the Office 365 Management Activity API, with what it has no place for behind it. RecordType
-- 0 stands in no list of Microsoft's; OrganizationId is a GUID only where the tenant's id is one; ResultStatus is
-- left out while the operation is pending.
CREATE OR REPLACE VIEW audit_events.o365_export AS
SELECT e.audit_id, e.timestamp, e.correlation_id, e.tenant_id, e.actor, e.operation,
       jsonb_build_object(
           'Id', e.audit_id,
           'RecordType', 0,
           'CreationTime', to_char(e.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'),
           'Operation', e.operation,
           'OrganizationId', e.tenant_id,
           'UserType', 0,
           'UserKey', e.actor,
           'Workload', 'FederatedQuery',
           'ObjectId', e.command,
           'UserId', e.actor || '@local',
           'ClientIP', host(e.caller_ip_address),
           'Scope', 'onprem',
           'CorrelationId', e.correlation_id,
           'Timestamp', to_char(e.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           'Status', e.status,
           'ResultSignature', e.result_signature,
           'Command', e.command,
           'Args', e.args,
           'DurationMs', e.duration_ms,
           'ClientApp', e.client_app,
           'FederatedSource', e.federated_source,
           'QueryIntent', e.query_intent,
           'BypassLLM', e.bypass_llm,
           'TrustScore', e.trust_score,
           'SchemaVersion', e.schema_version,
           'Metadata', e.metadata,
           'Extra', e.extra)
       || CASE e.status WHEN 'Success' THEN '{"ResultStatus": "Succeeded"}'
                        WHEN 'Failure' THEN '{"ResultStatus": "Failed"}' ELSE '{}' END::jsonb
       AS o365_record
  FROM audit_events.events AS e
 WHERE e.purview_compatible;
COMMENT ON VIEW audit_events.o365_export IS
    'Events as Office 365 Management Activity records (common schema); purview_compatible ones only';

-- The registry of federated sources. A name, where its handler lives, and whether it is in use; never a secret.
ALTER TABLE audit_events.federated_sources ADD COLUMN IF NOT EXISTS enabled boolean NOT NULL DEFAULT true;
ALTER TABLE audit_events.federated_sources ADD COLUMN IF NOT EXISTS changed_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE audit_events.federated_sources ADD COLUMN IF NOT EXISTS changed_by text NOT NULL DEFAULT 'migration';
COMMENT ON COLUMN audit_events.federated_sources.enabled IS 'Whether the source may be asked';
COMMENT ON COLUMN audit_events.federated_sources.audit_enabled IS 'Whether questions to the source are audited';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_write') THEN
        GRANT SELECT ON audit_events.purview_export, audit_events.o365_export TO audit_events_write;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_read') THEN
        GRANT SELECT ON audit_events.purview_export, audit_events.o365_export TO audit_events_read;
    END IF;
END $$;
