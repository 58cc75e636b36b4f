//! What is seen of a request's end, as it stands in the table.

use std::error::Error;
use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{
    CallError, Category, Cause, Counters, Deadline, Drain, Engine, EngineBuilder, ExecutionClass, KilledFor,
    NodeId, Pending, RefusedFor, Reply, Rule, StopReport,
};

use crate::common::held::{Held, hold};
use crate::common::{balanced, failure, started, until};

macro_rules! variants {
    ($list:ident $name:ident $type:ident: $($variant:ident),* $(,)?) => {
        /// All of them. A new one does not compile until it stands here, and fails until it has a row.
        pub const $list: &[&str] = &[$(stringify!($variant)),*];

        fn $name(value: &$type) -> &'static str {
            match value { $($type::$variant { .. } => stringify!($variant)),* }
        }
    };
}

variants!(
    CAUSE_NAMES cause_name Cause: Deadline, Exit, Signal, OutOfMemory, Killed, Execution, StartRefused, Stopped
);
variants!(
    REFUSED_NAMES refused_name RefusedFor: System, Exit, Signal, Timeout, NoAnswer, Bundle, Version, Layout, Segment,
    NotRegistered, NotBuilt
);
variants!(KILLED_NAMES killed_name KilledFor: Corruption, ConnectionLost, HeartbeatLost, Hung, StopOverrun);
variants!(
    RULE_NAMES rule_name Rule: CommitWord, Kind, Status, Flags, PayloadLength, PayloadPlace, BlockHeld, Ticket,
    LastOutOfOrder, ErrorPayload, Edge
);
variants!(
    CLASS_NAMES class_name ExecutionClass: NodeError, Panic, UnknownTarget, Misrouted, TooLarge, NoRoom,
    NoSuchEdge, TooManyOutputs, TooManyBranches, TooManyHops, KeyMissing
);

pub const RULES: [Rule; 11] = [
    Rule::CommitWord,
    Rule::Kind,
    Rule::Status,
    Rule::Flags,
    Rule::PayloadLength,
    Rule::PayloadPlace,
    Rule::BlockHeld,
    Rule::Ticket,
    Rule::LastOutOfOrder,
    Rule::ErrorPayload,
    Rule::Edge,
];

/// A cause without what differs from run to run.
pub fn shown(cause: Cause) -> String {
    match cause {
        Cause::Killed(KilledFor::Corruption(rule)) => format!("Killed(Corruption({}))", rule_name(&rule)),
        Cause::Killed(reason) => format!("Killed({})", killed_name(&reason)),
        Cause::Execution { class, code } => format!("{}, code {code}", class_name(&class)),
        Cause::StartRefused { step, reason } => {
            format!("StartRefused({}, {})", step.name(), refused_name(&reason))
        }
        Cause::Exit(number) | Cause::Signal(number) => format!("{}({number})", cause_name(&cause)),
        Cause::Deadline | Cause::OutOfMemory | Cause::Stopped => cause_name(&cause).to_owned(),
    }
}

/// A row of the table.
pub struct Row {
    pub seen: &'static str,
    pub category: &'static str,
    pub cause: String,
    pub before: String,
    pub started: String,
    pub replied: String,
    pub counters: String,
    pub worker: String,
}

impl Row {
    pub fn new(seen: &'static str, cause: Cause) -> Self {
        let none = String::new;
        let row = Self {
            seen,
            category: "",
            cause: shown(cause),
            before: none(),
            started: none(),
            replied: none(),
            counters: none(),
            worker: none(),
        };
        Self { category: category_of(cause).name(), ..row }
    }

    pub fn line(&self) -> String {
        let Self { seen, category, cause, before, started, replied, counters, worker } = self;
        format!(
            "| {seen} | `{category}` | {cause} | {before} | {started} | {replied} | {counters} | {worker} |"
        )
    }
}

/// The category that the design gives this cause.
pub fn category_of(cause: Cause) -> Category {
    match cause {
        Cause::Deadline => Category::Timeout,
        Cause::Stopped | Cause::Killed(KilledFor::StopOverrun) => Category::Shutdown,
        Cause::Exit(_)
        | Cause::Signal(_)
        | Cause::OutOfMemory
        | Cause::Killed(_)
        | Cause::StartRefused { .. } => Category::Transport,
        Cause::Execution { .. } => Category::Execution,
    }
}

const THE_REPLY: &str = "the reply";

