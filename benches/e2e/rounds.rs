//! Figures by case and round: what is compared is always of the same round, and told as the median of the rounds.

use serde_json::{Map, Value, json};

use crate::daemon::Figures;

/// The figures of some cases, a row a case, in the order in which they were first added.
#[derive(Debug, Default)]
pub(crate) struct Rounds(Vec<(String, Vec<Figures>)>);

impl Rounds {
    /// Adds the figures of this round.
    pub(crate) fn add(&mut self, case: &str, figures: Figures) {
        println!("   {case}: {:.0}/s", figures.per_second);
        match self.0.iter_mut().find(|(name, _)| name == case) {
            Some((_, rounds)) => rounds.push(figures),
            None => self.0.push((case.to_owned(), vec![figures])),
        }
    }

    fn of(&self, case: &str) -> &[Figures] {
        self.0.iter().find(|(name, _)| name == case).map_or(&[], |(_, rounds)| rounds)
    }

    /// The median rate of a case.
    pub(crate) fn rate(&self, case: &str) -> Option<f64> {
        median(self.of(case).iter().map(|figures| figures.per_second).collect())
    }

    /// The median of the rounds' ratios of two cases; `None` where one was not measured.
    fn ratio(&self, case: &str, base: &str) -> Option<f64> {
        let ratios =
            self.of(case).iter().zip(self.of(base)).map(|(own, base)| own.per_second / base.per_second);
        median(ratios.collect())
    }

    /// Prints the cases as a table with their ratios to `bases`; returns the same for programs.
    pub(crate) fn report(&self, title: &str, bases: &[&str]) -> Value {
        println!("\n{title}");
        let ratios: String = bases.iter().map(|base| format!("{:>21}", format!("of {base}"))).collect();
        println!(
            "{:<28} {:>10}{ratios} {:>22} {:>7} {:>9} {:>6}",
            "", "/s", "us client/broker/db", "MiB", "WAL bytes", "even"
        );
        let mut cases = Map::new();
        for (name, rounds) in &self.0 {
            let figure =
                |of: fn(&Figures) -> f64| median(rounds.iter().map(of).collect()).unwrap_or_default();
            let [rate, client, broker] =
                [figure(|f| f.per_second), figure(|f| f.client_us), figure(|f| f.broker_us)];
            let [database, wal, catch_up] =
                [figure(|f| f.database_us), figure(|f| f.wal_bytes), figure(|f| f.catch_up_per_second)];
            let evenness = figure(|figures| figures.evenness);
            let peak = rounds.iter().map(|figures| figures.peak_mib).fold(0.0, f64::max);
            let of_bases: Vec<Option<f64>> = bases.iter().map(|base| self.ratio(name, base)).collect();
            let shown: String = of_bases
                .iter()
                .map(|ratio| format!("{:>21}", ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))))
                .collect();
            let cpu = format!("{client:.1} / {broker:.1} / {database:.1}");
            println!("{name:<28} {rate:>10.0}{shown} {cpu:>22} {peak:>7.0} {wal:>9.0} {evenness:>6.2}");
            let mut case = json!({
                "per_second": rate.round(), "client_us": rounded(client), "broker_us": rounded(broker),
                "database_us": rounded(database), "wal_bytes": wal.round(), "peak_rss_mib": peak.round(),
                "evenness": rounded(evenness),
                "rounds_per_second": rounds.iter().map(|figures| figures.per_second.round()).collect::<Vec<_>>(),
            });
            for (base, ratio) in bases.iter().zip(of_bases) {
                case[format!("of_{}", key(base))] = json!(ratio.map(rounded));
            }
            if catch_up > 0.0 {
                println!("{:<28} {catch_up:>10.0}/s to catch up", "");
                case["catch_up_per_second"] = json!(catch_up.round());
            }
            cases.insert(key(name), case);
        }
        Value::Object(cases)
    }
}

/// A name as a key of the report: letters, digits and underscores.
fn key(name: &str) -> String {
    let key: String = name.chars().map(|own| if own.is_ascii_alphanumeric() { own } else { '_' }).collect();
    key.trim_matches('_').to_owned()
}

pub(crate) fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}
