//! `handbell demo`: the load-limits plan over a stream of lines, in one profile or in both side by side.
//!
//! Memory is bounded by the window and the longest line, however long the input: with two profiles, each line
//! goes to both engines, and each pair of replies is compared as it is taken.
//!
//! Decided lines are written before the run waits for anything that may take long, and before it ends,
//! however it ends.

use std::io::Write;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use handbell::{App, Profile};

use crate::exit::{Exit, Problem};
use crate::input::{self, Event, Source};
use crate::load_limits::Options;
use crate::load_limits::policy::Rules;
use crate::output::{Sink, write_problem};
use crate::side::{Manner, Side};
use crate::summary::{SideSummary, Summary};

/// Lines kept for the hand-offs one at a time, and how many of those are made.
const KEPT_LINES: usize = 256;
const KEPT_LINE_BYTES: usize = 4096;
const ALONE: usize = 2000;

/// How to run the demonstration.
#[derive(Args, Debug)]
#[command(after_help = Exit::help())]
pub struct DemoArgs {
    /// Lines to decide; - is standard input [default: the bundled sample]
    ///
    /// A line of more than 4,194,304 bytes is answered as one of which nothing can be read.
    #[arg(long, value_name = "FILE|-")]
    input: Option<String>,
    /// Where the decisions go, and nothing else; - is standard output [default: only counted]
    ///
    /// With -, the summary goes to standard error.
    #[arg(long, value_name = "FILE|-")]
    output: Option<String>,
    /// Run only this profile [default: run both and compare]
    #[arg(long)]
    profile: Option<ProfileArg>,
    /// By which rules lines are decided
    #[arg(long, default_value = "baseline")]
    rules: RulesArg,
    /// Say in each declined reply why
    #[arg(long)]
    reasons: bool,
    /// Lines in flight; replies are written in input order whatever it is
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    window: u16,
    /// How long a line may take from being handed in to its reply, in milliseconds
    #[arg(
        long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=86_400_000)
    )]
    deadline_ms: u32,
    /// Print the summary as one JSON object on standard error
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum ProfileArg {
    /// In this process
    Memory,
    /// In a supervised child process
    #[value(name = "process_supervisor")]
    ProcessSupervisor,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum RulesArg {
    /// Attempts and sums alone
    Baseline,
    /// Mondays count double, and prime ids have limits of their own
    Experiment,
}

impl DemoArgs {
    fn options(&self) -> Options {
        let rules = match self.rules {
            RulesArg::Baseline => Rules::Baseline,
            RulesArg::Experiment => Rules::Experiment,
        };
        Options { rules, reasons: self.reasons }
    }

    /// The profile whose decisions are written stands first.
    fn profiles(&self) -> &'static [Profile] {
        match self.profile {
            Some(ProfileArg::Memory) => &[Profile::Memory],
            Some(ProfileArg::ProcessSupervisor) => &[Profile::ProcessSupervisor],
            None => &[Profile::ProcessSupervisor, Profile::Memory],
        }
    }
}

/// Runs the demonstration and prints its summary.
pub fn run(app: &App, args: &DemoArgs) -> Exit {
    let mut demo = match Demo::start(app, args) {
        Ok(demo) => demo,
        Err(problem) => return problem.tell(),
    };
    // Told before the engines are stopped: who waits for the message need not wait for a stop.
    let alone = match demo.stream().and_then(|()| demo.alone()) {
        Ok(alone) => alone,
        Err(problem) => return problem.tell(),
    };
    let summary = demo.finish(args, alone);
    if let Err(problem) = show(&summary, args) {
        return problem.tell();
    }
    let problem = match summary.verdict() {
        Ok(()) => return Exit::Success,
        Err(problem) => problem,
    };
    // The JSON object says it already, and stands alone.
    if args.json { problem.exit } else { problem.tell() }
}

fn show(summary: &Summary, args: &DemoArgs) -> Result<(), Problem> {
    if args.json {
        let shown = writeln!(std::io::stderr(), "{}", summary.json());
        return shown.map_err(|error| write_problem("standard error", &error));
    }
    let text = summary.text();
    if args.output.as_deref() == Some("-") {
        let shown = std::io::stderr().write_all(text.as_bytes());
        return shown.map_err(|error| write_problem("standard error", &error));
    }
    let mut stdout = std::io::stdout();
    let shown = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    shown.map_err(|error| write_problem("-", &error))
}

/// What the lines came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Lines of the input.
    pub lines: u64,
    /// Its bytes.
    pub input_bytes: u64,
    /// Lines too long for an engine.
    pub too_long: u64,
    /// Lines accepted.
    pub accepted: u64,
    /// Lines declined, malformed ones among them.
    pub declined: u64,
    /// Bytes of all replies.
    pub reply_bytes: u64,
    /// Lines whose replies differ between the profiles.
    pub different: u64,
    /// The first of them, counted from 1.
    pub first_different: Option<u64>,
}

impl Tally {
    /// Counts one line's replies: that of the profile whose decisions are written, and the other's.
    fn count(&mut self, reply: &[u8], other: Option<&[u8]>) {
        // An id cannot pretend to this end: quotes inside one are escaped.
        if reply.ends_with(b"\"accepted\":true}\n") {
            self.accepted += 1;
        } else {
            self.declined += 1;
        }
        self.reply_bytes += reply.len() as u64;
        if other.is_some_and(|other| other != reply) {
            self.different += 1;
            self.first_different.get_or_insert(self.accepted + self.declined);
        }
    }
}

