//! The figures for a person.

use std::fmt::Write;

use handbell_measure::{Figures, Ratios};

use super::Outcome;
use super::cases::Case;

/// The host, then a row for each case.
pub fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (name, value) in host(outcome) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "{name:<12}{value}");
    }
    let heads = ["p50", "p90", "p99", "p99.9", "max"].map(|head| format!("{head:>10}")).concat();
    let _ = writeln!(
        text,
        "\n{:<21}{:>9} {:<9}{:<14}{heads}  beside, ratio (spread)",
        "ns", "bytes", "wait", "place"
    );
    for case in &outcome.cases {
        let own = Figures::of(&case.times.latency);
        let figures = [own.p50_ns, own.p90_ns, own.p99_ns, own.p999_ns, own.max_ns];
        let figures = figures.map(|ns| format!("{ns:>10}")).concat();
        let _ = write!(
            text,
            "{:<21}{:>9} {:<9}{:<14}{figures}",
            label(case),
            case.payload,
            case.wait_name(),
            case.place
        );
        let _ = writeln!(text, "  {}", beside(case));
    }
    text.push_str("\nA ratio is the median of the rounds' ratios, with the least and the largest.\n");
    text.push_str("Short copies and calls of the memory profile are means of 16 in a row.\n");
    text
}

/// The host's facts by name.
pub fn host(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let facts = &outcome.facts;
    let pinned = match facts.pair {
        Some((caller, worker)) => format!("caller to {caller}, worker to {worker}"),
        None => "no".to_owned(),
    };
    let kind = if facts.virtual_machine { "virtual machine" } else { "machine" };
    let mut rows = vec![
        ("date", facts.date.clone()),
        ("handbell", env!("CARGO_PKG_VERSION").to_owned()),
        ("processor", format!("{}, {} usable, {kind}", facts.cpu, facts.processors.len())),
        ("pinned", pinned),
        ("kernel", facts.kernel.clone()),
        ("governor", facts.governor.clone().unwrap_or_else(|| "not told".to_owned())),
        ("memory", format!("{} MiB", facts.memory_bytes >> 20)),
        ("load", format!("{:.2} before, {:.2} % stolen meanwhile", facts.load, outcome.stolen * 100.0)),
        ("clock", format!("{:.1} ns a reading", facts.clock_ns)),
        ("measured", format!("{:.0} s", outcome.seconds)),
    ];
    rows.extend(outcome.warnings.iter().map(|warning| ("warning", warning.clone())));
    rows
}

/// What a case is called.
pub fn label(case: &Case) -> String {
    if case.touched { case.name.to_owned() } else { "untouched".to_owned() }
}

fn ratio(ratios: Option<Ratios>) -> String {
    ratios.map_or("–".to_owned(), |ratios| {
        format!("{:.2} ({:.2} to {:.2})", ratios.median, ratios.least, ratios.most)
    })
}

/// The limit and what came out beside it.
pub fn beside(case: &Case) -> String {
    let times = &case.times;
    let Some(limit) = case.limit else { return "–".to_owned() };
    let mut text = if case.is_stream {
        let per_s = times.limit_per_s.unwrap_or(0.0);
        let own = times.per_s;
        format!("{own:.0}/s; {limit} {per_s:.0}/s, {}", ratio(case.ratio_per_s))
    } else {
        let figures = times.limit.as_ref().map(Figures::of);
        let p50 = figures.map_or(0, |figures| figures.p50_ns);
        format!("{limit} {p50}, {}; p99 {}", ratio(times.ratio), ratio(times.ratio_p99))
    };
    if case.is_stream
        && let Some(evenness) = times.evenness
    {
        let _ = write!(text, "; slowest {evenness:.2} of the fastest");
    }
    if let Some(bytes) = case.memory_per_worker_bytes {
        let _ = write!(text, "; {} KiB an idle worker", bytes >> 10);
    }
    text
}
