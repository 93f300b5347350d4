//! Lines for others, rendered from stored events: Purview logs, trust logs, events, Office 365 records.
//!
//! A line depends on the row and the [`ProjectionRules`] alone, so the same row gives the same bytes, today and by
//! any instance. The views `purview_export` and `o365_export` (`migrations/003_exports.sql`) give the same JSON for
//! the default rules; `tests/integration/export.rs` compares them.
//!
//! Numbers are never read: `trust_score`, and whatever stands in `metadata` and `extra`, is copied digit by digit
//! from PostgreSQL's own text of `numeric` and `jsonb`.
//!
//! # Keys of metadata beside properties
//!
//! The properties of a Purview log hold our own keys (`PROPERTY_NAMES` in `purview`) and those of `metadata`. A key
//! of metadata that is one of ours, or one of ours behind any number of `metadata.`, is written with one more
//! `metadata.` before it; every other key stays as it is:
//!
//! | key in metadata | key in properties |
//! | --- | --- |
//! | `region` | `region` |
//! | `resource` | `metadata.resource` |
//! | `metadata.resource` | `metadata.metadata.resource` |
//! | `metadata.region` | `metadata.region` |
//!
//! So no two keys meet and none shadows ours, and reading back is taking one `metadata.` away from what is ours
//! behind it. Metadata that is no object (a row inserted by hand) stands whole under `metadata`.

mod day_file;
mod event;
mod jsonb;
mod line;
mod o365;
mod purview;
#[cfg(test)]
mod tests;

use uuid::Uuid;

pub use self::day_file::{DayFile, DaySink};

use self::line::Line;
pub(in crate::model) use self::purview::{METADATA_PREFIX, PROPERTY_NAMES, is_taken};
use super::event::{Status, Timestamp};

/// An event as `audit_events.events` holds it, as far as lines need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRow<'a> {
    /// Column `audit_id`.
    pub audit_id: Uuid,
    /// Column `correlation_id`.
    pub correlation_id: Uuid,
    /// Column `timestamp`.
    pub timestamp: Timestamp,
    /// Column `operation`.
    pub operation: &'a str,
    /// Column `command`.
    pub command: &'a str,
    /// Column `args`.
    pub args: Option<&'a str>,
    /// Column `actor`.
    pub actor: &'a str,
    /// Column `status`.
    pub status: Status,
    /// Column `duration_ms`.
    pub duration_ms: Option<i32>,
    /// Column `result_signature`.
    pub result_signature: &'a str,
    /// Column `client_app`.
    pub client_app: &'a str,
    /// Column `caller_ip_address` as PostgreSQL's `host()` prints it: no mask.
    pub caller_ip_address: &'a str,
    /// Column `federated_source`.
    pub federated_source: &'a str,
    /// Column `query_intent`.
    pub query_intent: Option<&'a str>,
    /// Column `bypass_llm`.
    pub bypass_llm: bool,
    /// Column `trust_score` as PostgreSQL prints `numeric`.
    pub trust_score: &'a str,
    /// Column `purview_compatible`.
    pub purview_compatible: bool,
    /// Column `metadata` as PostgreSQL prints `jsonb`.
    pub metadata: &'a str,
    /// Column `schema_version`.
    pub schema_version: &'a str,
    /// Column `tenant_id`.
    pub tenant_id: &'a str,
    /// Column `extra` as PostgreSQL prints `jsonb`.
    pub extra: Option<&'a str>,
}

/// What a line depends on beside the row. The default is what the views have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionRules {
    /// The `resourceId` of Purview logs; `<tenant>` in it stands for the event's tenant.
    pub resource_id: String,
    /// The `category` of Purview logs, and the `Workload` of Office 365 records.
    pub category: String,
    /// The form of the `identity` of Purview logs.
    pub identity: IdentityForm,
    /// What stands behind the `@` of an actor's name.
    pub domain: String,
}

impl ProjectionRules {
    /// The default of `resource_id`.
    pub const RESOURCE_ID: &'static str = "/tenants/<tenant>/providers/audit-consumer";
    /// The default of `category`.
    pub const CATEGORY: &'static str = "FederatedQuery";
    /// The default of `domain`.
    pub const DOMAIN: &'static str = "local";

    /// The actor with our domain, in parts.
    fn user<'a>(&'a self, row: &EventRow<'a>) -> [&'a str; 3] {
        [row.actor, "@", &self.domain]
    }
}

impl Default for ProjectionRules {
    fn default() -> Self {
        Self {
            resource_id: Self::RESOURCE_ID.into(),
            category: Self::CATEGORY.into(),
            identity: IdentityForm::Array,
            domain: Self::DOMAIN.into(),
        }
    }
}

/// How a Purview log writes who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityForm {
    /// `{"claim":[{"typ":"<claim type>","val":"<actor>@<domain>"}]}`: the predecessor's form.
    Array,
    /// `{"claim":{"<claim type>":"<actor>@<domain>"}}`: the form that consumers of Azure logs read.
    Object,
}

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// An Azure resource log (common schema): `deploy/schemas/purview-log.schema.json`.
    Purview,
    /// A line of the trust log: `deploy/schemas/trust-log.schema.json`.
    Trust,
    /// The event itself, as a producer would write it: `deploy/schemas/event.schema.json`.
    Events,
    /// An Office 365 Management Activity record (common schema): `deploy/schemas/o365.schema.json`.
    O365,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// One JSON object a line.
    JsonLines,
    /// Comma separated values (RFC 4180, but lines end in a line feed). Nothing is an empty cell, an empty text is
    /// `""`; objects stand in their cell as JSON.
    Csv,
}

impl Projection {
    /// Every projection.
    pub const ALL: [Self; 4] = [Self::Purview, Self::Trust, Self::Events, Self::O365];

    /// The projection's name, as commands take it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Purview => "purview",
            Self::Trust => "trust",
            Self::Events => "events",
            Self::O365 => "o365",
        }
    }

    /// Whether only events with `purview_compatible` get a line.
    #[must_use]
    pub const fn is_for_purview(self) -> bool {
        match self {
            Self::Purview | Self::O365 => true,
            Self::Trust | Self::Events => false,
        }
    }

    /// The columns, in their order; in JSON the keys of the outermost object, where some may be left out.
    #[must_use]
    pub const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Purview => purview::COLUMNS,
            Self::Trust => event::TRUST_COLUMNS,
            Self::Events => event::COLUMNS,
            Self::O365 => o365::COLUMNS,
        }
    }

    /// Appends what stands before the first line: the column names in CSV, nothing in JSON lines.
    pub fn write_head(self, format: LineFormat, out: &mut String) {
        if format == LineFormat::Csv {
            out.push_str(&self.columns().join(","));
            out.push('\n');
        }
    }

    /// Appends the line of `row`, with its line feed.
    pub fn write_line(
        self,
        row: &EventRow<'_>,
        rules: &ProjectionRules,
        format: LineFormat,
        out: &mut String,
    ) {
        let mut line = Line::begin(format, out);
        match self {
            Self::Purview => purview::write(row, rules, &mut line),
            Self::Trust => event::write_trust(row, &mut line),
            Self::Events => event::write(row, &mut line),
            Self::O365 => o365::write(row, rules, &mut line),
        }
        line.end();
    }
}
