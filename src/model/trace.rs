//! Which trace a record belongs to, and whether that trace is kept.
//!
//! A record with a header `traceparent` ([W3C Trace Context](https://www.w3.org/TR/trace-context/#traceparent-header))
//! belongs to the trace that it names. One without belongs to the trace whose id is its `correlation_id`, byte by byte:
//! who has a row has the trace. A record with neither belongs to none.
//!
//! Whether a trace is kept is decided by its id alone, so that each of its spans, whoever makes it, is kept or dropped
//! with the others: the last 56 bits are taken for a random number, as W3C Trace Context 2 has it. (The SDK's own ratio
//! sampler reads the last 63 bits, where a UUID has its variant: with ids that are UUIDs it keeps nothing below 0.5.)

use std::fmt;

use uuid::Uuid;

/// The header that names a record's trace.
pub const TRACEPARENT: &str = "traceparent";

/// How many values the last 56 bits of an id have.
const RANDOM_COUNT: u64 = 1 << 56;

/// A trace's id: 16 bytes, not all of them zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The id of these bytes; `None` when all are zero.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Its last 56 bits.
    fn random(self) -> u64 {
        let [.., a, b, c, d, e, f, g] = self.0;
        u64::from_be_bytes([0, a, b, c, d, e, f, g])
    }
}

impl fmt::Display for TraceId {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A span's id: 8 bytes, not all of them zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// The id of these bytes; `None` when all are zero.
    #[must_use]
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for SpanId {
    /// 16 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The span that a record was sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub span: SpanId,
    /// Whether the sender keeps its trace.
    pub is_sampled: bool,
}

/// A record's place in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that the record was sent by; `None`: the trace is known by the correlation id alone.
    pub parent: Option<Parent>,
}

impl TraceContext {
    /// The context of a record with these headers (the last `traceparent` that can be read counts) and this
    /// correlation id.
    pub fn of<'a>(
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        correlation_id: Option<Uuid>,
    ) -> Option<Self> {
        let named = headers
            .filter(|(key, _)| *key == TRACEPARENT.as_bytes())
            .filter_map(|(_, value)| Self::read(std::str::from_utf8(value?).ok()?))
            .last();
        named.or_else(|| {
            let trace = TraceId::new(correlation_id?.into_bytes())?;
            Some(Self { trace, parent: None })
        })
    }

    /// The context that a `traceparent` gives; `None` when it is none of a version that is known to be read so.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let [version] = hexadecimal::<1>(version)?;
        // Version 0 ends here; later ones may go on.
        if version == 0xff || (version == 0 && fields.next().is_some()) {
            return None;
        }
        let [flags] = hexadecimal::<1>(flags)?;
        let span = SpanId::new(hexadecimal(span)?)?;
        Some(Self {
            trace: TraceId::new(hexadecimal(trace)?)?,
            parent: Some(Parent { span, is_sampled: flags & 1 == 1 }),
        })
    }
}

/// The value of a `traceparent`: what was sent by `span` of `trace`.
#[must_use]
pub fn traceparent(trace: TraceId, span: SpanId, is_sampled: bool) -> String {
    format!("00-{trace}-{span}-{:02x}", u8::from(is_sampled))
}

/// `LEN` bytes in lower-case hexadecimal digits.
fn hexadecimal<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != LEN || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; LEN];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Whether the sender's word counts, where a record brings it.
    pub follows_parent: bool,
    /// Ids whose last 56 bits are at least this are kept.
    threshold: u64,
}

