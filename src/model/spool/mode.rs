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
//! A spool that is full changes no mode. It is a matter of [`Intake`]: reading is paused in Spooling while
//! the spool takes nothing, and in Draining always.

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

/// Whether the spool takes records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpoolRoom {
    /// It does.
    Open,
    /// It is full, or its disk fails.
    Full,
}

/// Whether a partition is read from Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intake {
    /// It is read.
    Reading,
    /// It is paused.
    Paused,
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

    /// The mode of a partition when the process starts: what the spool holds of it has to be drained first.
    #[must_use]
    pub const fn at_start(held_range_count: usize) -> Self {
        if held_range_count == 0 { Self::Live } else { Self::Draining }
    }

    /// Whether the partition is read from Kafka.
    #[must_use]
    pub const fn intake(self, room: SpoolRoom) -> Intake {
        match (self, room) {
            (Self::Live, _) | (Self::Spooling, SpoolRoom::Open) => Intake::Reading,
            (Self::Spooling, SpoolRoom::Full) | (Self::Draining, _) => Intake::Paused,
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

    #[test]
    fn a_full_spool_pauses_what_spools_and_nothing_that_is_live() {
        let check = |room, expected| assert_eq!(Mode::ALL.map(|mode| mode.intake(room)), expected);
        check(SpoolRoom::Open, [Intake::Reading, Intake::Reading, Intake::Paused]);
        check(SpoolRoom::Full, [Intake::Reading, Intake::Paused, Intake::Paused]);
    }

    #[test]
    fn what_the_spool_holds_at_start_is_drained_before_anything_is_live() {
        assert_eq!([0, 1, 2].map(Mode::at_start), [Mode::Live, Mode::Draining, Mode::Draining]);
    }
}
