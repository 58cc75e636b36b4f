//! What a run came to, as text for a person and as JSON for a program. Says the same in both.

use std::fmt::{Display, Write};
use std::time::Duration;

use handbell::{Counters, GroupSummary, StopMode, Waiting, WorkerStop};
use serde_json::{Map, Value, json};

use crate::demo::Tally;
use crate::exit::{Exit, Problem};
use crate::load_limits::policy::Rules;
use crate::side::{Latency, Ledger, Manner, Restarts, Side};

/// Everything that is shown of a run.
pub struct Summary {
    /// How lines were decided.
    pub manner: Manner,
    /// Where the lines came from.
    pub input: String,
    /// Where the decisions went.
    pub output: Option<String>,
    /// The lines.
    pub tally: Tally,
    /// The whole stream, waiting for its input included.
    pub took: Duration,
    /// The profiles that ran.
    pub sides: Vec<SideSummary>,
}

/// What is shown of one profile.
pub struct SideSummary {
    profile: &'static str,
    started: handbell::Summary,
    stream: Option<Percentiles>,
    alone: Option<Percentiles>,
    ledger: Ledger,
    /// How its workers ended.
    pub stops: Vec<WorkerStop>,
    /// Successors of dead workers.
    pub restarts: Restarts,
}

impl SideSummary {
    /// What is known before the engine is stopped.
    pub fn new(side: &Side, ledger: Ledger, stream: &Latency, alone: &Latency) -> Self {
        Self {
            profile: side.profile().name(),
            started: side.engine().summary().clone(),
            stream: Percentiles::of(stream),
            alone: Percentiles::of(alone),
            ledger,
            stops: Vec::new(),
            restarts: Restarts::new(),
        }
    }
}

/// Of hand-off times, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Percentiles {
    count: u64,
    p50: u64,
    p99: u64,
    p99_9: u64,
    max: u64,
}

impl Percentiles {
    /// None of nothing.
    fn of(latency: &Latency) -> Option<Self> {
        let [p50, p99, p99_9] = [0.5, 0.99, 0.999].map(|quantile| latency.value_at_quantile(quantile));
        let (count, max) = (latency.len(), latency.max());
        (count > 0).then_some(Self { count, p50, p99, p99_9, max })
    }

    fn json(self) -> Value {
        let Self { count, p50, p99, p99_9, max } = self;
        json!({"count": count, "p50_ns": p50, "p99_ns": p99, "p999_ns": p99_9, "max_ns": max})
    }
}

impl Summary {
    /// Whether the profiles decided the same; none if only one ran.
    pub fn identical(&self) -> Option<bool> {
        (self.sides.len() > 1).then_some(self.tally.different == 0)
    }

    /// What is wrong with the run, if anything is.
    pub fn verdict(&self) -> Result<(), Problem> {
        if let Some(line) = self.tally.first_different {
            let rule = format!("both profiles must decide the same; line {line} is the first that differs");
            return Err(Problem::field(Exit::Difference, "identical", "no", rule));
        }
        match self.sides.iter().find(|side| !side.ledger.balances()) {
            Some(side) => {
                let rule = format!("every request must be accounted for, in profile {} too", side.profile);
                Err(Problem::field(Exit::Ledger, "ledger balance", "off", rule))
            }
            None => Ok(()),
        }
    }

