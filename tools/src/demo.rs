//! `handbell demo`: the load-limits plan over a stream of lines, in one profile or in both side by side.
//!
//! Memory is bounded by the window and the longest line, however long the input: with two profiles, each line
//! goes to both engines, and each pair of replies is compared as it is taken.
//!
//! Decided lines are written before the run waits for anything that may take long, and before it ends,
//! however it ends. Ctrl-C and SIGTERM stop it in order.

use std::io::Write;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use handbell::{App, CallError, Drain, Profile, Waiting};

use crate::exit::{Exit, Problem};
use crate::input::{self, Batch, Event, Source};
use crate::interrupt::Interrupt;
use crate::load_limits::Options;
use crate::load_limits::policy::Rules;
use crate::output::{Sink, Standard, write_problem};
use crate::side::{Latency, Manner, Side};
use crate::stream::Stream;
use crate::summary::{SideSummary, Summary};

/// Lines kept for the hand-offs one at a time, and how many of those are made.
const KEPT_LINES: usize = 256;
const KEPT_LINE_BYTES: usize = 4096;
const ALONE: usize = 1000;
/// In parts that come apart, each takes its time.
const ALONE_IN_PARTS: usize = 100;

/// How to run the demonstration.
#[derive(Args, Debug)]
#[command(after_help = Exit::help())]
pub struct DemoArgs {
    /// Lines to decide; - is standard input [default: the bundled sample]
    ///
    /// A line of more than 1,048,576 bytes is answered as one of which nothing can be read.
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
    /// Processes that parse lines; the groups behind have one each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    ingress_processes: u16,
    /// Whether a worker that dies gets a successor; the policy keeps its state in one, and never does
    #[arg(long, value_name = "WHEN", default_value = "never")]
    restart: RestartArg,
    /// Hand each line from the parser to the policy in three parts, the last one N milliseconds behind the others
    ///
    /// So that a worker can be killed between its outputs: with a successor, those that have gone on are not repeated.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=i64::from(Options::MOST_SPLIT_MS)))]
    split_ms: Option<u8>,
    /// How engine and workers wait for each other
    #[arg(long, default_value = "adaptive")]
    waiting: WaitingArg,
    /// Lines in flight; replies are written in input order whatever it is
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    window: u16,
    /// How long a line may take from being handed in to its reply, in milliseconds
    #[arg(
        long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=86_400_000)
    )]
    deadline_ms: u32,
    /// How long a stop, by Ctrl-C or SIGTERM too, waits for lines in flight, in milliseconds
    #[arg(
        long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=86_400_000)
    )]
    drain_ms: u32,
    /// Ids that the policy keeps, a power of two; a line with one more fails the run [default: no bound]
    #[arg(long, value_name = "N", value_parser = id_bound)]
    max_ids: Option<u64>,
    /// Print the summary as one JSON object on standard error
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum ProfileArg {
    /// In this process
    Memory,
    /// In supervised child processes
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

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum RestartArg {
    /// The run ends with a message
    Never,
    /// What was in flight runs again, and the run goes on
    #[value(name = "on_failure")]
    OnFailure,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum WaitingArg {
    /// Look without end
    Spin,
    /// Look for a moment, then sleep
    Adaptive,
    /// Sleep at once
    Block,
}

impl From<WaitingArg> for Waiting {
    fn from(waiting: WaitingArg) -> Self {
        match waiting {
            WaitingArg::Spin => Self::Spin,
            WaitingArg::Adaptive => Self::Adaptive,
            WaitingArg::Block => Self::Block,
        }
    }
}

fn id_bound(text: &str) -> Result<u64, String> {
    let bound = text.parse().ok().filter(|bound| u64::is_power_of_two(*bound) && *bound <= Options::MOST_IDS);
    bound.ok_or_else(|| format!("must be a power of two, at most {}", Options::MOST_IDS))
}

impl DemoArgs {
    fn manner(&self) -> Manner {
        Manner {
            options: self.options(),
            ingress: self.ingress_processes.into(),
            restarts: self.restart == RestartArg::OnFailure,
            window: self.window.into(),
            deadline: Duration::from_millis(self.deadline_ms.into()),
            drain: Duration::from_millis(self.drain_ms.into()),
            waiting: self.waiting.into(),
        }
    }

    fn options(&self) -> Options {
        let rules = match self.rules {
            RulesArg::Baseline => Rules::Baseline,
            RulesArg::Experiment => Rules::Experiment,
        };
        Options { rules, reasons: self.reasons, max_ids: self.max_ids, split_ms: self.split_ms }
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
    // First of all, so that a signal finds it as soon as there is something to end.
    let begun =
        Interrupt::listen(args.manner().drain).and_then(|interrupt| Ok((interrupt, open(app, args)?)));
    let (interrupt, (source, sink, sides)) = match begun {
        Ok(begun) => begun,
        Err(problem) => return problem.tell(),
    };
    let input = source.name.clone();
    let demo = match begin(source, sink, &sides, &interrupt) {
        Ok(demo) => demo,
        Err(problem) => return end(problem, sides),
    };
    // Told before the engines are stopped: who waits for the message need not wait for a stop.
    let summary = match decide(demo, &sides) {
        Ok((streamed, alone)) => finish(args, input, streamed, alone, sides),
        Err(problem) => return end(interrupt.explain(problem), sides),
    };
    interrupt.finish();
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

/// Ends a run that failed. The thread that listens to signals holds the engines as well, so that letting go of them
/// would not stop them.
fn end(problem: Problem, sides: Vec<Side>) -> Exit {
    let exit = problem.tell();
    sides.iter().for_each(|side| drop(side.engine().stop(Drain::within(Duration::ZERO))));
    exit
}

type Opened = (Source, Option<Sink>, Vec<Side>);

fn open(app: &App, args: &DemoArgs) -> Result<Opened, Problem> {
    let source = Source::open(args.input.as_deref())?;
    let sink = args.output.as_deref().map(|name| Sink::open(name, source.metadata.as_ref())).transpose()?;
    let start = |profile: &Profile| Side::start(app, *profile, args.manner());
    let sides = args.profiles().iter().map(start).collect::<Result<Vec<_>, _>>()?;
    Ok((source, sink, sides))
}

/// Begins to read, and lets signals stop that.
fn begin<'s>(
    source: Source,
    sink: Option<Sink>,
    sides: &'s [Side],
    interrupt: &Interrupt,
) -> Result<Demo<'s>, Problem> {
    let workers: Vec<i32> =
        sides.iter().flat_map(|side| side.engine().summary().worker_pids.clone()).collect();
    let input = source.name.clone();
    let (others, events) = input::follow(source, &workers).map_err(|error| Problem {
        exit: Exit::Start,
        message: format!("start refused: no thread for the input ({error})"),
    })?;
    interrupt.hand_over(sides.iter().map(|side| side.engine().clone()).collect(), others);
    let streams = sides.iter().map(Stream::start).collect::<Result<Vec<_>, _>>()?;
    Ok(Demo { events, input, sink, sides, streams, tally: Tally::default(), kept: Vec::new() })
}

/// Decides all lines; then reads each ledger, and measures lines one at a time.
fn decide(demo: Demo<'_>, sides: &[Side]) -> Result<(Streamed, Vec<SideSummary>), Problem> {
    let streamed = demo.stream()?;
    let measure = |(side, stream): (&Side, &Latency)| -> Result<_, Problem> {
        let ledger = side.ledger();
        let in_parts = side.manner().options.split_ms.is_some();
        let alone = side.alone(&streamed.kept, if in_parts { ALONE_IN_PARTS } else { ALONE })?;
        Ok(SideSummary::new(side, ledger, stream, &alone))
    };
    let summaries = sides.iter().zip(&streamed.latencies).map(measure).collect::<Result<_, _>>()?;
    Ok((streamed, summaries))
}

/// Stops the engines.
fn finish(
    args: &DemoArgs,
    input: String,
    streamed: Streamed,
    mut summaries: Vec<SideSummary>,
    sides: Vec<Side>,
) -> Summary {
    for (side, summary) in sides.into_iter().zip(&mut summaries) {
        (summary.stops, summary.restarts) = side.stop();
    }
    Summary {
        manner: args.manner(),
        input,
        output: args.output.clone(),
        tally: streamed.tally,
        took: streamed.took,
        sides: summaries,
    }
}

fn show(summary: &Summary, args: &DemoArgs) -> Result<(), Problem> {
    let text = if args.json { format!("{}\n", summary.json()) } else { summary.text() };
    if args.json || args.output.as_deref() == Some("-") {
        let shown = Standard(std::io::stderr()).write_all(text.as_bytes());
        return shown.map_err(|error| write_problem("standard error", &error));
    }
    let shown = Standard(std::io::stdout()).write_all(text.as_bytes());
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
            self.first_different.get_or_insert(self.decided());
        }
    }

    /// Lines whose replies have been counted.
    fn decided(&self) -> u64 {
        self.accepted + self.declined
    }
}

