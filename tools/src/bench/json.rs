//! The figures for a program: one object.

use handbell_measure::{Figures, Ratios};
use serde_json::{Map, Value, json};

use super::Outcome;
use super::cases::Case;

/// The host's facts and all cases.
pub fn object(outcome: &Outcome) -> Value {
    let facts = &outcome.facts;
    let pair = facts.pair.map(|(caller, worker)| [caller, worker]);
    json!({
        "host": {
            "date": facts.date,
            "handbell": env!("CARGO_PKG_VERSION"),
            "cpu": facts.cpu,
            "processors": facts.processors,
            "pinned_to": pair,
            "pinned_to_one_core": facts.pair_is_one_core,
            "kernel": facts.kernel,
            "virtual_machine": facts.virtual_machine,
            "governor": facts.governor,
            "memory_bytes": facts.memory_bytes,
            "load": facts.load,
            "clock_ns": rounded(facts.clock_ns),
            "debug_build": facts.debug_build,
            "stolen_share": outcome.stolen,
            "seconds": rounded(outcome.seconds),
            "warnings": outcome.warnings,
        },
        "cases": outcome.cases.iter().map(case).collect::<Vec<_>>(),
    })
}

/// Fields that a case does not have are null, so that every case has the same; rates are for streams only.
fn case(case: &Case) -> Value {
    let times = &case.times;
    let own = Figures::of(&times.latency);
    let limit = times.limit.as_ref().map(Figures::of);
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    put("name", case.name.into());
    put("payload", case.payload.into());
    put("wait", case.wait_name().into());
    put("pinned", case.is_pinned().into());
    put("place", case.place.into());
    put("touched", case.touched.into());
    put("rounds", times.rounds.into());
    put("samples", own.samples.into());
    put("p50_ns", own.p50_ns.into());
    put("p90_ns", own.p90_ns.into());
    put("p99_ns", own.p99_ns.into());
    put("p999_ns", own.p999_ns.into());
    put("max_ns", own.max_ns.into());
    put("limit", case.limit.into());
    put("limit_p50_ns", limit.map(|limit| limit.p50_ns).into());
    put("limit_p99_ns", limit.map(|limit| limit.p99_ns).into());
    put_ratios(&mut put, "ratio_p50", times.ratio);
    put_ratios(&mut put, "ratio_p99", times.ratio_p99);
    if case.is_stream {
        put("per_s", times.per_s.round().into());
        put("limit_per_s", times.limit_per_s.map(f64::round).into());
        put_ratios(&mut put, "ratio_per_s", case.ratio_per_s);
        if let Some(evenness) = times.evenness {
            put("slowest_of_fastest", rounded(evenness).into());
        }
    }
    if let Some(bytes) = case.memory_per_worker_bytes {
        put("memory_per_worker_bytes", bytes.into());
    }
    Value::Object(object)
}

fn put_ratios(put: &mut impl FnMut(&str, Value), name: &str, ratios: Option<Ratios>) {
    put(name, ratios.map(|ratios| rounded(ratios.median)).into());
    put(&format!("{name}_least"), ratios.map(|ratios| rounded(ratios.least)).into());
    put(&format!("{name}_most"), ratios.map(|ratios| rounded(ratios.most)).into());
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
