//! The registry of federated sources as it was read, and what it says about an event's source.

use std::collections::HashMap;

/// What is wrong with the source that an event names. The event is stored all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceFlag {
    /// The registry does not have it.
    Unregistered,
    /// The registry has it, disabled.
    Disabled,
}

impl SourceFlag {
    /// Every flag.
    pub const ALL: [Self; 2] = [Self::Unregistered, Self::Disabled];

    /// The word in the column `source_flag` and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::Disabled => "disabled",
        }
    }
}

/// What the registry held when it was read. Names are compared as they are, letter case and spaces too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FederatedSources {
    is_enabled: HashMap<Box<str>, bool>,
}

impl FederatedSources {
    /// Whether it held none; so it is, too, before it was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_enabled.is_empty()
    }

    /// What is wrong with the source of that name, if anything. One look-up by hash; allocates nothing.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<SourceFlag> {
        match self.is_enabled.get(name) {
            Some(true) => None,
            Some(false) => Some(SourceFlag::Disabled),
            None => Some(SourceFlag::Unregistered),
        }
    }
}

/// From each source's name, and whether it is enabled.
impl FromIterator<(String, bool)> for FederatedSources {
    fn from_iter<I: IntoIterator<Item = (String, bool)>>(sources: I) -> Self {
        let is_enabled =
            sources.into_iter().map(|(name, is_enabled)| (name.into_boxed_str(), is_enabled)).collect();
        Self { is_enabled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_enabled_source_of_that_very_name_is_not_flagged() {
        let sources: FederatedSources =
            [("local", true), ("crm", false)].map(|(name, on)| (name.to_owned(), on)).into_iter().collect();
        for (name, expect) in [
            ("local", None),
            ("crm", Some(SourceFlag::Disabled)),
            ("Local", Some(SourceFlag::Unregistered)),
            ("local ", Some(SourceFlag::Unregistered)),
            ("", Some(SourceFlag::Unregistered)),
        ] {
            assert_eq!(sources.flag(name), expect, "{name:?}");
        }
    }
}