/// A run that is over.
struct Streamed {
    tally: Tally,
    /// Some lines of the input.
    kept: Vec<Vec<u8>>,
    took: Duration,
    /// Of each side.
    latencies: Vec<Latency>,
}

struct Demo<'s> {
    events: Receiver<Event>,
    input: String,
    sink: Option<Sink>,
    sides: &'s [Side],
    /// Of each side. All stand at the same line after each step.
    streams: Vec<Stream>,
    tally: Tally,
    kept: Vec<Vec<u8>>,
}

impl Demo<'_> {
    /// Decides all lines, and writes what is decided even if the rest cannot be.
    fn stream(mut self) -> Result<Streamed, Problem> {
        let begin = Instant::now();
        let decided = self.feed();
        let written = self.flush();
        let took = begin.elapsed();
        decided.and(written)?;
        let latencies = self.streams.into_iter().map(Stream::finish).collect();
        Ok(Streamed { tally: self.tally, kept: self.kept, took, latencies })
    }

    fn feed(&mut self) -> Result<(), Problem> {
        loop {
            match self.next_event()? {
                Event::Lines(batch) => self.decide(batch)?,
                Event::End => return self.take_all(),
                Event::Unreadable(error) => {
                    self.take_all()?;
                    return Err(Source::problem(&self.input, &error));
                }
                Event::WorkerEnded => {
                    self.take_all()?;
                    self.sides.iter().try_for_each(Side::failure)?;
                }
                Event::Stopped => {
                    self.take_all()?;
                    return Err(CallError::Stopped.into());
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

    /// Lines handed in whose replies have not been taken.
    fn in_flight(&self) -> u64 {
        self.tally.lines - self.tally.decided()
    }

    /// Sends the lines of a batch; the window stays full from one to the next.
    fn decide(&mut self, batch: Batch) -> Result<(), Problem> {
        self.note(&batch);
        let batch = Rc::new(batch);
        self.streams.iter_mut().for_each(|stream| stream.hand_in(Rc::clone(&batch)));
        while self.streams.iter().any(Stream::has_unsent) {
            self.take_oldest()?;
        }
        Ok(())
    }

    fn note(&mut self, batch: &Batch) {
        self.tally.input_bytes += batch.input_bytes;
        self.tally.lines += batch.len() as u64;
        self.tally.too_long += batch.lines().filter(Option::is_none).count() as u64;
        let room = KEPT_LINES - self.kept.len();
        let short = batch.lines().flatten().filter(|line| line.len() <= KEPT_LINE_BYTES);
        self.kept.extend(short.take(room).map(<[u8]>::to_vec));
    }

    fn take_all(&mut self) -> Result<(), Problem> {
        while self.in_flight() > 0 {
            self.take_oldest()?;
        }
        Ok(())
    }

    /// Takes the oldest line's replies, compares and counts them, and writes the first profile's.
    fn take_oldest(&mut self) -> Result<(), Problem> {
        let mut streams = self.streams.iter_mut();
        let Some(first) = streams.next() else { return Ok(()) };
        let reply = first.take_oldest()?;
        let other = streams.next().map(Stream::take_oldest).transpose()?;
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
