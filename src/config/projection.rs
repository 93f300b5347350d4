//! The settings of lines for others.

use super::parse::Reader;
use super::settings::Settings;
use crate::model::projection::{IdentityForm, ProjectionRules};

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
