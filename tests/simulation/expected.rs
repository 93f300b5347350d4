//! What must have happened, and how often at least, in as many seeds as CI runs: a fault that never strikes, or a state
//! that is never reached, proves nothing.

pub(crate) const OCCURRENCES: &[(&str, u64)] = &[];
