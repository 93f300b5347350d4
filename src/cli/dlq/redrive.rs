//! `dlq redrive`: records back to their source topic, each once.
//!
//! Two systems take part, so: the intent is recorded in PostgreSQL first, with the ends of the topic at that moment;
//! then one Kafka transaction sends the records, each with the redrive's id in a header; then the intent is settled. A
//! redrive that was interrupted is settled by the next one: its producer fences the old one and ends its transaction,
//! and then the topic from those ends on shows whether it was committed.
//!
//! A record that is rejected again while the redrive goes on is a new dead letter: that one waits for the next redrive.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ActArgs, begin, refuse};
use crate::cli::ExitStatus;
use crate::cli::table::{Table, with_thousands};
use crate::failpoint;
use crate::model::dead_letter::{ATTEMPT_MAX, DeadLetterId, DeadLetterRow, OutgoingRecord};
use crate::model::position::{Offset, Partition, is_import};
use crate::observe::Clock;
use crate::outlet::{LetterSpans, OutletError, OutletSettings, Producer, Purpose, Reader, Topic, Topics};
use crate::store::{LetterFilter, LetterPage, OpenRedrive, Session, StoreSettings};

/// How many records go in one transaction.
const REDRIVE_MAX_COUNT: i64 = 200;

/// What was done, by source topic and reason.
#[derive(Debug, Default)]
struct Tally {
    counts: BTreeMap<(String, String), Counts>,
    settled: Vec<(Uuid, &'static str)>,
    /// Why it ended early, when Kafka did not do its part.
    trouble: Option<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    redriven: i64,
    /// Dead letters that have been tried often enough.
    loop_guard: i64,
    /// Records that their topic does not take any more.
    too_large: i64,
    /// Records whose topic is gone.
    no_topic: i64,
}

/// Kafka, as a redrive needs it. Blocking.
#[derive(Debug)]
struct Kafka {
    topics: Topics,
    reader: Reader,
    producer: Producer,
    known: HashMap<String, Option<Topic>>,
}

impl Kafka {
    /// Fences every earlier redrive.
    fn begin(settings: &OutletSettings, sources: &[String]) -> Result<Self, OutletError> {
        let topics = Topics::new(settings)?;
        let mut known = HashMap::new();
        for source in sources {
            known.insert(source.clone(), topics.find(source)?);
        }
        let limits: Vec<Topic> = known.values().flatten().cloned().collect();
        let producer = Producer::start(settings, Purpose::Redrive, &limits)?;
        Ok(Self { topics, reader: Reader::new(settings)?, producer, known })
    }

    fn ends(&self, topic: &Topic) -> Result<Vec<Offset>, OutletError> {
        let extents = self.reader.extents(&topic.name, topic.partition_count)?;
        Ok(extents.iter().map(|extent| extent.high).collect())
    }

    /// Whether a redrive's records are in `topic`, beyond `ends`; `None` when the topic does not say any more.
    fn was_committed(
        &self,
        redrive: Uuid,
        topic: &str,
        ends: &[Offset],
    ) -> Result<Option<bool>, OutletError> {
        let Some(topic) = self.topics.find(topic)? else { return Ok(None) };
        let extents = self.reader.extents(&topic.name, topic.partition_count)?;
        // Partitions that were added since begin at their start.
        let starts: Vec<Offset> = extents
            .iter()
            .enumerate()
            .map(|(index, _)| ends.get(index).copied().unwrap_or_default())
            .collect();
        let is_gone =
            extents.iter().zip(&starts).any(|(extent, start)| extent.low > *start || extent.high < *start);
        let mut is_there = false;
        self.reader.scan(&topic.name, &starts, |scanned| is_there |= scanned.redrive == Some(redrive))?;
        Ok(if is_there {
            Some(true)
        } else if is_gone {
            None
        } else {
            Some(false)
        })
    }