/// What a caller got, for a cell; a failure must be of this cause, its message exact, and its chain empty.
pub fn cell(result: Result<Reply, CallError>, cause: Cause) -> String {
    match result {
        Ok(_) => THE_REPLY.into(),
        Err(error) => {
            assert!(error.source().is_none(), "{error:?}");
            let failure = failure(error, category_of(cause));
            let same = match (failure.cause(), cause) {
                (Cause::Killed(seen), Cause::Killed(KilledFor::HeartbeatLost { .. })) => {
                    matches!(seen, KilledFor::HeartbeatLost { silence_ms } if silence_ms >= 3000)
                }
                (seen, wanted) => seen == wanted,
            };
            assert!(same, "{failure:?}, not {cause:?}");
            let own = failure.node_error().map(|error| (error.code(), error.text()));
            let is_own = matches!(cause, Cause::Execution { class: ExecutionClass::NodeError, .. });
            assert_eq!(own, is_own.then_some((7, "card 4111")));
            let started = if failure.started() { "started" } else { "not started" };
            format!("`{}`, {started}", failure.category().name())
        }
    }
}

/// What has been counted since, without the zeros and what follows from the rest.
pub fn counted(before: &Counters, engine: &Engine) -> String {
    let after = engine.counters();
    let of_terminals = ["registered", "terminals_received", "terminals_that_ended"];
    let rows = after.rows().zip(before.rows()).map(|((name, after), (_, before))| (name, after - before));
    let shown = rows.filter(|(name, count)| *count != 0 && !of_terminals.contains(name));
    shown.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// What the kernel says of the worker's end, and how it was stopped.
pub fn worker_end(report: &StopReport) -> String {
    let Some(worker) = report.workers.first() else { return "none".into() };
    match worker.cause {
        // It is told to stop while its node does not return: which step it obeys depends on who is faster.
        Cause::Exit(86) | Cause::Signal(15) => "Exit(86), or Signal(15), Forced".into(),
        cause => format!("{cause:?}, {:?}", worker.mode),
    }
}

/// Three requests of one worker, and an engine whose thread has seen nothing of them.
pub struct Three {
    pub engine: Engine,
    pub before: Counters,
    /// Frames read until then.
    pub read: u64,
    pub held: Option<Held>,
    pub replied: Option<Pending>,
    /// Once it has been taken; with the block that it lies in.
    kept: Option<Reply>,
    pub started: Pending,
    pub waiting: Pending,
}

/// The first has been answered, the second begun; the third stands behind it.
///
/// With a deadline that may pass before the second has begun: look at the clock.
pub fn three(
    builder: EngineBuilder,
    first: &[u8],
    node: &str,
    payload: &[u8],
    within: Option<Duration>,
) -> Three {
    let (engine, echo) = started(builder, "echo");
    let held = hold(&engine, echo);
    let before = engine.counters();
    let (sent, read) = testing::ring_positions(&engine, 0).expect("it has a worker");
    let deadline = within.map_or(Deadline::Never, Deadline::after);
    let ask = |node: NodeId, payload: &[u8]| engine.request(node).deadline(deadline).dispatch(payload);
    let begin = Instant::now();
    let replied = ask(echo, first).expect("it is taken");
    let started = ask(engine.node(node).expect("the plan has it"), payload).expect("it is taken");
    let waiting = ask(echo, b"stay").expect("it is taken");
    let is_late = || within.is_some_and(|within| begin.elapsed() > within);
    until("the second has begun", || testing::has_begun(&engine, sent + 1) || is_late());
    Three { engine, before, read, held: Some(held), replied: Some(replied), kept: None, started, waiting }
}

impl Three {
    /// Takes the answer, that nobody has read.
    pub fn take_reply(&mut self, cause: Cause) -> String {
        match self.replied.take().expect("nobody has taken it").wait() {
            Ok(reply) => {
                self.kept = Some(reply);
                THE_REPLY.into()
            }
            failed => cell(failed, cause),
        }
    }

    /// Lets the engine's thread go on, and fills the row with what becomes of the three.
    pub fn end(mut self, mut row: Row, cause: Cause, end: impl FnOnce(&Engine) -> StopReport) -> Row {
        if self.replied.is_some() {
            let read = testing::ring_positions(&self.engine, 0).map(|(_, read)| read);
            assert_eq!(read, Some(self.read), "nobody has read it");
            drop(self.held.take());
            row.replied = self.take_reply(cause);
        }
        drop(self.held.take());
        row.started = cell(self.started.wait(), cause);
        row.before = cell(self.waiting.wait(), cause);
        row.worker = worker_end(&end(&self.engine));
        row.counters = counted(&self.before, &self.engine);
        balanced(&self.engine);
        row
    }
}

pub fn cut(engine: &Engine) -> StopReport {
    engine.stop(Drain::within(Duration::ZERO))
}

/// Times for what a machine that stands still may not do in time at first.
pub fn doubled(first_ms: u64) -> impl Iterator<Item = Duration> {
    (0..20).map(move |times| Duration::from_millis(first_ms << times))
}
