//! `handbell bench`: what a hand-off costs on this machine, beside what the machine itself charges.
//!
//! Each case takes turns with its limit, in rounds of some ten milliseconds, so that what the host does to one it
//! does to both; a ratio is the median of the rounds' ratios.

mod cases;
mod chart;
mod json;
pub mod nodes;
mod report;
mod subjects;
mod table;

use std::io::Write;
use std::time::Duration;

use clap::Args;
use handbell::App;
use handbell_measure::{Facts, Meter};

use crate::exit::{Exit, Problem};
use crate::output::{Sink, Standard, write_problem};
use cases::{Bench, Case};

const QUICK: Duration = Duration::from_secs(8);

const ABOUT: &str = "Measures what a hand-off to a worker process costs on this machine, through the calls that every \
program has, beside what the machine itself charges for the same cache lines, wake-ups and bytes. Both take turns of \
some ten milliseconds; a ratio is the median of all rounds' ratios, with the least and the largest.

Every request has a deadline and an id of the caller's, and every reply is checked, outside the time that counts. \
Cases: 64 bytes there and back, by each way of waiting, on two processors, on one, and unpinned; after 10 ms of \
quiet; large payloads, untouched and written and read, through one group and through two; a window of 64 in flight; \
four threads; one of 64 workers; the memory profile.

Virtual machines and processors shared with others spoil figures: what is seen of that is told as warnings.";

const EXAMPLES: &str = "EXAMPLES
  handbell bench                                 a table, in about a minute
  handbell bench --quick --json                  one JSON object, in under 20 seconds
  handbell bench --seconds 600 --report all.html ten minutes, and a page to look at";

fn more_help() -> String {
    format!("{EXAMPLES}\n\n{}", Exit::help())
}

/// How to measure.
#[derive(Args, Debug)]
#[command(long_about = ABOUT, after_help = more_help())]
pub struct BenchArgs {
    /// Take under 20 seconds in all; the figures are coarser
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// About how long to measure; starting and ending workers comes on top
    ///
    /// Every case is measured in five rounds at least, whatever this is.
    #[arg(
        long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400)
    )]
    seconds: u32,
    /// Print one JSON object in place of the table: the host's facts and all cases
    #[arg(long)]
    json: bool,
    /// Also write a page with percentile curves, latency against payload size, and the host's facts
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
}

/// What there is to show.
struct Outcome {
    facts: Facts,
    warnings: Vec<String>,
    stolen: f64,
    seconds: f64,
    cases: Vec<Case>,
}

/// Measures, and shows the figures.
pub fn run(app: &App, args: &BenchArgs) -> Exit {
    match measure_and_show(app, args) {
        Ok(()) => Exit::Success,
        Err(problem) => problem.tell(),
    }
}

fn measure_and_show(app: &App, args: &BenchArgs) -> Result<(), Problem> {
    // Before anything is measured in vain.
    let report = args.report.as_deref().map(|name| Sink::open_as("report", name, None)).transpose()?;
    let outcome = measure(app, args)?;
    if let Some(mut sink) = report {
        let page = report::page(&outcome);
        let written = sink.writer.write_all(page.as_bytes()).and_then(|()| sink.writer.flush());
        written.map_err(|error| sink.problem(&error))?;
    }
    let text = if args.json { format!("{}\n", json::object(&outcome)) } else { table::text(&outcome) };
    let written = Standard(std::io::stdout()).write_all(text.as_bytes());
    written.map_err(|error| write_problem("-", &error))
}

fn measure(app: &App, args: &BenchArgs) -> Result<Outcome, Problem> {
    let facts = Facts::now();
    let mut warnings = facts.warnings();
    // With standard error gone there is nobody left to tell; the figures have the same words.
    let tell = |line: &str| {
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    warnings.iter().for_each(|warning| tell(&format!("warning: {warning}")));
    let total = if args.quick { QUICK } else { Duration::from_secs(args.seconds.into()) };
    let (meter, begin) = (Meter::start(), std::time::Instant::now());
    let cases = Bench::start(app, facts.pair, total)?.run(|group| tell(&format!("measuring: {group}")))?;
    if let Some(warning) = meter.warning() {
        tell(&format!("warning: {warning}"));
        warnings.push(warning);
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Outcome { facts, warnings, stolen: meter.stolen(), seconds, cases })
}
