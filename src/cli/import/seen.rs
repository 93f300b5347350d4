//! What a dry run remembers of the events that it has met, as nothing is stored in which it could look.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use uuid::Uuid;

use crate::model::event::Timestamp;
use crate::model::legacy::CONFLICT_SPAN_MICROS;

/// How many ids a dry run remembers, to see what the sources repeat; beyond, repeated events are counted as new. As many
/// as a table of 2^23 places takes, of 25 bytes each: 200 MiB.
const SEEN_MAX_COUNT: usize = 7_000_000;
/// How far apart two times may be that were one before the predecessor rounded it.
const ROUNDED_MICROS: u64 = 1;

/// The ids that a dry run has met, each with the time at which it met it first.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<Uuid, Timestamp>);

/// Whether an event was met before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It was not, as far as is remembered.
    First,
    /// It was.
    Again,
    /// Its id was, at another time within a day.
    AtAnotherTime,
}

impl Seen {
    pub(super) fn meet(&mut self, audit_id: Uuid, time: Timestamp) -> Meeting {
        let has_room = self.0.len() < SEEN_MAX_COUNT;
        match self.0.entry(audit_id) {
            Entry::Occupied(known) => {
                let apart_micros = time.as_unix_micros().abs_diff(known.get().as_unix_micros());
                match apart_micros {
                    ..=ROUNDED_MICROS => Meeting::Again,
                    _ if apart_micros <= CONFLICT_SPAN_MICROS.unsigned_abs() => Meeting::AtAnotherTime,
                    _ => Meeting::First,
                }
            }
            Entry::Vacant(place) => {
                if has_room {
                    place.insert(time);
                }
                Meeting::First
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_met_again_at_its_time_or_at_another() {
        let at = |micros| Timestamp::from_unix_micros(micros).unwrap();
        let mut seen = Seen::default();
        let meetings = [0, 0, 1, 2, CONFLICT_SPAN_MICROS, CONFLICT_SPAN_MICROS + 1]
            .map(|micros| seen.meet(Uuid::nil(), at(micros)));
        assert_eq!(meetings[0], Meeting::First);
        assert_eq!(meetings[1..3], [Meeting::Again; 2]);
        assert_eq!(meetings[3..5], [Meeting::AtAnotherTime; 2]);
        assert_eq!(meetings[5], Meeting::First);
        assert_eq!(seen.meet(Uuid::max(), at(0)), Meeting::First);
    }
}
