//! Where a partition's records go: to PostgreSQL, to the spool, or nowhere while the spool is emptied.
//!
//! | mode | outage lasted | outage ended | spool is empty |
//! | --- | --- | --- | --- |
//! | Live | Spooling | Live | Live |
//! | Spooling | Spooling | Draining | Spooling |
//! | Draining | Spooling | Draining | Live |
//!
//! *Outage lasted*: PostgreSQL stayed away for `SPOOL_AFTER`. *Outage ended*: it answers again. *Spool is
//! empty*: it holds nothing more of this partition, or PostgreSQL has it all. From Spooling to Live there is
//! only the way through Draining: what was spooled first is stored first.
//!
//! A spool that is full changes no mode: reading is paused in Spooling while the spool takes nothing.

/// Where a partition's records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// To PostgreSQL.
    #[default]
    Live,
    /// To the spool.
    Spooling,
    /// Nowhere: what the spool holds goes to PostgreSQL first.
    Draining,
}

/// What changes modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModeEvent {
    /// PostgreSQL stayed away for `SPOOL_AFTER`.
    OutageLasted,
    /// PostgreSQL answers again.
    OutageEnded,
    /// The spool holds nothing of the partition that PostgreSQL lacks.
    Drained,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Live, Self::Spooling, Self::Draining];

    /// The mode after `event`.
    #[must_use]
    pub const fn after(self, event: ModeEvent) -> Self {
        match (self, event) {
            (Self::Live, ModeEvent::OutageEnded | ModeEvent::Drained)
            | (Self::Draining, ModeEvent::Drained) => Self::Live,
            (_, ModeEvent::OutageLasted) | (Self::Spooling, ModeEvent::Drained) => Self::Spooling,
            (Self::Spooling | Self::Draining, ModeEvent::OutageEnded) => Self::Draining,
        }
    }

    /// The mode's name, for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Spooling => "spooling",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_answers_every_event_as_the_table_says() {
        let table = [
            (Mode::Live, [Mode::Spooling, Mode::Live, Mode::Live]),
            (Mode::Spooling, [Mode::Spooling, Mode::Draining, Mode::Spooling]),
            (Mode::Draining, [Mode::Spooling, Mode::Draining, Mode::Live]),
        ];
        let events = [ModeEvent::OutageLasted, ModeEvent::OutageEnded, ModeEvent::Drained];
        assert_eq!(table.map(|(mode, _)| mode), Mode::ALL);
        for (mode, expected) in table {
            assert_eq!(events.map(|event| mode.after(event)), expected, "{mode:?}");
        }
    }
}
