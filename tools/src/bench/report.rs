//! The figures as one page that needs nothing else: percentile curves, latency against payload size, all cases,
//! the host's facts.

use std::fmt::Write;

use handbell::Waiting;
use handbell_measure::{Figures, Latency};

use super::Outcome;
use super::cases::{ANYWHERE, APART, Case, TOGETHER};
use super::chart::{Axis, Line, escaped, figure, time};
use super::table::{beside, host, label};

const STYLE: &str = include_str!("report.css");
const ROUND_TRIP: &str = "handoff_round_trip";
const AFTER_QUIET: &str = "handoff_after_quiet";
const SMALL: usize = 64;

/// The page.
pub fn page(outcome: &Outcome) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><title>Handbell: hand-offs on this machine</title>\n\
         <style>\n{STYLE}</style></head>\n<body><main>\n<h1>Hand-offs on this machine</h1>\n"
    );
    // Writing to a string cannot fail, here and below.
    for warning in &outcome.warnings {
        let _ = writeln!(page, "<p class=\"warning\">{}</p>", escaped(warning));
    }
    page.push_str(
        "<p>From handing in a request to having its checked reply, through the public calls, with a deadline and \
         the caller’s id on each. Dashed: what the machine charges for the same cache lines, wake-ups or bytes \
         without an engine, measured in turns with it.</p>\n",
    );
    let cases = &outcome.cases;
    let small = |place: &'static str, busy: bool| {
        let is_busy = |case: &Case| case.wait != Some(Waiting::Block);
        cases.iter().filter(move |case| {
            (case.name, case.payload, case.place, case.touched) == (ROUND_TRIP, SMALL, place, true)
                && is_busy(case) == busy
        })
    };
    page.push_str("<h2>64 bytes, there and back</h2>\n");
    page.push_str(&curves("On two processors, always looking", small(APART, true)));
    page.push_str(&curves("On two processors, asleep each time", small(APART, false)));
    let quiet = cases.iter().filter(|case| case.name == AFTER_QUIET);
    page.push_str(&curves("On two processors, after 10 ms of quiet", quiet));
    let together = small(TOGETHER, true).chain(small(TOGETHER, false));
    page.push_str(&curves("Both sides on one processor", together));
    page.push_str(&curves("Unpinned, always looking", small(ANYWHERE, true)));
    page.push_str("<h2>Larger payloads</h2>\n");
    page.push_str(&sizes(cases));
    page.push_str("<h2>All cases</h2>\n");
    page.push_str(&table(cases));
    page.push_str("<h2>The host</h2>\n<dl>");
    for (name, value) in host(outcome).iter().filter(|(name, _)| *name != "warning") {
        let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", escaped(value));
    }
    page.push_str("</dl>\n</main></body></html>\n");
    page
}

/// Percentile curves of cases and of their limits, each limit once.
fn curves<'a>(title: &str, cases: impl Iterator<Item = &'a Case>) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for case in cases {
        if let (Some(limit), Some(times)) = (case.limit, &case.times.limit)
            && lines.iter().all(|line| line.name != limit)
        {
            lines.push(curve(limit, true, times));
        }
        lines.push(curve(case.wait_name(), false, &case.times.latency));
    }
    // A limit that is a case itself has one line.
    let names: Vec<String> =
        lines.iter().filter(|line| !line.is_limit).map(|line| line.name.clone()).collect();
    lines.retain(|line| !line.is_limit || !names.iter().any(|name| line.name.starts_with(name.as_str())));
    let ticks = [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
    let ticks = ticks.map(|(quantile, label)| (nines(quantile), label.to_owned())).into();
    figure(title, &Axis { name: "so many are at most this long", ticks }, "time", &lines)
}

/// Where a quantile stands: 90 % at 1, 99 % at 2, and so on.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn curve(name: &str, is_limit: bool, times: &Latency) -> Line {
    // Beyond this there are less than ten samples.
    let last = ((times.len() as f64 / 10.0).log10() * 20.0).clamp(1.0, 80.0) as u32;
    let point = |step: u32| {
        let nines = f64::from(step) / 20.0;
        let ns = times.value_at_quantile(1.0 - 10_f64.powf(-nines)).max(1);
        (nines, (ns as f64).log10())
    };
    Line { name: name.to_owned(), is_limit, points: (1..=last).map(point).collect() }
}

/// Median times against the payload's size.
fn sizes(cases: &[Case]) -> String {
    let line = |name: &str, is_limit: bool, of: &dyn Fn(&Case) -> Option<u64>| {
        let log = |value: usize| (value as f64).log10();
        let point = |case: &Case| Some((log(case.payload), (of(case)?.max(1) as f64).log10()));
        let mut points: Vec<(f64, f64)> = cases.iter().filter_map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { name: name.to_owned(), is_limit, points }
    };
    let is_ours = |case: &Case| {
        case.name == ROUND_TRIP && case.wait == Some(Waiting::Adaptive) && case.place != ANYWHERE
    };
    // On one processor alone where there is no other.
    let has_two = cases.iter().any(|case| case.place == APART);
    let is_here = move |case: &Case| has_two == (case.place == APART);
    let p50 = |times: &Latency| Figures::of(times).p50_ns;
    let touched =
        |case: &Case| (is_ours(case) && is_here(case) && case.touched).then(|| p50(&case.times.latency));
    let limit = |case: &Case| touched(case).and(case.times.limit.as_ref().map(p50));
    let untouched =
        |case: &Case| (is_ours(case) && is_here(case) && !case.touched).then(|| p50(&case.times.latency));
    let memcpy =
        |case: &Case| (case.name == "memcpy" && case.payload > SMALL).then(|| p50(&case.times.latency));
    let lines = [
        line("written, copied by the worker, read", false, &touched),
        line("two lines, or two writes and two reads, bare", true, &limit),
        line("loaned, untouched", false, &untouched),
        line("one copy in this process", true, &memcpy),
    ];
    let ticks =
        [(64.0, "64"), (1024.0, "1 KiB"), (16_384.0, "16 KiB"), (65_536.0, "64 KiB"), (1_048_576.0, "1 MiB")];
    let ticks = ticks.map(|(bytes, label): (f64, &str)| (bytes.log10(), label.to_owned())).into();
    figure("Median round trip against payload size", &Axis { name: "payload, bytes", ticks }, "time", &lines)
}

fn table(cases: &[Case]) -> String {
    let mut table = String::from(
        "<div class=\"wide\"><table><thead><tr><th>case</th><th>bytes</th><th>waiting</th><th>place</th><th>p50</th>\
         <th>p90</th><th>p99</th><th>p99.9</th><th>max</th><th>beside, ratio (spread)</th></tr></thead>\n<tbody>",
    );
    for case in cases {
        let own = Figures::of(&case.times.latency);
        let _ = write!(
            table,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            escaped(&label(case)),
            case.payload,
            case.wait_name(),
            case.place
        );
        for ns in [own.p50_ns, own.p90_ns, own.p99_ns, own.p999_ns, own.max_ns] {
            let _ = write!(table, "<td>{}</td>", time(ns as f64));
        }
        let _ = writeln!(table, "<td>{}</td></tr>", escaped(&beside(case)));
    }
    table.push_str("</tbody></table></div>\n");
    table
}
