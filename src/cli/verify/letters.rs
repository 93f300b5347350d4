//! The dead letter rows against the dead letter topics, as a `read_committed` reader sees them.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use crate::model::dead_letter::{LetterName, TOPIC_SUFFIX};
use crate::model::position::{Offset, StreamId, StreamPartition, is_import};
use crate::outlet::{Extent, OutletError, OutletSettings, Placement, Reader, Topics};
use crate::store::{
    Account, Finding, FindingCode, PartitionAccount, Relayed, SessionPurpose, StoreError, StoreSettings,
};

/// The rows of a source topic's streams.
type Rows = HashMap<LetterName, Option<Relayed>>;

/// A source topic's streams, and the groups that read them into this database.
#[derive(Debug, Default)]
struct Source {
    streams: HashSet<StreamId>,
    groups: HashSet<String>,
}

/// A dead letter topic, compared.
#[derive(Debug, Default)]
pub(super) struct TopicLetters {
    /// Its source.
    pub(super) source_topic: String,
    /// Rows of the table.
    row_count: usize,
    /// Rows that are not marked as relayed.
    waiting_count: usize,
    /// Letters of the table's streams in the topic.
    found_count: usize,
    /// Marked rows whose place in the topic was deleted since (retention).
    expired_count: usize,
    /// Why it was not compared.
    note: Option<String>,
}

/// Every dead letter topic in scope.
#[derive(Debug, Default)]
pub(super) struct Letters {
    pub(super) topics: Vec<TopicLetters>,
    /// What is wrong, by partition.
    pub(super) findings: Vec<(StreamPartition, Finding)>,
}

/// What a topic holds; nothing, if it is not there.
#[derive(Default)]
struct Content {
    extents: Vec<Extent>,
    placements: HashMap<LetterName, HashSet<Placement>>,
}

impl Letters {
    /// Compares the dead letter topics of all of the account's sources: one may hold letters whose rows are all gone.
    /// Where there are neither rows nor letters nothing is shown. Those of imports stay in the table.
    ///
    /// # Errors
    /// PostgreSQL's. Kafka's silence is noted with each topic.
    pub(super) async fn compare(
        account: &Account,
        store: &StoreSettings,
        outlet: &OutletSettings,
    ) -> anyhow::Result<Result<Self, StoreError>> {
        let mut letters = Self::default();
        for (source_topic, Source { streams, groups }) in sources_of(account) {
            // The rows first: what is marked in them must be in the topic, which only grows.
            let rows = match rows_of(store, &streams).await {
                Ok(rows) => rows,
                Err(error) => return Ok(Err(error)),
            };
            let (settings, name) = (outlet.clone(), format!("{source_topic}{TOPIC_SUFFIX}"));
            let content = tokio::task::spawn_blocking(move || read(&settings, &name, &streams)).await?;
            match content {
                Ok(content) => {
                    let content = content.unwrap_or_default();
                    let streams: HashSet<StreamId> =
                        content.placements.keys().map(|name| name.id.key.stream).collect();
                    let rows_now = match rows_of(store, &streams).await {
                        Ok(rows) => rows,
                        Err(error) => return Ok(Err(error)),
                    };
                    letters.compare_topic((source_topic, &groups), (&rows, &rows_now), &content);
                }
                Err(error) => letters.not_compared(source_topic, &rows, error.to_string()),
            }
        }
        Ok(Ok(letters))
    }

    fn not_compared(&mut self, source_topic: String, rows: &Rows, note: String) {
        let waiting_count = rows.values().filter(|relayed| relayed.is_none()).count();
        let note = Some(note);
        let row_count = rows.len();
        self.topics.push(TopicLetters {
            source_topic,
            row_count,
            waiting_count,
            note,
            ..TopicLetters::default()
        });
    }

