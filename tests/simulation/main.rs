//! The engine's books beside a model, over random histories: REPLY-02, -03, -05 to -09, HANDOFF-03, HANDOFF-D,
//! ORDER-01, RESTART-02, LEDGER-01, LEDGER-02. No process and no clock: a history is its seed.
//!
//! ```text
//! HANDBELL_SIMULATION_HISTORIES=1000000 cargo test --release --test simulation -- --nocapture
//! HANDBELL_SIMULATION_SEED=4711 cargo test --test simulation -- --nocapture
//! ```
//!
//! The first runs so many (usually 10,000); the second runs one, and prints it. A history that fails prints its
//! seed, and what was done up to the first step after which the books and the model differ.

mod history;
mod model;
mod numbers;
mod run;
mod workers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use handbell::Counters;
use history::History;
use run::Seen;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// A history whose books and model agree, with its log.
fn agreed(seed: u64) -> History {
    let mut history = History::new(seed);
    let run = catch_unwind(AssertUnwindSafe(|| history.run()));
    if !matches!(run, Ok(Ok(()))) {
        eprintln!("{}", history.log);
        let why = run.map_or_else(|_| "it panicked".to_owned(), |step| step.expect_err("it differs"));
        panic!("seed {seed}, step {}: {why}", history.steps);
    }
    history
}

fn seeds() -> std::ops::Range<u64> {
    match number_from("HANDBELL_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("HANDBELL_SIMULATION_HISTORIES").unwrap_or(10_000),
    }
}

#[test]
fn ledger_01_random_histories_are_those_of_the_model() {
    let (begin, seeds) = (Instant::now(), seeds());
    let is_one = seeds.end - seeds.start == 1;
    let (mut steps, mut bytes, mut sum, mut seen) = (0, 0, Counters::default(), Seen::default());
    for seed in seeds.clone() {
        let history = agreed(seed);
        steps += history.steps;
        bytes += history.log.len();
        sum = sum + history.counters();
        seen = seen + history.model.seen;
        if is_one {
            println!("{}", history.log);
        }
    }
    let took = begin.elapsed();
    println!("seeds {seeds:?}: {steps} steps, {} MB of log, {took:.1?}", bytes >> 20);
    for (name, count) in sum.rows().filter(|(name, _)| *name != "misrouted").chain(seen.rows()) {
        println!("{name:>24}: {count}");
        // Refusals by a worker are told from other errors by the payload, which the books do not read.
        let histories = seeds.end - seeds.start;
        assert!(histories < 10_000 || count > histories / 1000, "{name}: the histories are too tame");
    }
}

#[test]
fn ledger_02_the_same_seed_gives_the_same_bytes() {
    // One in ten, because each runs twice.
    for seed in seeds().step_by(10) {
        assert_eq!(agreed(seed).log, agreed(seed).log, "seed {seed}");
    }
}
