//! Purview logs: the Azure Monitor resource-log common schema, as JSON lines (Microsoft Learn, "Common and
//! service-specific schemas for Azure resource logs").

use super::line::Line;
use super::{EventRow, IdentityForm, ProjectionRules};
use crate::model::event::Status;

/// The columns in their order.
pub(super) const COLUMNS: &[&str] = &[
    "time",
    "resourceId",
    "tenantId",
    "operationName",
    "operationVersion",
    "category",
    "resultType",
    "resultSignature",
    "durationMs",
    "callerIpAddress",
    "correlationId",
    "level",
    "identity",
    "properties",
];

/// Our own keys in `properties`; `migrations/003_exports.sql` lists the same.
pub(in crate::model) const PROPERTY_NAMES: &[&str] = &[
    "resource",
    "command",
    "args",
    "clientApp",
    "schemaVersion",
    "auditId",
    "tenantId",
    "federatedSource",
    "bypassLLM",
    "queryIntent",
    "trustScore",
];

/// What is put before a key of metadata that would be taken for one of ours.
pub(in crate::model) const METADATA_PREFIX: &str = "metadata.";

/// The claim that names a user (WS-Federation, "UPN Claim").
const CLAIM_TYPE: &str = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn";

pub(super) fn write(row: &EventRow<'_>, rules: &ProjectionRules, line: &mut Line<'_>) {
    line.text("time", &row.timestamp.to_string());
    line.text("resourceId", &rules.resource_id.replace("<tenant>", row.tenant_id));
    line.text("tenantId", row.tenant_id);
    line.text("operationName", row.operation);
    line.text("operationVersion", row.schema_version);
    line.text("category", &rules.category);
    line.text("resultType", row.status.as_str());
    line.text("resultSignature", row.result_signature);
    match row.duration_ms {
        Some(duration_ms) => line.scalar("durationMs", duration_ms),
        None => line.absent("durationMs"),
    }
    line.text("callerIpAddress", row.caller_ip_address);
    line.id("correlationId", row.correlation_id);
    line.text("level", level(row.status));
    line.json("identity", &identity(row, rules));
    line.json("properties", &Line::object(|properties| write_properties(row, properties)));
}

const fn level(status: Status) -> &'static str {
    match status {
        Status::Failure => "Error",
        Status::Success | Status::Pending => "Informational",
    }
}

fn identity(row: &EventRow<'_>, rules: &ProjectionRules) -> String {
    let user = rules.user(row);
    let claim = match rules.identity {
        IdentityForm::Array => {
            let entry = Line::object(|entry| {
                entry.text("typ", CLAIM_TYPE);
                entry.text("val", &user);
            });
            format!("[{entry}]")
        }
        IdentityForm::Object => Line::object(|entry| entry.text(CLAIM_TYPE, &user)),
    };
    Line::object(|identity| identity.json("claim", &claim))
}

fn write_properties(row: &EventRow<'_>, properties: &mut Line<'_>) {
    properties.text("resource", row.command);
    properties.text("command", row.command);
    properties.optional_text("args", row.args);
    properties.text("clientApp", row.client_app);
    properties.text("schemaVersion", row.schema_version);
    properties.id("auditId", row.audit_id);
    properties.text("tenantId", row.tenant_id);
    properties.text("federatedSource", row.federated_source);
    properties.scalar("bypassLLM", row.bypass_llm);
    properties.optional_text("queryIntent", row.query_intent);
    properties.scalar("trustScore", row.trust_score);
    properties.spread("metadata", row.metadata, |key| is_taken(key).then_some(METADATA_PREFIX));
}

/// Whether a key of metadata is one of ours, or one of ours behind prefixes.
pub(in crate::model) fn is_taken(key: &str) -> bool {
    let mut bare = key;
    while let Some(rest) = bare.strip_prefix(METADATA_PREFIX) {
        bare = rest;
    }
    PROPERTY_NAMES.contains(&bare)
}
