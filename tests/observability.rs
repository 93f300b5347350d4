//! What operators are shown is true and whole: Grafana's dashboards keep their rules, and every metric that the
//! program has is shown, alerted on or documented, and none that it has not.
#![expect(clippy::unwrap_used, reason = "a test that can't go on must stop loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

const PREFIX: &str = "audit_consumer_";
/// The dashboards that there are, by the names of their files.
const DASHBOARDS: &[&str] = &["compliance", "kafka", "overview", "postgresql", "spool"];
/// What a histogram adds to its name in the text format.
const HISTOGRAM_SUFFIXES: &[&str] = &["_bucket", "_sum", "_count"];
/// Functions whose range is an interval of the scrape.
const RATES: &[&str] = &["rate(", "irate(", "increase(", "delta(", "deriv(", "changes(", "resets("];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(path: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
}

/// A dashboard with the name of its file.
struct Dashboard {
    name: String,
    json: Value,
}

fn dashboards() -> Vec<Dashboard> {
    let mut found = Vec::new();
    files(&root().join("deploy/grafana/dashboards"), "json", &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| Dashboard {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            json: serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap(),
        })
        .collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Dashboard {
    /// All panels, those in collapsed rows too.
    fn panels(&self) -> Vec<&Value> {
        let outer = list(&self.json, "/panels");
        outer.iter().flat_map(|panel| std::iter::once(panel).chain(list(panel, "/panels"))).collect()
    }

    /// The panels that show something.
    fn shown(&self) -> Vec<&Value> {
        self.panels().into_iter().filter(|panel| text(panel, "/type") != "row").collect()
    }

    /// Every expression of Prometheus with what it belongs to.
    fn expressions(&self) -> Vec<(String, &str)> {
        let targets = self.shown().into_iter().flat_map(|panel| {
            list(panel, "/targets").iter().map(|target| (text(panel, "/title"), text(target, "/expr")))
        });
        let annotations = list(&self.json, "/annotations/list").iter();
        targets
            .chain(annotations.map(|annotation| (text(annotation, "/name"), text(annotation, "/expr"))))
            .filter(|(_, expression)| !expression.is_empty())
            .map(|(of, expression)| (format!("{}: {of}: {expression}", self.name), expression))
            .collect()
    }

    fn variable(&self, name: &str) -> Option<&Value> {
        list(&self.json, "/templating/list").iter().find(|variable| text(variable, "/name") == name)
    }
}

/// The names of the metrics, without the prefix, from the table in `src/observe`.
fn metrics_of_the_program() -> BTreeMap<String, String> {
    let mut paths = Vec::new();
    files(&root().join("src/observe"), "rs", &mut paths);
    let mut found = BTreeMap::new();
    for path in paths {
        let source = fs::read_to_string(path).unwrap();
        for call in source.split("make!(").skip(1) {
            let mut words = call.splitn(4, ',');
            let (_maker, kind, name) = (words.next(), words.next(), words.next());
            let literal = name.and_then(|name| name.trim().strip_prefix('"')?.strip_suffix('"'));
            if let (Some(kind), Some(name)) = (kind, literal) {
                assert!(
                    found.insert(name.to_owned(), kind.trim().to_owned()).is_none(),
                    "{name} is there twice"
                );
            }
        }
    }
    assert!(found.len() > 40, "only {} metrics were found", found.len());
    found
}

/// The words of `text` that are names of our metrics, without the prefix.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !is_name(c)).filter_map(|word| word.strip_prefix(PREFIX)).map(str::to_owned).collect()
}

/// The metric that `name` is a series of.
fn metric_of<'a>(name: &'a str, metrics: &BTreeMap<String, String>) -> Option<&'a str> {
    if metrics.get(name).is_some_and(|kind| !kind.starts_with("Histogram")) {
        return Some(name);
    }
    let base = HISTOGRAM_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix))?;
    metrics.get(base).is_some_and(|kind| kind.starts_with("Histogram")).then_some(base)
}

/// The selectors of an expression: what stands in braces, with the name before them.
fn selectors(expression: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    expression
        .match_indices('{')
        .map(|(at, _)| {
            let (before, rest) = expression.split_at(at);
            let name = before.rsplit(|c| !is_name(c)).next().unwrap();
            (name, rest.trim_start_matches('{').split_once('}').unwrap().0)
        })
        .collect()
}

