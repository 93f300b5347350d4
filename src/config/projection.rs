//! The settings of lines for others.

use std::time::Duration;

use super::parse::Reader;
use super::settings::Settings;
use crate::model::projection::{DaySink, IdentityForm, ProjectionRules};

/// Which day files are written, and how.
#[derive(Debug, Clone)]
pub struct DayFileConfig {
    /// `PURVIEW_LOG` and `TRUST_LOG`: those that are on.
    pub sinks: Vec<DaySink>,
    /// `DAY_FILE_MAX_BYTES`; 0: a file has no limit.
    pub max_len_bytes: usize,
    /// `PROJECT_LAG_MAX_MS`.
    pub lag_max: Duration,
}

pub(super) fn day_files(settings: &Settings, reader: &mut Reader) -> DayFileConfig {
    let words = [("on", true), ("off", false)];
    let mut sinks = Vec::new();
    if reader.one_of("PURVIEW_LOG", &settings.purview_log, "on", &words) {
        sinks.push(DaySink::Purview);
    }
    if reader.one_of("TRUST_LOG", &settings.trust_log, "on", &words) {
        sinks.push(DaySink::Trust);
    }
    DayFileConfig {
        sinks,
        max_len_bytes: reader.bytes("DAY_FILE_MAX_BYTES", &settings.day_file_max_bytes, "0", 0..=1 << 50),
        lag_max: reader.millis("PROJECT_LAG_MAX_MS", &settings.project_lag_max_ms, "60000", 0..=86_400_000),
    }
}

pub(super) fn read(settings: &Settings, reader: &mut Reader) -> ProjectionRules {
    ProjectionRules {
        resource_id: reader.text(
            "PURVIEW_RESOURCE_ID",
            &settings.purview_resource_id,
            ProjectionRules::RESOURCE_ID,
        ),
        category: reader.text("PURVIEW_CATEGORY", &settings.purview_category, ProjectionRules::CATEGORY),
        identity: reader.one_of(
            "PURVIEW_IDENTITY",
            &settings.purview_identity,
            "array",
            &[("array", IdentityForm::Array), ("object", IdentityForm::Object)],
        ),
        domain: domain(settings, reader),
    }
}

fn domain(settings: &Settings, reader: &mut Reader) -> String {
    let domain = reader.text("PURVIEW_DOMAIN", &settings.purview_domain, ProjectionRules::DOMAIN);
    let is_domain = domain.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if !is_domain {
        reader.wrong("PURVIEW_DOMAIN", &domain, "a domain's name, such as example.com");
    }
    domain
}