    fn rules(&self) -> &'static str {
        match self.manner.options.rules {
            Rules::Baseline => "baseline",
            Rules::Experiment => "experiment",
        }
    }

    fn waiting(&self) -> &'static str {
        match self.manner.waiting {
            Waiting::Spin => "spin",
            Waiting::Adaptive => "adaptive",
            Waiting::Block => "block",
        }
    }

    fn lines_per_second(&self) -> f64 {
        let seconds = self.took.as_secs_f64();
        if seconds > 0.0 { self.tally.lines as f64 / seconds } else { 0.0 }
    }

    /// For a program: one object, without a newline.
    pub fn json(&self) -> Value {
        let tally = &self.tally;
        json!({
            "rules": self.rules(),
            "reasons": self.manner.options.reasons,
            "input": self.input,
            "output": self.output,
            "ingress_processes": self.manner.ingress,
            "split_ms": self.manner.options.split_ms,
            "restart": if self.manner.restarts { "on_failure" } else { "never" },
            "waiting": self.waiting(),
            "window": self.manner.window,
            "deadline_ms": self.manner.deadline.as_millis() as u64,
            "engine_pid": std::process::id(),
            "lines": tally.lines,
            "input_bytes": tally.input_bytes,
            "too_long": tally.too_long,
            "accepted": tally.accepted,
            "declined": tally.declined,
            "reply_bytes": tally.reply_bytes,
            "identical": self.identical(),
            "different": tally.different,
            "first_different_line": tally.first_different,
            "elapsed_ns": u64::try_from(self.took.as_nanos()).unwrap_or(u64::MAX),
            "lines_per_second": self.lines_per_second().round(),
            "profiles": self.sides.iter().map(SideSummary::json).collect::<Vec<_>>(),
        })
    }

    /// For a person.
    pub fn text(&self) -> String {
        let mut text = format!("Handbell: load limits, {} rules\n\n", self.rules());
        let mut row = |name: &str, value: &dyn Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<12}{value}");
        };
        let tally = &self.tally;
        if let Some(side) = self.sides.first() {
            let groups = side.started.groups.iter();
            let plan: Vec<String> =
                groups.map(|group| format!("{} ({})", group.name, group.nodes.join(" → "))).collect();
            row("plan", &plan.join(" → "));
        }
        row("engine", &format!("pid {}, waiting {}", std::process::id(), self.waiting()));
        for side in &self.sides {
            row("profile", &side.place());
            for group in &side.started.groups {
                row("", &side.group(group));
            }
            row("", &side.hops());
            if !side.restarts.is_empty() {
                row("", &side.reruns());
            }
        }
        let too_long = match tally.too_long {
            0 => String::new(),
            count => format!(", {} too long for an engine", grouped(count)),
        };
        let input = format!("{}, {} bytes{too_long}", self.input, grouped(tally.input_bytes));
        row("input", &input);
        row("lines", &grouped(tally.lines));
        row("accepted", &grouped(tally.accepted));
        row("declined", &grouped(tally.declined));
        let output = match self.output.as_deref() {
            None => "only counted",
            Some("-") => "standard output",
            Some(name) => name,
        };
        row("decisions", &format!("{} bytes, {output}", grouped(tally.reply_bytes)));
        let throughput = self.lines_per_second() as u64;
        let side_by_side = if self.sides.len() > 1 { ", both profiles side by side" } else { "" };
        let took = format!("{} lines/s ({:.3?} in all{side_by_side})", grouped(throughput), self.took);
        row("throughput", &took);
        self.write_latency(&mut text);
        self.write_ledger(&mut text);
        let _ = match self.identical() {
            None => writeln!(text, "identical   not compared: one profile ran"),
            Some(true) => {
                writeln!(
                    text,
                    "identical   yes: both profiles gave the same {} replies",
                    grouped(tally.lines)
                )
            }
            Some(false) => writeln!(text, "identical   NO: {} lines differ", grouped(tally.different)),
        };
        text
    }

    fn write_latency(&self, text: &mut String) {
        let heads = ["p50", "p99", "p99.9", "max"].map(|head| format!("{head:>11}")).concat();
        let _ = writeln!(text, "\n{:<34}{heads}", "hand-off to reply taken, µs");
        for side in &self.sides {
            let window = format!("window {}", self.manner.window);
            for (name, figures) in [(window.as_str(), side.stream), ("one at a time", side.alone)] {
                let name = format!("{}, {name}", side.profile);
                let figures = figures.map_or(format!("{:>11}", "none"), |found| {
                    let figures = [found.p50, found.p99, found.p99_9, found.max];
                    figures.map(|ns| format!("{:>11.2}", ns as f64 / 1000.0)).concat()
                });
                let _ = writeln!(text, "  {name:<32}{figures}");
            }
        }
        if self.manner.window > 1 {
            let _ =
                writeln!(text, "  (with a window, time in the queue behind the lines before is included)");
        }
    }

    fn write_ledger(&self, text: &mut String) {
        let heads: String = self.sides.iter().map(|side| format!("{:>20}", side.profile)).collect();
        let _ = writeln!(text, "\n{:<25}{heads}", "ledger");
        let mut row = |name: &str, value: &dyn Fn(&SideSummary) -> String| {
            let values: String = self.sides.iter().map(|side| format!("{:>20}", value(side))).collect();
            let _ = writeln!(text, "  {name:<23}{values}");
        };
        if let Some(side) = self.sides.first() {
            for (index, (name, _)) in side.ledger.counters.rows().enumerate() {
                row(name, &|side| {
                    side.ledger.counters.rows().nth(index).map_or(String::new(), |(_, count)| grouped(count))
                });
            }
        }
        row("in_flight", &|side| grouped(side.ledger.in_flight));
        row("balance", &|side| if side.ledger.balances() { "exact" } else { "OFF" }.to_owned());
        text.push('\n');
    }
}