#[test]
fn dashboards_are_fixed_named_and_found_by_each_other() {
    let all = dashboards();
    let names: Vec<&str> = all.iter().map(|dashboard| dashboard.name.as_str()).collect();
    assert_eq!(names, DASHBOARDS);
    let mut uids = BTreeSet::new();
    for Dashboard { name, json } in &all {
        let uid = text(json, "/uid");
        assert!(uid == format!("audit-consumer-{name}") && uid.len() <= 40, "{name}: uid {uid}");
        assert!(uids.insert(uid), "{name}: uid {uid} is there twice");
        assert!(!text(json, "/title").is_empty() && text(json, "/description").len() > 40, "{name}");
        assert_eq!(json.pointer("/editable"), Some(&Value::Bool(false)), "{name}");
        assert!(json.pointer("/id").is_none(), "{name}: an id belongs to one Grafana");
        assert!(list(json, "/tags").contains(&"audit-consumer".into()), "{name}: tags");
        let by_tag = |link: &&Value| {
            text(link, "/type") == "dashboards" && list(link, "/tags").contains(&"audit-consumer".into())
        };
        assert_eq!(list(json, "/links").iter().filter(by_tag).count(), 1, "{name}: link by tag");
        for event in ["Drains", "Rebalances"] {
            let mut annotations = list(json, "/annotations/list").iter();
            assert!(annotations.any(|annotation| text(annotation, "/name") == event), "{name}: {event}");
        }
    }
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_a_chosen_data_source() {
    for dashboard in dashboards() {
        let mut ids = BTreeSet::new();
        assert!(dashboard.shown().len() > 10, "{}", dashboard.name);
        for panel in dashboard.panels() {
            let title = format!("{}: {}", dashboard.name, text(panel, "/title"));
            assert!(ids.insert(panel.pointer("/id").and_then(Value::as_u64).unwrap()), "{title}: id");
            assert!(!text(panel, "/title").is_empty(), "{title}");
        }
        for panel in dashboard.shown() {
            let title = format!("{}: {}", dashboard.name, text(panel, "/title"));
            assert!(text(panel, "/description").len() > 40, "{title}: description");
            assert!(!text(panel, "/fieldConfig/defaults/unit").is_empty(), "{title}: unit");
            let targets = list(panel, "/targets");
            assert!(!targets.is_empty(), "{title}: no query");
            for asked in targets.iter().chain([panel]) {
                let source = (text(asked, "/datasource/type"), text(asked, "/datasource/uid"));
                let is_postgres = dashboard.name == "compliance" && source == ("postgres", "${postgres}");
                assert!(source == ("prometheus", "${datasource}") || is_postgres, "{title}: {source:?}");
            }
            for target in targets {
                let field = if text(target, "/datasource/type") == "postgres" { "/rawSql" } else { "/expr" };
                assert!(!text(target, field).is_empty(), "{title}: {field}");
            }
        }
    }
}

#[test]
fn every_dashboard_lets_choose_data_source_job_and_instance() {
    for dashboard in dashboards() {
        let name = &dashboard.name;
        let source = dashboard.variable("datasource").unwrap();
        assert_eq!(text(source, "/label"), "Data source", "{name}");
        assert_eq!((text(source, "/type"), text(source, "/query")), ("datasource", "prometheus"), "{name}");
        for variable in ["job", "instance"] {
            let json = dashboard.variable(variable).unwrap_or_else(|| panic!("{name}: {variable}"));
            assert_eq!(text(json, "/type"), "query", "{name}: {variable}");
            assert_eq!(text(json, "/datasource/uid"), "${datasource}", "{name}: {variable}");
            assert_eq!(json.pointer("/multi"), Some(&Value::Bool(true)), "{name}: {variable}");
            assert_eq!(json.pointer("/includeAll"), Some(&Value::Bool(true)), "{name}: {variable}");
            assert_eq!(json.pointer("/refresh"), Some(&2.into()), "{name}: {variable}");
        }
    }
    let compliance = dashboards().into_iter().find(|dashboard| dashboard.name == "compliance").unwrap();
    let postgres = compliance.variable("postgres").unwrap();
    assert_eq!((text(postgres, "/type"), text(postgres, "/query")), ("datasource", "postgres"));
}

/// `ALERTS` may lack a label that the alert's expression has summed away: then it belongs to all.
#[test]
fn every_selector_keeps_to_the_chosen_jobs_and_instances() {
    let mut checked_count = 0;
    for dashboard in dashboards() {
        for (place, expression) in dashboard.expressions() {
            let found = selectors(expression);
            assert!(!found.is_empty(), "{place}: no selector");
            let of_ours = found.iter().filter(|(metric, _)| metric.starts_with(PREFIX)).count();
            assert_eq!(expression.matches(PREFIX).count(), of_ours, "{place}: a metric without labels");
            for (metric, labels) in found {
                checked_count += 1;
                for label in ["job", "instance"] {
                    let matcher =
                        format!("{label}=~\"${label}{}\"", if metric == "ALERTS" { "|" } else { "" });
                    assert!(labels.contains(&matcher), "{place}: {metric} without {matcher}");
                }
            }
        }
    }
    assert!(checked_count > 100, "only {checked_count} selectors were seen");
}

#[test]
fn every_range_is_the_rate_interval_and_every_quantile_sums_by_le() {
    let mut checked_count = 0;
    for dashboard in dashboards() {
        for (place, expression) in dashboard.expressions() {
            for (at, _) in expression.match_indices('[') {
                checked_count += 1;
                assert!(expression.split_at(at).1.starts_with("[$__rate_interval]"), "{place}");
            }
            let rate_count: usize = RATES.iter().map(|rate| expression.matches(rate).count()).sum();
            assert_eq!(rate_count, expression.matches('[').count(), "{place}: a rate without a range");
            for quantile in expression.split("histogram_quantile(").skip(1) {
                let sum = quantile.split_once(',').unwrap().1.trim_start();
                assert!(sum.starts_with("sum by (le)") || sum.starts_with("sum by (le, "), "{place}");
            }
        }
    }
    assert!(checked_count > 50, "only {checked_count} ranges were seen");
}

#[test]
fn every_counter_is_shown_as_a_rate_or_an_increase() {
    let metrics = metrics_of_the_program();
    for dashboard in dashboards() {
        for (place, expression) in dashboard.expressions() {
            for (name, labels) in selectors(expression) {
                let is_counter =
                    name.ends_with("_total") || HISTOGRAM_SUFFIXES.iter().any(|s| name.ends_with(s));
                let is_ours =
                    name.strip_prefix(PREFIX).is_some_and(|name| metric_of(name, &metrics).is_some());
                if is_counter && is_ours {
                    let selector = format!("{name}{{{labels}}}[$__rate_interval]");
                    let is_rated =
                        ["rate(", "increase("].iter().any(|f| expression.contains(&format!("{f}{selector}")));
                    assert!(is_rated, "{place}: {name}");
                }
            }
        }
    }
}

/// x, y, width and height in the grid of 24 columns.
fn place(panel: &Value) -> [u64; 4] {
    ["x", "y", "w", "h"]
        .map(|side| panel.pointer(&format!("/gridPos/{side}")).and_then(Value::as_u64).unwrap())
}

#[test]
fn no_panel_stands_on_another() {
    for dashboard in dashboards() {
        let mut placed: Vec<(&str, [u64; 4])> = Vec::new();
        for panel in dashboard.panels() {
            let [x, y, w, h] = place(panel);
            assert!(w > 0 && h > 0 && x + w <= 24, "{}: {}", dashboard.name, text(panel, "/title"));
            for (other, [ox, oy, ow, oh]) in &placed {
                let is_apart = x + w <= *ox || ox + ow <= x || y + h <= *oy || oy + oh <= y;
                assert!(is_apart, "{}: {} stands on {other}", dashboard.name, text(panel, "/title"));
            }
            placed.push((text(panel, "/title"), [x, y, w, h]));
        }
    }
}

#[test]
fn a_correlation_leads_to_its_trace() {
    let compliance = dashboards().into_iter().find(|dashboard| dashboard.name == "compliance").unwrap();
    assert!(!text(compliance.variable("trace_url").unwrap(), "/query").is_empty());
    let mut link_count = 0;
    for panel in compliance.shown() {
        let sql = list(panel, "/targets").iter().map(|target| text(target, "/rawSql")).collect::<String>();
        for over in list(panel, "/fieldConfig/overrides") {
            let is_of_correlation = text(over, "/matcher/options") == "correlation_id";
            let links = list(over, "/properties").iter().filter(|property| text(property, "/id") == "links");
            for link in links.filter(|_| is_of_correlation).flat_map(|links| list(links, "/value")) {
                link_count += usize::from(text(link, "/url") == "${trace_url:raw}${__data.fields.trace_id}");
                assert!(sql.contains("replace(correlation_id::text, '-', '') AS trace_id"), "{sql}");
            }
        }
    }
    assert_eq!(link_count, 2, "in the failures, and in the events of one correlation");
}

#[test]
fn every_metric_that_a_dashboard_names_exists() {
    let metrics = metrics_of_the_program();
    let mut unknown = BTreeSet::new();
    for dashboard in dashboards() {
        for (place, expression) in dashboard.expressions() {
            let names = names_in(expression).into_iter().filter(|name| metric_of(name, &metrics).is_none());
            unknown.extend(names.map(|name| format!("{PREFIX}{name} in {place}")));
        }
        for variable in list(&dashboard.json, "/templating/list") {
            let names = names_in(text(variable, "/definition"));
            unknown.extend(names.into_iter().filter(|name| metric_of(name, &metrics).is_none()));
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_metric_is_shown_alerted_on_or_documented() {
    let metrics = metrics_of_the_program();
    let mut told = BTreeSet::new();
    for dashboard in dashboards() {
        dashboard.expressions().iter().for_each(|(_, expression)| told.extend(names_in(expression)));
    }
    for path in ["deploy/prometheus/rules.yaml", "docs/METRICS.md"] {
        // Both are optional here: a metric that stands in none of the three is what fails.
        told.extend(names_in(&fs::read_to_string(root().join(path)).unwrap_or_default()));
    }
    let told: BTreeSet<&str> = told
        .iter()
        .filter_map(|name| metric_of(name, &metrics).or_else(|| metrics.contains_key(name).then_some(name)))
        .collect();
    let untold: Vec<&String> = metrics.keys().filter(|name| !told.contains(name.as_str())).collect();
    assert!(untold.is_empty(), "{untold:?}");
}
