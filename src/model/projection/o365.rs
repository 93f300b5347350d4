//! Office 365 records: the common schema of the Office 365 Management Activity API (Microsoft Learn, "Office 365
//! Management Activity API schema"), with what it has no place for behind it.
//!
//! Where an audit event is not what the schema has in mind: `RecordType` is 0, which its list does not use, as no
//! Microsoft workload wrote the record; `OrganizationId` is the tenant, a GUID only where the tenant's id is one;
//! `ResultStatus` is left out while the operation is pending; `CreationTime` has whole seconds in UTC, the full time
//! is `Timestamp`.

use super::line::Line;
use super::{EventRow, ProjectionRules};
use crate::model::event::Status;

/// The columns in their order.
pub(super) const COLUMNS: &[&str] = &[
    "Id",
    "RecordType",
    "CreationTime",
    "Operation",
    "OrganizationId",
    "UserType",
    "UserKey",
    "Workload",
    "ResultStatus",
    "ObjectId",
    "UserId",
    "ClientIP",
    "Scope",
    "CorrelationId",
    "Timestamp",
    "Status",
    "ResultSignature",
    "Command",
    "Args",
    "DurationMs",
    "ClientApp",
    "FederatedSource",
    "QueryIntent",
    "BypassLLM",
    "TrustScore",
    "SchemaVersion",
    "Metadata",
    "Extra",
];

/// `RecordType`: of no Microsoft workload.
const RECORD_TYPE: u8 = 0;
/// `UserType`: Regular, a user without admin permissions.
const USER_TYPE: u8 = 0;
/// `Scope`: not made by a hosted Office 365 service.
const SCOPE: &str = "onprem";
/// The length of `YYYY-MM-DDThh:mm:ss`.
const SECONDS_LEN_BYTES: usize = 19;

pub(super) fn write(row: &EventRow<'_>, rules: &ProjectionRules, line: &mut Line<'_>) {
    let time = row.timestamp.text();
    line.id("Id", row.audit_id);
    line.number("RecordType", RECORD_TYPE);
    line.text("CreationTime", time.get(..SECONDS_LEN_BYTES).unwrap_or(&time));
    line.text("Operation", row.operation);
    line.text("OrganizationId", row.tenant_id);
    line.number("UserType", USER_TYPE);
    line.text("UserKey", row.actor);
    line.text("Workload", &rules.category);
    match row.status {
        Status::Success => line.text("ResultStatus", "Succeeded"),
        Status::Failure => line.text("ResultStatus", "Failed"),
        Status::Pending => line.absent("ResultStatus"),
    }
    line.text("ObjectId", row.command);
    line.text_of("UserId", rules.user(row));
    line.text("ClientIP", row.caller_ip_address);
    line.text("Scope", SCOPE);
    line.id("CorrelationId", row.correlation_id);
    line.text("Timestamp", &time);
    line.text("Status", row.status.as_str());
    line.text("ResultSignature", row.result_signature);
    line.text("Command", row.command);
    line.optional_text("Args", row.args);
    match row.duration_ms {
        Some(duration_ms) => line.number("DurationMs", duration_ms),
        None => line.null("DurationMs"),
    }
    line.text("ClientApp", row.client_app);
    line.text("FederatedSource", row.federated_source);
    line.optional_text("QueryIntent", row.query_intent);
    line.truth("BypassLLM", row.bypass_llm);
    line.numeral("TrustScore", row.trust_score);
    line.text("SchemaVersion", row.schema_version);
    line.json("Metadata", row.metadata);
    match row.extra {
        Some(extra) => line.json("Extra", extra),
        None => line.null("Extra"),
    }
}
