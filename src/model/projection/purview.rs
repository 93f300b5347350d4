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
    line.text("time", &row.timestamp.text());
    let resource = rules.resource_id.split("<tenant>").flat_map(|part| [row.tenant_id, part]).skip(1);
    line.text_of("resourceId", resource);
    line.text("tenantId", row.tenant_id);
    line.text("operationName", row.operation);
    line.text("operationVersion", row.schema_version);
    line.text("category", &rules.category);
    line.text("resultType", row.status.as_str());
    line.text("resultSignature", row.result_signature);
    match row.duration_ms {
        Some(duration_ms) => line.number("durationMs", duration_ms),
        None => line.absent("durationMs"),
    }
    line.text("callerIpAddress", row.caller_ip_address);
    line.id("correlationId", row.correlation_id);
    line.text("level", level(row.status));
    line.nested("identity", |identity| write_identity(row, rules, identity));
    line.nested("properties", |properties| write_properties(row, properties));
}

const fn level(status: Status) -> &'static str {
    match status {
        Status::Failure => "Error",
        Status::Success | Status::Pending => "Informational",
    }
}

fn write_identity(row: &EventRow<'_>, rules: &ProjectionRules, identity: &mut Line<'_>) {
    let user = rules.user(row);
    match rules.identity {
        IdentityForm::Array => identity.nested_in_list("claim", |entry| {
            entry.text("typ", CLAIM_TYPE);
            entry.text_of("val", user);
        }),
        IdentityForm::Object => identity.nested("claim", |entry| entry.text_of(CLAIM_TYPE, user)),
    }
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
    properties.truth("bypassLLM", row.bypass_llm);
    properties.optional_text("queryIntent", row.query_intent);
    properties.numeral("trustScore", row.trust_score);
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
