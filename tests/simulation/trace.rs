//! What happened: a hash of all of it, counts by name, and, when it is recorded, lines for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How many lines are kept.
const LINE_MAX_COUNT: usize = 200_000;

/// A property that does not hold.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) property: &'static str,
    pub(crate) detail: String,
}

#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Of time, place, name and numbers of each step.
    pub(crate) hash: u64,
    pub(crate) step_count: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// The first one.
    pub(crate) violation: Option<Violation>,
    pub(crate) lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn step(
        &mut self,
        at: Duration,
        who: Who,
        name: &'static str,
        numbers: &[i64],
        detail: fmt::Arguments<'_>,
    ) {
        self.step_count += 1;
        *self.counts.entry(name).or_default() += 1;
        let mut hash = self.hash ^ at.as_millis() as u64 ^ (u64::from(who.0) << 56);
        let bytes = name.bytes().map(u64::from);
        for number in bytes.chain(numbers.iter().map(|number| *number as u64)) {
            hash = (hash ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        self.hash = hash;
        self.line(at, format_args!("{who} {name} {numbers:?} {detail}"));
    }

    pub(crate) fn line(&mut self, at: Duration, text: fmt::Arguments<'_>) {
        if let Some(lines) = self.lines.as_mut().filter(|lines| lines.len() < LINE_MAX_COUNT) {
            lines.push(format!("{:9.3} {text}", at.as_secs_f64()));
        }
    }

    pub(crate) fn violate(&mut self, at: Duration, property: &'static str, detail: String) {
        self.line(at, format_args!("VIOLATION {property}: {detail}"));
        self.violation.get_or_insert(Violation { property, detail });
    }
}

/// A process by its number, or the world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who(pub(crate) u8);

impl Who {
    pub(crate) const WORLD: Self = Self(0xff);
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == Self::WORLD.0 { f.write_str("--") } else { write!(f, "p{}", self.0) }
    }
}
