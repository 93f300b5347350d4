//! What becomes of a segment at start-up: the table in [`super`], as a pure function.

use crate::model::spool::Closing;
use crate::model::spool::walk::Fault;

use super::scan::{FooterSeen, SegmentScan};

/// What the next segment says of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Successor {
    /// There is none.
    None,
    /// There is one, and it can't be read or names no segment.
    Silent,
    /// It names a segment, and where that ended.
    Names(Closing),
}

/// What becomes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is sealed and whole.
    Keep,
    /// What is behind `end` is cut off, and it is sealed.
    Seal(Closing),
    /// Nothing was ever acknowledged in it, and it holds nothing.
    Unused,
    /// It is damaged.
    Quarantine(Fault),
}

/// The verdict on the segment that `scan` found, with the segment after it.
pub(super) fn judge(scan: &SegmentScan, successor: Successor) -> Verdict {
    let first_fault = scan.damages.first().map(|damage| damage.fault.clone());
    let is_never_acknowledged = match successor {
        Successor::Names(closing) => closing.segment < scan.number,
        Successor::None | Successor::Silent => false,
    };
    let has_no_batch = scan.batches.is_empty() && scan.behind.is_empty();
    if is_never_acknowledged {
        let is_unused = has_no_batch && scan.start.len_bytes == scan.len_bytes;
        return if is_unused { Verdict::Unused } else { quarantine(first_fault, Fault::OtherEnd) };
    }
    match successor {
        Successor::Names(closing) if closing.segment == scan.number => {
            if first_fault.is_none() && scan.footer == FooterSeen::Right && scan.end() == closing {
                return Verdict::Keep;
            }
            let is_reached = scan.batches.iter().any(|batch| batch.closing == closing);
            if is_reached { Verdict::Seal(closing) } else { quarantine(first_fault, Fault::OtherEnd) }
        }
        Successor::None | Successor::Silent | Successor::Names(_) => judge_alone(scan, first_fault),
    }
}

/// The verdict when no other segment says where this one ended.
fn judge_alone(scan: &SegmentScan, first_fault: Option<Fault>) -> Verdict {
    match (first_fault, scan.footer) {
        (None, FooterSeen::Right) => Verdict::Keep,
        // A right footer proves all batches: it covers what stands before the first damage, so the damage is behind that.
        (Some(_), FooterSeen::Right) if !scan.batches.is_empty() => Verdict::Seal(scan.end()),
        (None, FooterSeen::None) if scan.batches.is_empty() => Verdict::Unused,
        (None, FooterSeen::None) => Verdict::Seal(scan.end()),
        (Some(_), FooterSeen::None) if !scan.batches.is_empty() && scan.has_torn_tail() => {
            Verdict::Seal(scan.end())
        }
        (first_fault, _) => quarantine(first_fault, Fault::NoEnd),
    }
}

fn quarantine(first_fault: Option<Fault>, otherwise: Fault) -> Verdict {
    Verdict::Quarantine(first_fault.unwrap_or(otherwise))
}
