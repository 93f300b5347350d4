//! What is done beside storing, and what it costs: duplicates, dead letters, day files, relay, metrics and traces.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use serde_json::Value;
use tonic::{Request, Response, Status};

use crate::Options;
use crate::bed::Bed;
use crate::daemon::{DATABASE, Daemon, Figures, through, through_with};
use crate::load::{Shape, fill, with_topic};
use crate::rounds::Rounds;

const COLLECTOR: &str = "127.0.0.1:14317";
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// Kafka's limit for a topic's name (`Topic.MAX_NAME_LENGTH`): that of its dead letter topic would be longer.
const NAME_MAX_LEN: usize = 249;

/// Upstream duplicates, against none.
pub(crate) fn measure_duplicates(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let shape = Shape::of(600);
    let doubled = Shape { duplicate_per_cent: 5, ..shape };
    let strayed = Shape { strays: true, ..doubled };
    let rounds = with_topic(bed, "unique", (shape, record_count), |unique| {
        with_topic(bed, "doubled", (doubled, record_count), |doubled| {
            with_topic(bed, "strayed", (strayed, record_count), |strayed| {
                let mut rounds = Rounds::default();
                for _ in 0..options.rounds {
                    rounds.add("none", through(bed, unique, record_count, &[])?);
                    for (case, topic) in [("5 %", doubled), ("5 % in any partition", strayed)] {
                        rounds.add(case, through(bed, topic, record_count, &[])?);
                        check_share(bed)?;
                    }
                }
                Ok(rounds)
            })
        })
    })?;
    Ok(rounds.report(&format!("{record_count} records of 600 bytes: upstream duplicates"), &["none"]))
}

fn check_share(bed: &Bed) -> anyhow::Result<()> {
    let share = "SELECT 100 * sum(duplicates) / sum(events + duplicates) FROM audit_events.consumer_offsets";
    let share: f64 = bed.psql(DATABASE, share)?.parse()?;
    ensure!((4.0..6.0).contains(&share), "{share} % were duplicates");
    Ok(())
}

/// Day files: as they are set by default, and without standing back.
pub(crate) fn measure_days(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let on = [("PURVIEW_LOG", "on"), ("TRUST_LOG", "on")];
    let eager = [on[0], on[1], ("PROJECT_LAG_MAX_MS", "0")];
    let rounds = with_topic(bed, "days", (Shape::of(600), record_count), |topic| {
        let mut rounds = Rounds::default();
        for _ in 0..options.rounds {
            rounds.add("off", through(bed, topic, record_count, &[])?);
            for (name, settings) in [("on", &on[..]), ("on, not standing back", &eager[..])] {
                let logs = bed.dir.join("logs");
                if logs.try_exists()? {
                    std::fs::remove_dir_all(&logs)?;
                }
                rounds.add(name, through(bed, topic, record_count, settings)?);
            }
        }
        Ok(rounds)
    })?;
    Ok(rounds.report(&format!("{record_count} records of 600 bytes: day files"), &["off"]))
}

/// A topic whose dead letter topic can't be made.
fn too_long(bed: &Bed, name: &str) -> String {
    let name = format!("{}.{name}.", bed.run);
    format!("{name}{}", "x".repeat(NAME_MAX_LEN - 2 - name.len()))
}

/// Dead letters, while their topic works, is slow, or can't be made.
pub(crate) fn measure_letters(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let load = (Shape { invalid_per_cent: 2, ..Shape::of(600) }, record_count);
    let unrelayed = too_long(bed, "letters");
    let rounds = with_topic(bed, "letters", load, |topic| {
        let mut rounds = Rounds::default();
        fill(bed, &unrelayed, load.0, record_count)?;
        for _ in 0..options.rounds {
            forget_letters(bed, topic)?;
            rounds.add("works", through(bed, topic, record_count, &[])?);
            forget_letters(bed, topic)?;
            quota(bed, "--add-config", "producer_byte_rate=20000")?;
            let slow = through(bed, topic, record_count, &[]);
            quota(bed, "--delete-config", "producer_byte_rate")?;
            rounds.add("slow", slow?);
            rounds.add("can't be made", through(bed, &unrelayed, record_count, &[])?);
        }
        bed.delete_topics(&[&unrelayed])?;
        Ok(rounds)
    })?;
    Ok(rounds.report(&format!("{record_count} records, 2 % dead letters: their topic"), &["works"]))
}

/// The letters that the round before relayed: a relay would look for its own among them.
fn forget_letters(bed: &Bed, topic: &str) -> anyhow::Result<()> {
    bed.delete_topics(&[&format!("{topic}.dlq")])
}

/// A quota on what the daemon produces.
fn quota(bed: &Bed, change: &str, value: &str) -> anyhow::Result<()> {
    bed.stack(&[
        "kafka-tool",
        "kafka.admin.ConfigCommand",
        "--bootstrap-server",
        &bed.brokers,
        "--alter",
        change,
        value,
        "--entity-type",
        "clients",
        "--entity-name",
        "audit-consumer",
    ])
}

#[derive(Debug, Clone, Default)]
struct Collector(Arc<AtomicU64>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans;
        let scopes = spans.iter().flat_map(|resource| &resource.scope_spans);
        let count = scopes.map(|scope| scope.spans.len() as u64).sum();
        self.0.fetch_add(count, Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

/// Relay, metrics and traces at 1 % together, against none of them; 1 % of the records are dead letters in both.
pub(crate) fn measure_observed(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let load = (Shape { invalid_per_cent: 1, ..Shape::of(600) }, record_count);
    let collector = Collector::default();
    let address: SocketAddr = COLLECTOR.parse()?;
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    let serving = bed.runtime.spawn(server.serve(address));
    let unrelayed = too_long(bed, "unobserved");
    let rounds = with_topic(bed, "observed", load, |topic| {
        let mut rounds = Rounds::default();
        fill(bed, &unrelayed, load.0, record_count)?;
        for _ in 0..options.rounds {
            rounds.add("none", through(bed, &unrelayed, record_count, &[])?);
            forget_letters(bed, topic)?;
            let spans_before = collector.0.load(Ordering::Relaxed);
            rounds.add("all three", observed(bed, topic, record_count)?);
            let spans = collector.0.load(Ordering::Relaxed) - spans_before;
            ensure!(spans > record_count / 200, "only {spans} spans came");
        }
        bed.delete_topics(&[&unrelayed])?;
        Ok(rounds)
    });
    serving.abort();
    Ok(rounds?.report(&format!("{record_count} records: relay, metrics and traces at 1 %"), &["none"]))
}

fn observed(bed: &Bed, topic: &str, record_count: u64) -> anyhow::Result<Figures> {
    let endpoint = format!("http://{COLLECTOR}");
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
    ];
    bed.fresh_database(DATABASE)?;
    let mut scraped_at = Instant::now();
    let figures = through_with(bed, topic, record_count, &settings, |_| {
        if scraped_at.elapsed() >= SCRAPE_INTERVAL {
            scraped_at = Instant::now();
            ensure!(Daemon::get("/metrics").is_some(), "the daemon tells no metrics");
        }
        Ok(())
    })?;
    let relayed = "SELECT count(*) FILTER (WHERE relayed_at IS NOT NULL) FROM audit_events.dead_letters";
    let relayed: u64 = bed.psql(DATABASE, relayed)?.parse()?;
    ensure!(relayed > 0, "no letter was relayed during the run");
    Ok(figures)
}