    fn send(&self, topic: &Topic, records: &[(Partition, OutgoingRecord)]) -> Result<(), OutletError> {
        self.producer.transact(&topic.name, records, (&topic.name, &HashMap::new())).map(|_placements| ())
    }
}

/// Sends the chosen dead letters back.
pub(super) async fn run(
    args: &ActArgs,
    store: &StoreSettings,
    outlet: &OutletSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let (mut session, filter) = match begin(args, store).await? {
        Ok(begun) => begun,
        Err(reason) => return refuse(out, args.json.into(), &reason),
    };
    let chosen = session.count_letters(&store.group, &filter).await?;
    if let Some(import) = chosen.iter().find(|count| is_import(&count.topic)) {
        session.close().await;
        let reason = format!(
            "{} has no topic that a record could go back to; mend a copy of the source and import that, or discard them",
            import.topic
        );
        return refuse(out, args.json.into(), &reason);
    }
    let sources: Vec<String> = chosen.into_iter().map(|count| count.topic).collect();
    let mut tally = Tally::default();
    let outcome = redrive(args, (store, outlet), (&mut session, &filter, sources), &mut tally).await;
    session.close().await;
    let outcome = match outcome {
        Err(error) if error.is::<OutletError>() => {
            let trouble = format!("not done, as far as is known; the next `dlq redrive` settles it: {error}");
            tally.trouble = Some(trouble);
            Ok(())
        }
        outcome => outcome,
    };
    if outcome.is_ok() || !tally.is_empty() {
        tally.write_to(args, out)?;
    }
    outcome?;
    Ok(tally.status())
}

/// Settles what was interrupted and sends what is chosen, of the topics `sources`; `tally` has what was done, also
/// after an error.
async fn redrive(
    args: &ActArgs,
    (store, outlet): (&StoreSettings, &OutletSettings),
    (session, filter, mut sources): (&mut Session, &LetterFilter, Vec<String>),
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let open = session.open_redrives(&store.group).await?;
    sources.extend(open.iter().filter_map(topic_of));
    sources.sort_unstable();
    sources.dedup();
    let settings = outlet.clone();
    let kafka = blocking(move || Kafka::begin(&settings, &sources)).await?;
    let spans = LetterSpans { traces: super::super::traces(), clock: Clock::default() };
    let mut work = Redrive { args, group: &store.group, outlet, session, kafka, tally, spans: &spans };
    let outcome = work.settle_and_send(open, filter).await;
    tokio::task::block_in_place(|| spans.traces.shutdown());
    outcome
}

fn topic_of(redrive: &OpenRedrive) -> Option<String> {
    redrive.details.get("topic").and_then(Value::as_str).map(str::to_owned)
}

async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, OutletError> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(ask).await??)
}

struct Redrive<'a> {
    args: &'a ActArgs,
    group: &'a str,
    outlet: &'a OutletSettings,
    session: &'a mut Session,
    kafka: Kafka,
    tally: &'a mut Tally,
    spans: &'a LetterSpans,
}