impl Sampling {
    /// Keeps this share of the traces, from 0 to 1.
    #[must_use]
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share from 0 to 1 of 2^56, which an f64 holds"
    )]
    pub fn new(ratio: f64, follows_parent: bool) -> Self {
        let dropped = (1.0 - ratio.clamp(0.0, 1.0)) * RANDOM_COUNT as f64;
        Self { follows_parent, threshold: dropped.round() as u64 }
    }

    /// Whether the trace of a record with this context is kept.
    #[must_use]
    pub fn keeps(&self, context: &TraceContext) -> bool {
        match context.parent {
            Some(parent) if self.follows_parent => parent.is_sampled,
            _ => self.keeps_trace(context.trace),
        }
    }

    /// Whether a trace that begins here is kept.
    #[must_use]
    pub fn keeps_trace(&self, trace: TraceId) -> bool {
        trace.random() >= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn no_headers() -> impl Iterator<Item = (&'static [u8], Option<&'static [u8]>)> {
        std::iter::empty()
    }

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says_and_written_the_same() {
        let context = TraceContext::read(SAMPLED).unwrap();
        let parent = context.parent.unwrap();
        assert!(parent.is_sampled);
        assert_eq!(traceparent(context.trace, parent.span, true), SAMPLED);
        let other = SAMPLED.replace("-01", "-fe");
        assert!(!TraceContext::read(&other).unwrap().parent.unwrap().is_sampled);
        // A later version may have more fields.
        assert_eq!(TraceContext::read(&format!("{}-more", SAMPLED.replacen("00", "01", 1))), Some(context));
        for wrong in [
            "",
            "00",
            SAMPLED.strip_suffix('1').unwrap(),
            &format!("{SAMPLED}-more"),
            &format!("{SAMPLED}0"),
            &format!(" {SAMPLED}"),
            &SAMPLED.to_uppercase(),
            &SAMPLED.replacen("00", "ff", 1),
            &SAMPLED.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
            &SAMPLED.replace("b7ad6b7169203331", "0000000000000000"),
            &SAMPLED.replace("b7ad", "b7ag"),
        ] {
            assert_eq!(TraceContext::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_records_trace_is_its_headers_or_its_correlation_id() {
        let id = Uuid::from_bytes([7; 16]);
        let context = TraceContext::of(no_headers(), Some(id)).unwrap();
        assert_eq!(context.trace.as_bytes(), [7; 16]);
        assert_eq!(context.trace.to_string(), id.simple().to_string());
        assert_eq!(context.parent, None);
        assert_eq!(TraceContext::of(no_headers(), None), None);
        assert_eq!(TraceContext::of(no_headers(), Some(Uuid::nil())), None);
        let header = |value: &'static str| (b"traceparent".as_slice(), Some(value.as_bytes()));
        let named = TraceContext::read(SAMPLED);
        assert_eq!(TraceContext::of([header(SAMPLED)].into_iter(), Some(id)), named);
        assert_eq!(TraceContext::of([header(SAMPLED), header("x")].into_iter(), Some(id)), named);
        assert_eq!(TraceContext::of([header("x")].into_iter(), Some(id)), Some(context));
        assert_eq!(TraceContext::of([(b"traceparent".as_slice(), None)].into_iter(), None), None);
    }

    /// The goal: 10 % +- 2 % of random UUIDs; the ratios in which the SDK's sampler would keep nothing are among them.
    #[test]
    fn a_ratio_keeps_its_share_of_random_uuids_and_the_same_ones_always() {
        for ratio in [0.0, 0.01, 0.1, 0.25, 0.4, 0.5, 0.9, 1.0] {
            let sampling = Sampling::new(ratio, true);
            let kept = (0..20_000)
                .map(|_| TraceContext::of(no_headers(), Some(Uuid::new_v4())).unwrap())
                .filter(|context| {
                    assert_eq!(sampling.keeps(context), sampling.keeps_trace(context.trace));
                    sampling.keeps(context)
                })
                .count();
            let share = f64::from(u32::try_from(kept).unwrap()) / 20_000.0;
            assert!((share - ratio).abs() <= 0.02, "{ratio}: {share}");
        }
    }

    #[test]
    fn what_is_kept_of_less_is_kept_of_more_and_only_the_last_56_bits_count() {
        let (less, more) = (Sampling::new(0.1, true), Sampling::new(0.2, true));
        let mut bytes = [0xff; 16];
        bytes[..9].fill(0);
        assert!(less.keeps_trace(TraceId(bytes)));
        bytes[..9].fill(0xff);
        bytes[9..].fill(0);
        assert!(!more.keeps_trace(TraceId(bytes)));
        assert!(Sampling::new(1.0, true).keeps_trace(TraceId(bytes)));
        for _ in 0..2_000 {
            let id = TraceId(Uuid::new_v4().into_bytes());
            assert!(!less.keeps_trace(id) || more.keeps_trace(id));
        }
        // The threshold itself, from the recommendation's definition: the last 56 bits, big endian.
        bytes[9..].copy_from_slice(&(((1_u64 << 56) / 10 * 9) + 1_000).to_be_bytes()[1..]);
        assert!(less.keeps_trace(TraceId(bytes)));
        bytes[9..].copy_from_slice(&(((1_u64 << 56) / 10 * 9) - 1_000).to_be_bytes()[1..]);
        assert!(!less.keeps_trace(TraceId(bytes)));
    }

    #[test]
    fn the_senders_word_counts_only_where_it_is_to_be_followed() {
        let sampled = TraceContext::read(SAMPLED).unwrap();
        let dropped = TraceContext::read(&SAMPLED.replace("-01", "-00")).unwrap();
        let (follows, decides) = (Sampling::new(0.0, true), Sampling::new(1.0, false));
        assert!(follows.keeps(&sampled) && !follows.keeps(&dropped));
        assert!(decides.keeps(&sampled) && decides.keeps(&dropped));
        assert!(!Sampling::new(0.0, false).keeps(&sampled));
    }
}
