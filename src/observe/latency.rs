//! Latencies, counted in buckets that are an eighth of a power of two wide: a quantile is at most 13 % too high.

/// Buckets: 8 for each power of two of milliseconds, up to 2^32 ms.
const BUCKET_COUNT: usize = 8 * 33;

/// Counted latencies.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; BUCKET_COUNT] }
    }
}

impl Latencies {
    /// Counts one latency.
    pub fn add(&mut self, latency_ms: u64) {
        if let Some(count) = self.counts.get_mut(bucket(latency_ms)) {
            *count += 1;
        }
    }

    /// Those that were counted after `earlier`, a copy of these.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Self { counts: pairs.map(|(now, then)| now.saturating_sub(*then)).collect() }
    }

    /// The upper bound in milliseconds of the bucket in which the `percent`-th percentile lies; `None` while
    /// nothing was counted.
    #[must_use]
    pub fn percentile_ms(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.counts.iter().sum();
        let rank = (total.checked_mul(percent)?).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.filter(|_| total > 0).map(upper_ms)
    }
}

/// Below 8 ms a bucket a millisecond; above, 3 bits after the leading one.
fn bucket(latency_ms: u64) -> usize {
    let value = latency_ms.min(u64::from(u32::MAX));
    let bits = u64::BITS - value.leading_zeros();
    if bits <= 3 {
        return usize::try_from(value).unwrap_or_default();
    }
    let shift = bits - 4;
    usize::try_from(u64::from(shift + 1) * 8 + ((value >> shift) & 7)).unwrap_or(BUCKET_COUNT - 1)
}

fn upper_ms(bucket: usize) -> u64 {
    let (group, low) = (bucket / 8, u64::try_from(bucket % 8).unwrap_or_default());
    match u32::try_from(group).unwrap_or_default().checked_sub(1) {
        None => low,
        Some(shift) => ((low + 9) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_lies_under_its_upper_bound() {
        for value in (0..5000).chain([65_535, 65_536, 1 << 31, u64::from(u32::MAX)]) {
            let bound = upper_ms(bucket(value));
            assert!(bound >= value && bound - value <= value / 7, "{value} {bound}");
        }
    }

    #[test]
    fn percentiles_are_counted() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile_ms(50), None);
        (1..=100).for_each(|value| latencies.add(value));
        assert!((50..=55).contains(&latencies.percentile_ms(50).unwrap()));
        assert!((99..=111).contains(&latencies.percentile_ms(99).unwrap()));
    }
}