impl Redrive<'_> {
    async fn settle_and_send(&mut self, open: Vec<OpenRedrive>, filter: &LetterFilter) -> anyhow::Result<()> {
        if !self.args.dry_run {
            self.settle(open).await?;
        }
        // What was settled as not sent is chosen again.
        let counts = self.session.count_letters(self.group, filter).await?;
        let chosen_count: i64 =
            counts.iter().filter(|count| count.state.is_open()).map(|count| count.count).sum();
        self.send_all(filter, chosen_count).await
    }

    /// Settles redrives that were interrupted.
    async fn settle(&mut self, open: Vec<OpenRedrive>) -> anyhow::Result<()> {
        for redrive in open {
            let topic = topic_of(&redrive).unwrap_or_default();
            let ends: Vec<Offset> = redrive
                .details
                .get("ends")
                .and_then(Value::as_array)
                .map(|ends| ends.iter().filter_map(Value::as_i64).filter_map(Offset::new).collect())
                .unwrap_or_default();
            // Streams change hands: it may have been another group's, with a transactional.id of its own.
            let former = redrive.details.get("group").and_then(Value::as_str).unwrap_or(self.group);
            let outlet = self.outlet.for_group(former);
            let is_former = former != self.group;
            let committed = tokio::task::block_in_place(|| {
                if is_former {
                    drop(Producer::start(&outlet, Purpose::Redrive, &[])?);
                }
                self.kafka.was_committed(redrive.id, &topic, &ends)
            })?;
            // When the topic does not say: sent again at worst, and then counted as duplicates; lost never.
            let (action, outcome) = match committed {
                Some(true) => ("redriven", "it had been sent"),
                Some(false) => ("redrive_dropped", "it had not been sent"),
                None => {
                    ("redrive_dropped", "whether it had been sent is not known any more; taken as not sent")
                }
            };
            let details = json!({"topic": topic, "settled": outcome});
            let who = (self.args.actor.as_str(), "settled after an interruption");
            self.session
                .record_letter_action((action, Some(redrive.id)), &redrive.letters, who, &details)
                .await?;
            self.tally.settled.push((redrive.id, outcome));
        }
        Ok(())
    }

    async fn send_all(&mut self, filter: &LetterFilter, chosen_count: i64) -> anyhow::Result<()> {
        let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec} eta {eta}")?;
        let progress = ProgressBar::new(u64::try_from(chosen_count).unwrap_or(0)).with_style(style);
        // 1. A page is sent. 2. The daemon rejects its records again: new rows, with higher ids. 3. A later page would
        // have those, and send them once more. So no page goes beyond what is there now.
        let newest = self.session.newest_open_letter(self.group, filter).await?;
        let mut page = LetterPage { after: 0, last: newest, max_count: REDRIVE_MAX_COUNT };
        loop {
            let rows = self.session.open_letters(self.group, filter, page).await?;
            let Some(last) = rows.last() else { break };
            page.after = last.row_id;
            progress.inc(u64::try_from(rows.len())?);
            let mut by_topic: BTreeMap<String, Vec<DeadLetterRow>> = BTreeMap::new();
            for row in rows {
                by_topic.entry(row.topic.clone()).or_default().push(row);
            }
            for (topic, rows) in by_topic {
                self.send(&topic, rows).await?;
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// Sends rows of one topic in one transaction.
    async fn send(&mut self, topic: &str, rows: Vec<DeadLetterRow>) -> anyhow::Result<()> {
        let redrive = Uuid::now_v7();
        let topic = self.kafka.known.get(topic).cloned().flatten();
        let mut records: Vec<(DeadLetterRow, OutgoingRecord)> = Vec::with_capacity(rows.len());
        for row in rows {
            let counts = self.tally.counts.entry((row.topic.clone(), row.reason.clone())).or_default();
            let record = row.redriven(redrive);
            match &topic {
                _ if row.attempt() >= ATTEMPT_MAX => counts.loop_guard += 1,
                None => counts.no_topic += 1,
                Some(topic) if record.len_bytes() > topic.record_max_len_bytes => counts.too_large += 1,
                Some(_) => records.push((row, record)),
            }
        }
        let reasons: Vec<(String, String)> =
            records.iter().map(|(row, _)| (row.topic.clone(), row.reason.clone())).collect();
        let count = |tally: &mut Tally| {
            reasons.into_iter().for_each(|reason| tally.counts.entry(reason).or_default().redriven += 1);
        };
        if self.args.dry_run {
            count(self.tally);
            return Ok(());
        }
        let Some(topic) = topic.filter(|_| !records.is_empty()) else { return Ok(()) };
        let ids: Vec<DeadLetterId> = records.iter().map(|(row, _)| row.id).collect();
        let traced = self.spans.redriven(records.iter().map(|(row, _)| row));
        let records: Vec<(Partition, OutgoingRecord)> = records
            .into_iter()
            .map(|(row, record)| {
                (Partition(row.id.key.partition.0.rem_euclid(topic.partition_count)), record)
            })
            .collect();
        let ends = tokio::task::block_in_place(|| self.kafka.ends(&topic))?;
        let ends: Vec<i64> = ends.iter().map(|end| end.as_i64()).collect();
        let details = json!({"topic": topic.name, "ends": ends, "group": self.group});
        let who = (self.args.actor.as_str(), self.args.why.as_deref().unwrap_or_default());
        self.session.record_letter_action(("redrive_intended", Some(redrive)), &ids, who, &details).await?;
        failpoint::at("redrive_after_intent");
        let outcome = tokio::task::block_in_place(|| self.kafka.send(&topic, &records));
        let error = outcome.as_ref().err().map(|error| (error.class(), error.to_string()));
        self.spans.ended(traced, &topic.name, error);
        outcome?;
        failpoint::at("redrive_before_settle");
        let details = json!({"topic": topic.name});
        self.session.record_letter_action(("redriven", Some(redrive)), &ids, who, &details).await?;
        count(self.tally);
        Ok(())
    }
}

impl Tally {
    fn sum(&self, count: fn(&Counts) -> i64) -> i64 {
        self.counts.values().map(count).sum()
    }

    fn left_count(&self) -> i64 {
        self.sum(|counts| counts.loop_guard + counts.too_large + counts.no_topic)
    }

    /// Whether nothing was found out, or done.
    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.settled.is_empty()
    }

    fn status(&self) -> ExitStatus {
        if self.trouble.is_some() {
            return ExitStatus::Unreachable;
        }
        let is_something = self.sum(|counts| counts.redriven) > 0 || !self.settled.is_empty();
        let is_all = is_something && self.left_count() == 0;
        if is_all { ExitStatus::Success } else { ExitStatus::Refused }
    }

    fn write_to(&self, args: &ActArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        if args.json {
            let rows: Vec<Value> = self
                .counts
                .iter()
                .map(|((topic, reason), counts)| {
                    json!({
                        "topic": topic, "reason": reason, "redriven": counts.redriven,
                        "loop_guard": counts.loop_guard, "too_large": counts.too_large, "no_topic": counts.no_topic,
                    })
                })
                .collect();
            let settled: Vec<Value> = self
                .settled
                .iter()
                .map(|(id, outcome)| json!({"redrive_id": id.to_string(), "outcome": outcome}))
                .collect();
            let answer = json!({
                "dry_run": args.dry_run, "redriven": self.sum(|counts| counts.redriven),
                "left": self.left_count(), "by_reason": rows, "settled": settled, "trouble": self.trouble,
            });
            writeln!(out, "{answer:#}")?;
            return Ok(());
        }
        if !self.is_empty() || self.trouble.is_none() {
            self.write_table(args, out)?;
        }
        if let Some(trouble) = &self.trouble {
            writeln!(out, "{trouble}")?;
        }
        Ok(())
    }

    fn write_table(&self, args: &ActArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        for (id, outcome) in &self.settled {
            writeln!(out, "an earlier redrive {id} was interrupted: {outcome}")?;
        }
        let word = if args.dry_run { "would be redriven" } else { "redriven" };
        let mut table =
            Table::new(&["topic", "reason", word, "tried 5 times", "too large now", "topic is gone"]);
        for ((topic, reason), counts) in &self.counts {
            table.push(vec![
                topic.as_str().into(),
                reason.as_str().into(),
                counts.redriven.into(),
                counts.loop_guard.into(),
                counts.too_large.into(),
                counts.no_topic.into(),
            ]);
        }
        table.write_to(out)?;
        writeln!(
            out,
            "\n{} dead letters {word}, {} left as they are",
            with_thousands(self.sum(|counts| counts.redriven)),
            with_thousands(self.left_count())
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::FilterArgs;
    use super::*;

    fn told(tally: &Tally, is_json: bool) -> String {
        let args = ActArgs {
            filter: FilterArgs::default(),
            ids: Vec::new(),
            all: true,
            dry_run: false,
            why: None,
            actor: "a test".into(),
            json: is_json,
        };
        let mut out = Vec::new();
        tally.write_to(&args, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_redrive_that_kafka_ended_early_is_told_in_one_json_object_or_behind_the_table() {
        let trouble = "not done: kafka is away";
        let mut tally = Tally { trouble: Some(trouble.into()), ..Tally::default() };
        assert_eq!(told(&tally, false), format!("{trouble}\n"), "nothing was begun");
        let counts = Counts { redriven: 200, ..Counts::default() };
        tally.counts.insert(("orders".into(), "not_json".into()), counts);
        let text = told(&tally, false);
        assert!(text.contains("200 dead letters redriven"), "{text}");
        assert!(text.ends_with(&format!("\n{trouble}\n")), "{text}");
        let answer: Value = serde_json::from_str(&told(&tally, true)).unwrap();
        assert_eq!((&answer["redriven"], &answer["trouble"]), (&200.into(), &trouble.into()), "{answer:#}");
        assert_eq!(tally.status(), ExitStatus::Unreachable);
        tally.trouble = None;
        let answer: Value = serde_json::from_str(&told(&tally, true)).unwrap();
        assert_eq!((&answer["trouble"], tally.status()), (&Value::Null, ExitStatus::Success));
    }
}