    fn compare_topic(
        &mut self,
        (source_topic, groups): (String, &HashSet<String>),
        (rows, rows_now): (&Rows, &Rows),
        content: &Content,
    ) {
        if rows.is_empty() && content.placements.is_empty() {
            return;
        }
        // Those of a group that handed its streams over are in the rows alone.
        let of_rows = rows_now.keys().map(|name| &name.group);
        let groups: HashSet<&String> = groups.iter().chain(of_rows).collect();
        let mut topic = TopicLetters { source_topic, row_count: rows.len(), ..TopicLetters::default() };
        let mut wrong: BTreeMap<(StreamPartition, FindingCode), Vec<&LetterName>> = BTreeMap::new();
        for (name, relayed) in rows {
            let is_there = content.placements.contains_key(name);
            match relayed {
                None => topic.waiting_count += 1,
                Some(relayed) if !is_there && is_expired(relayed, &content.extents) => {
                    topic.expired_count += 1
                }
                Some(_) if !is_there => {
                    wrong.entry((name.id.key, FindingCode::LetterMissing)).or_default().push(name);
                }
                Some(_) => {}
            }
        }
        for (name, placements) in &content.placements {
            topic.found_count += 1;
            if placements.len() > 1 {
                wrong.entry((name.id.key, FindingCode::LetterTwice)).or_default().push(name);
            }
            // Another group's letters of the same records are in another database.
            if !rows_now.contains_key(name) && groups.contains(&name.group) {
                wrong.entry((name.id.key, FindingCode::LetterUnknown)).or_default().push(name);
            }
        }
        for ((key, code), names) in wrong {
            self.findings.push((key, finding(code, &names)));
        }
        self.topics.push(topic);
    }

    /// Why topics were not compared.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let note = |topic: &TopicLetters| {
            let note = topic.note.as_ref()?;
            Some(format!("{}{TOPIC_SUFFIX}: {note}", topic.source_topic))
        };
        self.topics.iter().filter_map(note)
    }

    pub(super) fn to_json(&self) -> Value {
        let topics = self.topics.iter().map(|topic| {
            json!({
                "topic": format!("{}{TOPIC_SUFFIX}", topic.source_topic), "rows": topic.row_count,
                "waiting": topic.waiting_count, "in_topic": topic.found_count, "expired": topic.expired_count,
                "note": topic.note,
            })
        });
        Value::Array(topics.collect())
    }

    /// A line for each topic.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |topic: &TopicLetters| {
            let name = format!("{}{TOPIC_SUFFIX}", topic.source_topic);
            match &topic.note {
                Some(note) => format!(
                    "{name}: not compared: {note}; {} rows, {} wait",
                    topic.row_count, topic.waiting_count
                ),
                None => format!(
                    "{name}: {} rows, {} in the topic, {} wait, {} expired there",
                    topic.row_count, topic.found_count, topic.waiting_count, topic.expired_count
                ),
            }
        };
        self.topics.iter().map(line).collect()
    }
}

/// By topic; streams without one have no letters, as the table takes those of known streams only.
fn sources_of(account: &Account) -> BTreeMap<String, Source> {
    let mut sources: BTreeMap<String, Source> = BTreeMap::new();
    let is_of_kafka = |of: &&PartitionAccount| !of.topic.is_empty() && !is_import(&of.topic);
    for partition in account.partitions.iter().filter(is_of_kafka) {
        let source = sources.entry(partition.topic.clone()).or_default();
        source.streams.insert(partition.key.stream);
        source.groups.insert(partition.group.clone());
    }
    sources
}

fn finding(code: FindingCode, names: &[&LetterName]) -> Finding {
    let example = names.iter().min().map(|name| name.id.to_string()).unwrap_or_default();
    let (expected, text) = match code {
        FindingCode::LetterTwice => ("once each", "dead letters are in the dead letter topic more than once"),
        FindingCode::LetterUnknown => (
            "a row each",
            "the dead letter topic holds letters without a row (a failover that lost commits may leave some)",
        ),
        _ => ("in the topic", "rows are marked as relayed and are not in the dead letter topic"),
    };
    Finding::new(code, (expected, names.len()), format!("{text}, such as {example}"))
}

fn is_expired(relayed: &Relayed, extents: &[Extent]) -> bool {
    let extent = usize::try_from(relayed.partition.0).ok().and_then(|index| extents.get(index));
    extent.is_some_and(|extent| relayed.offset < extent.low)
}