impl SideSummary {
    fn place(&self) -> String {
        if self.started.worker_pids.is_empty() {
            return format!("{}, all in the engine's process", self.profile);
        }
        let mapped = grouped(self.started.mapped_bytes as u64);
        format!("{}, {mapped} bytes shared in {} lanes", self.profile, self.started.worker_pids.len())
    }

    fn group(&self, group: &GroupSummary) -> String {
        let name = format!("{:<9}", group.name);
        if group.worker_pids.is_empty() {
            let states = if group.processes == 1 { "state" } else { "states" };
            return format!("{name}{} {states}", group.processes);
        }
        let stops = self.stops.iter().filter(|stop| stop.group == group.name);
        // As they were at the end: a successor stands in the place of who died.
        let workers: Vec<String> =
            stops.map(|stop| format!("{} (stopped: {})", stop.pid, mode(stop.mode))).collect();
        let pids = if workers.len() == 1 { "worker pid" } else { "worker pids" };
        let restarts = match self.restarts.get(&group.name) {
            None => String::new(),
            Some(1) => ", restarted once".into(),
            Some(count) => format!(", restarted {count} times"),
        };
        format!("{name}{pids} {}{restarts}", workers.join(", "))
    }

    /// Crossings into groups.
    fn hops(&self) -> String {
        let counters = &self.ledger.counters;
        let (registered, forwarded) = (counters.registered, counters.forwarded);
        let all = grouped(registered + forwarded);
        format!(
            "{:<9}{all}: {} from the caller, {} from group to group",
            "hops",
            grouped(registered),
            grouped(forwarded)
        )
    }

    /// What the successors of dead workers were given.
    fn reruns(&self) -> String {
        let Counters { taken_back, replayed_output_drop, .. } = self.ledger.counters;
        format!(
            "{:<9}{} given to successors, {} outputs that had gone on before not repeated",
            "reruns",
            grouped(taken_back),
            grouped(replayed_output_drop)
        )
    }

    fn json(&self) -> Value {
        let counters: Map<String, Value> =
            self.ledger.counters.rows().map(|(name, count)| (name.to_owned(), count.into())).collect();
        let group = |group: &GroupSummary| {
            json!({
                "name": group.name,
                "nodes": group.nodes,
                "processes": group.processes,
                "worker_pids": group.worker_pids,
                "restarts": self.restarts.get(&group.name).copied().unwrap_or(0),
            })
        };
        let stop = |stop: &WorkerStop| json!({"pid": stop.pid, "group": stop.group, "mode": mode(stop.mode)});
        let (registered, forwarded) = (self.ledger.counters.registered, self.ledger.counters.forwarded);
        json!({
            "profile": self.profile,
            "groups": self.started.groups.iter().map(group).collect::<Vec<_>>(),
            "mapped_bytes": self.started.mapped_bytes,
            "hops": {"from_caller": registered, "from_group_to_group": forwarded},
            "handoff": self.stream.map(Percentiles::json),
            "handoff_one_at_a_time": self.alone.map(Percentiles::json),
            "counters": counters,
            "in_flight": self.ledger.in_flight,
            "balances": self.ledger.balances(),
            "stops": self.stops.iter().map(stop).collect::<Vec<_>>(),
        })
    }
}

fn mode(mode: StopMode) -> &'static str {
    match mode {
        StopMode::Graceful => "graceful",
        StopMode::Forced => "forced",
    }
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load_limits::Options;

    #[test]
    fn numbers_are_grouped() {
        let shown = [0, 999, 1000, 12_345, 1_000_000].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "1,000,000"]);
    }

    fn summary(tally: Tally) -> Summary {
        Summary {
            manner: Manner {
                options: Options { rules: Rules::Baseline, reasons: false, max_ids: None, split_ms: None },
                ingress: 1,
                restarts: false,
                window: 1,
                deadline: Duration::from_secs(5),
                drain: Duration::ZERO,
                waiting: Waiting::Adaptive,
            },
            input: "bundled sample".into(),
            output: None,
            tally,
            took: Duration::ZERO,
            sides: Vec::new(),
        }
    }

    #[test]
    fn a_difference_has_an_exit_of_its_own() {
        let tally = Tally { different: 2, first_different: Some(7), ..Tally::default() };
        let problem = summary(tally).verdict().unwrap_err();
        assert_eq!(problem.exit, Exit::Difference);
        assert!(problem.message.contains("line 7"), "{}", problem.message);
        assert!(summary(Tally::default()).verdict().is_ok());
    }
}