struct Demo {
    events: Receiver<Event>,
    input: String,
    sink: Option<Sink>,
    window: usize,
    sides: Vec<Side>,
    tally: Tally,
    kept: Vec<Vec<u8>>,
    took: Duration,
}

impl Demo {
    fn start(app: &App, args: &DemoArgs) -> Result<Self, Problem> {
        let source = Source::open(args.input.as_deref())?;
        let sink =
            args.output.as_deref().map(|name| Sink::open(name, source.metadata.as_ref())).transpose()?;
        let window = usize::from(args.window);
        let deadline = Duration::from_millis(args.deadline_ms.into());
        let manner = Manner { options: args.options(), window, deadline };
        let start = |profile: &Profile| Side::start(app, *profile, manner);
        let sides = args.profiles().iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let worker_pid = sides.iter().find_map(|side| side.engine_summary().worker_pids.first().copied());
        let input = source.name.clone();
        let events = input::follow(source, worker_pid).map_err(|error| Problem {
            exit: Exit::Start,
            message: format!("start refused: no thread for the input ({error})"),
        })?;
        let (tally, kept) = (Tally::default(), Vec::new());
        Ok(Self { events, input, sink, window, sides, tally, kept, took: Duration::ZERO })
    }

    /// Decides all lines, and writes what is decided even if the rest cannot be.
    fn stream(&mut self) -> Result<(), Problem> {
        let begin = Instant::now();
        let decided = self.feed();
        let written = self.flush();
        self.took = begin.elapsed();
        decided.and(written)
    }

    fn feed(&mut self) -> Result<(), Problem> {
        loop {
            match self.next_event()? {
                Event::Lines(batch) => {
                    self.tally.input_bytes += batch.input_bytes;
                    for line in batch.lines() {
                        self.line(line)?;
                    }
                }
                Event::End => return self.take_all(),
                Event::Unreadable(error) => {
                    self.take_all()?;
                    return Err(Source::problem(&self.input, &error));
                }
                Event::WorkerEnded => {
                    self.take_all()?;
                    self.sides.iter().try_for_each(Side::failure)?;
                }
            }
        }
    }

    /// What comes next; while that takes long, nothing decided is held back.
    fn next_event(&mut self) -> Result<Event, Problem> {
        loop {
            match self.events.try_recv() {
                Ok(event) => return Ok(event),
                Err(TryRecvError::Disconnected) => return Ok(Event::End),
                Err(TryRecvError::Empty) if self.in_flight() > 0 => self.take_oldest()?,
                Err(TryRecvError::Empty) => {
                    self.flush()?;
                    return Ok(self.events.recv().unwrap_or(Event::End));
                }
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.sides.first().map_or(0, Side::in_flight)
    }

    fn line(&mut self, line: Option<&[u8]>) -> Result<(), Problem> {
        self.tally.lines += 1;
        match line {
            None => self.tally.too_long += 1,
            Some(line) if self.kept.len() < KEPT_LINES && line.len() <= KEPT_LINE_BYTES => {
                self.kept.push(line.to_vec());
            }
            Some(_) => {}
        }
        if self.in_flight() == self.window {
            self.take_oldest()?;
        }
        for side in 0..self.sides.len() {
            while !self.sides[side].send(line)? {
                self.take_oldest()?;
            }
        }
        Ok(())
    }

    fn take_all(&mut self) -> Result<(), Problem> {
        while self.in_flight() > 0 {
            self.take_oldest()?;
        }
        Ok(())
    }

    /// Takes the oldest line's replies, compares and counts them, and writes the first profile's.
    fn take_oldest(&mut self) -> Result<(), Problem> {
        let mut sides = self.sides.iter_mut();
        let Some(first) = sides.next() else { return Ok(()) };
        let reply = first.take_oldest()?;
        let other = sides.next().map(Side::take_oldest).transpose()?;
        self.tally.count(reply, other);
        if let Some(sink) = &mut self.sink {
            sink.writer.write_all(reply).map_err(|error| sink.problem(&error))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Problem> {
        match &mut self.sink {
            Some(sink) => sink.writer.flush().map_err(|error| sink.problem(&error)),
            None => Ok(()),
        }
    }

    /// Measures hand-offs one at a time, after the run, and reads each ledger before that.
    fn alone(&self) -> Result<Vec<SideSummary>, Problem> {
        let measure = |side: &Side| {
            let ledger = side.ledger();
            let alone = side.alone(&self.kept, ALONE)?;
            Ok(SideSummary::new(side, ledger, &alone))
        };
        self.sides.iter().map(measure).collect()
    }

    fn finish(self, args: &DemoArgs, mut sides: Vec<SideSummary>) -> Summary {
        for (side, summary) in self.sides.into_iter().zip(&mut sides) {
            summary.stops = side.stop().workers;
        }
        Summary {
            options: args.options(),
            input: self.input,
            output: args.output.clone(),
            window: self.window,
            deadline_ms: args.deadline_ms,
            tally: self.tally,
            took: self.took,
            sides,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_differ_are_counted_and_the_first_is_named() {
        let mut tally = Tally::default();
        let yes = b"{\"id\":\"1\",\"customer_id\":\"2\",\"accepted\":true}\n".as_slice();
        let no =
            b"{\"id\":\"\\\"accepted\\\":true}\\n\",\"customer_id\":\"\",\"accepted\":false}\n".as_slice();
        tally.count(yes, Some(yes));
        tally.count(no, None);
        tally.count(yes, Some(no));
        tally.count(no, Some(b""));
        assert_eq!((tally.accepted, tally.declined), (2, 2));
        assert_eq!((tally.different, tally.first_different), (2, Some(3)));
    }
}