async fn rows_of(store: &StoreSettings, streams: &HashSet<StreamId>) -> Result<Rows, StoreError> {
    if streams.is_empty() {
        return Ok(Rows::new());
    }
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let mut rows = HashMap::new();
    for stream in streams {
        rows.extend(session.relayed_letters(*stream).await?);
    }
    session.close().await;
    Ok(rows)
}

/// Reads a dead letter topic; only letters of `streams` are kept. Blocking.
fn read(
    settings: &OutletSettings,
    topic: &str,
    streams: &HashSet<StreamId>,
) -> Result<Option<Content>, OutletError> {
    let Some(topic) = Topics::new(settings)?.find(topic)? else { return Ok(None) };
    let reader = Reader::new(settings)?;
    let extents = reader.extents(&topic.name, topic.partition_count)?;
    let starts: Vec<Offset> = extents.iter().map(|extent| extent.low).collect();
    let mut placements: HashMap<LetterName, HashSet<Placement>> = HashMap::new();
    reader.scan(&topic.name, &starts, |scanned| {
        if let Some(name) = scanned.letter.filter(|name| streams.contains(&name.id.key.stream)) {
            placements.entry(name).or_default().insert(scanned.placement);
        }
    })?;
    Ok(Some(Content { extents, placements }))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::dead_letter::DeadLetterId;
    use crate::model::position::Partition;
    use crate::store::RowAccount;

    const STREAM: StreamId = StreamId(Uuid::from_u128(1));

    fn name(group: &str, offset: i64) -> LetterName {
        let key = StreamPartition { stream: STREAM, partition: Partition(0) };
        LetterName { id: DeadLetterId { key, offset: Offset::new(offset).unwrap() }, group: group.to_owned() }
    }

    /// Compares rows that wait for the relay with letters, each once in the topic, for the reader `g`.
    #[track_caller]
    fn check(rows: &[LetterName], letters: &[LetterName], expect: &[(FindingCode, &str)]) {
        let rows: Rows = rows.iter().map(|name| (name.clone(), None)).collect();
        let placements = (0..).zip(letters).map(|(offset, name)| {
            let placement = Placement { partition: Partition(0), offset: Offset::new(offset).unwrap() };
            (name.clone(), HashSet::from([placement]))
        });
        let content = Content { extents: Vec::new(), placements: placements.collect() };
        let groups = HashSet::from(["g".to_owned()]);
        let mut compared = Letters::default();
        compared.compare_topic(("t".to_owned(), &groups), (&rows, &rows), &content);
        let found: Vec<_> =
            compared.findings.iter().map(|(_, finding)| (finding.code, finding.found.as_str())).collect();
        assert_eq!(found, expect);
        let is_shown = !(rows.is_empty() && letters.is_empty());
        assert_eq!(compared.lines().len(), usize::from(is_shown));
    }

    #[test]
    fn letters_without_a_row_are_found_also_where_no_row_is_left() {
        check(&[], &[], &[]);
        check(&[name("g", 0)], &[name("g", 0)], &[]);
        check(&[name("g", 0)], &[name("g", 0), name("g", 1)], &[(FindingCode::LetterUnknown, "1")]);
        check(&[], &[name("g", 0), name("g", 1)], &[(FindingCode::LetterUnknown, "2")]);
        // Those of another group are another database's, unless rows say that it was here.
        check(&[], &[name("other", 0)], &[]);
        check(&[name("before", 0)], &[name("before", 1)], &[(FindingCode::LetterUnknown, "1")]);
    }

    #[test]
    fn the_topic_of_a_source_without_letters_is_looked_at_and_that_of_an_import_is_not() {
        let of = |topic: &str| PartitionAccount {
            group: "g".to_owned(),
            topic: topic.to_owned(),
            key: StreamPartition { stream: STREAM, partition: Partition(0) },
            is_retired: false,
            position: None,
            stored: RowAccount::default(),
            gaps: 0,
        };
        let partitions = ["orders", "import:table", ""].map(of).into();
        let sources = sources_of(&Account { partitions, ..Account::default() });
        assert_eq!(sources.keys().collect::<Vec<_>>(), ["orders"]);
        let source = &sources["orders"];
        assert!(source.streams.contains(&STREAM) && source.groups.contains("g"));
    }
}
