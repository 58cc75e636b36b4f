//! The cases: what is measured beside what, and for how long.

use std::rc::Rc;
use std::time::Duration;

use handbell::{App, Profile, Waiting};
use handbell_measure::{
    Beside, Contest, FutexPingPong, Measured, Memcpy, Partner, PingPong, Place, Ratios, SlotRing, WriteRead,
};

use super::nodes;
use super::subjects::{Bulk, Calls, Loans, Manner, Pipelined, Threads};
use crate::exit::{Exit, Problem};

/// A turn of a subject that is always awake, of one that sleeps, and of one that is mostly quiet.
const BUSY: Duration = Duration::from_millis(20);
const ASLEEP: Duration = Duration::from_millis(40);
const QUIET: Duration = Duration::from_millis(100);
/// Of threads that share a processor: each of four has a dozen of the system's turns of some ms in it, so that where it
/// begins and ends says little.
const SHARED: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(10);
const LEAST_ROUNDS: usize = 5;
const WINDOW: usize = 64;
const MANY: usize = 64;
const THREADS: usize = 4;
const SMALL: usize = 64;
const LARGE: usize = 1 << 20;

/// One row of what came out.
pub struct Case {
    /// What was done.
    pub name: &'static str,
    /// Bytes of the payload.
    pub payload: usize,
    /// How both sides waited; of memory copies and calls in one process none.
    pub wait: Option<Waiting>,
    /// Where the two sides ran.
    pub place: &'static str,
    /// Whether every byte of the payload was written and read.
    pub touched: bool,
    /// Whether a rate says more than single times.
    pub is_stream: bool,
    /// What it is measured beside.
    pub limit: Option<&'static str>,
    /// The times.
    pub times: Measured,
    /// Of the rates, where there is a limit.
    pub ratio_per_s: Option<Ratios>,
    /// Memory of one idle worker, where it was looked at.
    pub memory_per_worker_bytes: Option<u64>,
}

impl Case {
    /// Whether both sides were kept to processors.
    pub fn is_pinned(&self) -> bool {
        self.place != ANYWHERE
    }

    /// The waiting as users write it.
    pub fn wait_name(&self) -> &'static str {
        match self.wait {
            None => "none",
            Some(Waiting::Spin) => "spin",
            Some(Waiting::Adaptive) => "adaptive",
            Some(Waiting::Block) => "block",
        }
    }
}

/// On two processors.
pub const APART: &str = "apart";
/// On one.
pub const TOGETHER: &str = "one_processor";
/// Wherever the kernel puts them.
pub const ANYWHERE: &str = "unpinned";

/// What a case is, before it is measured.
struct Row {
    name: &'static str,
    payload: usize,
    wait: Option<Waiting>,
    touched: bool,
    is_stream: bool,
    subject: usize,
    beside: Option<(&'static str, usize)>,
}

impl Row {
    fn calls(wait: Waiting, subject: usize, beside: (&'static str, usize)) -> Self {
        let (name, wait, beside) = ("handoff_round_trip", Some(wait), Some(beside));
        Self { name, payload: SMALL, wait, touched: true, is_stream: false, subject, beside }
    }
}

/// Measures all cases.
pub struct Bench<'a> {
    app: &'a App,
    partner: Rc<Partner>,
    pair: Option<(usize, usize)>,
    total: Duration,
    cases: Vec<Case>,
}

impl<'a> Bench<'a> {
    /// For about `total`; `pair`: the processors of the two sides.
    pub fn start(app: &'a App, pair: Option<(usize, usize)>, total: Duration) -> Result<Self, Problem> {
        let refused = |error| Problem {
            exit: Exit::Start,
            message: format!("start refused, second process of the bare measurements: {error}"),
        };
        let partner = Rc::new(Partner::start().map_err(refused)?);
        Ok(Self { app, partner, pair, total, cases: Vec::new() })
    }

    /// All of them; `tell` hears of each group as it begins.
    pub fn run(mut self, tell: impl Fn(&str)) -> Result<Vec<Case>, Problem> {
        let home = handbell_measure::allowed()[0];
        if let Some(pair) = self.pair {
            tell("round trips on two processors");
            self.busy(pair, 0.16)?;
            self.asleep(&Place::apart(pair), APART, 0.06)?;
            tell("after 10 ms of quiet");
            self.quiet(pair, 0.10)?;
        }
        tell("round trips on one processor");
        self.together(home, 0.10)?;
        tell("unpinned");
        self.unpinned(0.10)?;
        let (place, name) = match self.pair {
            Some(pair) => (Place::apart(pair), APART),
            None => (Place::together(home), TOGETHER),
        };
        tell("large payloads");
        self.loans(&place, name, 0.08)?;
        for (bytes, share) in [(256, 0.02), (4096, 0.02), (16 << 10, 0.03), (64 << 10, 0.05)] {
            self.bulk(&place, name, bytes, share)?;
        }
        self.bulk(&place, name, LARGE, 0.12)?;
        tell("streams, threads, many workers");
        self.stream(&place, name, 0.06)?;
        self.threads(0.06)?;
        self.many(&place, name, 0.06)?;
        tell("the memory profile");
        self.memory(home, 0.02)?;
        Ok(self.cases)
    }

    fn note(&mut self, contest: &Contest<'_, Problem>, place: &'static str, rows: Vec<Row>) {
        for row in rows {
            let reference = row.beside.map(|(_, reference)| reference);
            let rates = contest.measured(row.subject, reference, Beside::Rate);
            self.cases.push(Case {
                name: row.name,
                payload: row.payload,
                wait: row.wait,
                place,
                touched: row.touched,
                is_stream: row.is_stream,
                limit: row.beside.map(|(limit, _)| limit),
                times: contest.measured(row.subject, reference, Beside::Time),
                ratio_per_s: rates.ratio,
                memory_per_worker_bytes: None,
            });
        }
    }

    fn calls(&self, waiting: Waiting, place: &Place) -> Calls<'a> {
        Calls::new(self.app, Manner::new(waiting, place.partner))
    }

    fn busy(&mut self, pair: (usize, usize), share: f64) -> Result<(), Problem> {
        let place = Place::apart(pair);
        let mut contest = Contest::default();
        let limit = contest.add(&place, PingPong::best(&self.partner, place.partner));
        let spin = contest.add(&place, self.calls(Waiting::Spin, &place));
        let adaptive = contest.add(&place, self.calls(Waiting::Adaptive, &place));
        let manner = Manner { listeners: true, ..Manner::new(Waiting::Adaptive, place.partner) };
        let heard = contest.add(&place, Calls::new(self.app, manner));
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let ping_pong = ("ping-pong of two lines", limit);
        let rows = vec![
            Row::calls(Waiting::Spin, spin, ping_pong),
            Row::calls(Waiting::Adaptive, adaptive, ping_pong),
            Row { name: "adaptive_beside_spin", ..Row::calls(Waiting::Adaptive, adaptive, ("spin", spin)) },
            Row {
                name: "with_listeners",
                ..Row::calls(Waiting::Adaptive, heard, ("the same without listeners", adaptive))
            },
        ];
        self.note(&contest, APART, rows);
        Ok(())
    }

    fn asleep(&mut self, place: &Place, name: &'static str, share: f64) -> Result<(), Problem> {
        let mut contest = Contest::default();
        let futex = FutexPingPong::new(&self.partner, place.partner, Duration::ZERO);
        let limit = contest.add(place, futex);
        let block = contest.add(place, self.calls(Waiting::Block, place));
        contest.run(self.total.mul_f64(share), ASLEEP, LEAST_ROUNDS)?;
        let row = Row::calls(Waiting::Block, block, ("futex ping-pong", limit));
        self.note(&contest, name, vec![row]);
        Ok(())
    }

    fn quiet(&mut self, pair: (usize, usize), share: f64) -> Result<(), Problem> {
        let place = Place::apart(pair);
        let mut contest = Contest::default();
        let limit = contest.add(&place, FutexPingPong::new(&self.partner, place.partner, PAUSE));
        let quiet = |waiting| Calls::after(PAUSE, self.app, Manner::new(waiting, place.partner));
        let block = contest.add(&place, quiet(Waiting::Block));
        let adaptive = contest.add(&place, quiet(Waiting::Adaptive));
        contest.run(self.total.mul_f64(share), QUIET, LEAST_ROUNDS)?;
        let after_quiet = |row| Row { name: "handoff_after_quiet", ..row };
        let beside = ("futex ping-pong after the same quiet", limit);
        let rows = vec![
            after_quiet(Row::calls(Waiting::Block, block, beside)),
            after_quiet(Row::calls(Waiting::Adaptive, adaptive, ("block after the same quiet", block))),
        ];
        self.note(&contest, APART, rows);
        Ok(())
    }

    fn together(&mut self, home: usize, share: f64) -> Result<(), Problem> {
        let place = Place::together(home);
        let mut contest = Contest::default();
        let yielding = contest.add(&place, PingPong::yielding(&self.partner, place.partner));
        let futex = FutexPingPong::new(&self.partner, place.partner, Duration::ZERO);
        let futex = contest.add(&place, futex);
        let spin = contest.add(&place, self.calls(Waiting::Spin, &place));
        let adaptive = contest.add(&place, self.calls(Waiting::Adaptive, &place));
        let block = contest.add(&place, self.calls(Waiting::Block, &place));
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let rows = vec![
            Row::calls(Waiting::Spin, spin, ("yielding ping-pong", yielding)),
            Row::calls(Waiting::Adaptive, adaptive, ("yielding ping-pong", yielding)),
            Row::calls(Waiting::Block, block, ("futex ping-pong", futex)),
        ];
        self.note(&contest, TOGETHER, rows);
        Ok(())
    }

    fn unpinned(&mut self, share: f64) -> Result<(), Problem> {
        let place = Place::anywhere();
        if self.pair.is_none() {
            return Ok(());
        }
        let mut contest = Contest::default();
        let limit = contest.add(&place, PingPong::best(&self.partner, None));
        let futex = contest.add(&place, FutexPingPong::new(&self.partner, None, Duration::ZERO));
        let spin = contest.add(&place, self.calls(Waiting::Spin, &place));
        let adaptive = contest.add(&place, self.calls(Waiting::Adaptive, &place));
        let block = contest.add(&place, self.calls(Waiting::Block, &place));
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let rows = vec![
            Row::calls(Waiting::Spin, spin, ("ping-pong of two lines", limit)),
            Row::calls(Waiting::Adaptive, adaptive, ("ping-pong of two lines", limit)),
            Row::calls(Waiting::Block, block, ("futex ping-pong", futex)),
        ];
        self.note(&contest, ANYWHERE, rows);
        Ok(())
    }

    fn loans(&mut self, place: &Place, name: &'static str, share: f64) -> Result<(), Problem> {
        let mut contest = Contest::default();
        let sizes = [SMALL, 64 << 10, LARGE];
        let manner = |payload| Manner { payload, ..Manner::new(Waiting::Adaptive, place.partner) };
        let untouched = sizes.map(|payload| contest.add(place, Loans::untouched(self.app, manner(payload))));
        let marked = sizes.map(|payload| contest.add(place, Loans::marked(self.app, manner(payload))));
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let rows = |case, subjects: [usize; 3], touched| {
            sizes.into_iter().zip(subjects).map(move |(payload, subject)| {
                let beside = (payload != SMALL).then_some(("the same with 64 bytes", subjects[0]));
                Row {
                    name: case,
                    payload,
                    touched,
                    beside,
                    ..Row::calls(Waiting::Adaptive, subject, ("", 0))
                }
            })
        };
        let untouched = rows("handoff_round_trip", untouched, false);
        self.note(&contest, name, untouched.chain(rows("first_bytes_touched", marked, true)).collect());
        Ok(())
    }

    fn bulk(&mut self, place: &Place, name: &'static str, bytes: usize, share: f64) -> Result<(), Problem> {
        let mut contest = Contest::default();
        let limit = contest.add(place, WriteRead::new(&self.partner, place.partner, bytes));
        let manner = Manner { payload: bytes, ..Manner::new(Waiting::Adaptive, place.partner) };
        let echoed = contest.add(place, Bulk::echoed(self.app, manner.clone()));
        let memcpy = contest.add(place, Memcpy::new(bytes));
        let passed_on = (bytes == LARGE).then(|| {
            // The second group on a third processor, or beside the caller, which waits for it.
            let taken =
                |processor: &usize| Some(*processor) != place.partner && !place.caller.contains(processor);
            let third = handbell_measure::allowed().into_iter().find(taken);
            let plan = nodes::two_groups(place.partner, third.or(place.caller.first().copied()));
            contest.add(place, Bulk::passed_on(self.app, Manner { plan, pin: None, ..manner }))
        });
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let row = |name, subject, beside| Row {
            name,
            payload: bytes,
            beside,
            ..Row::calls(Waiting::Adaptive, subject, ("", 0))
        };
        let beside = Some(("two writes and two reads", limit));
        let mut rows = vec![row("handoff_round_trip", echoed, beside)];
        rows.extend(passed_on.map(|passed_on| row("two_groups", passed_on, beside)));
        rows.push(Row { wait: None, ..row("memcpy", memcpy, None) });
        self.note(&contest, name, rows);
        Ok(())
    }

    fn stream(&mut self, place: &Place, name: &'static str, share: f64) -> Result<(), Problem> {
        let mut contest = Contest::default();
        let limit = contest.add(place, SlotRing::best(&self.partner, place.partner, WINDOW as u64));
        let pipelined = |waiting| Pipelined::new(self.app, Manner::new(waiting, place.partner), WINDOW);
        let spin = contest.add(place, pipelined(Waiting::Spin));
        let adaptive = contest.add(place, pipelined(Waiting::Adaptive));
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let row = |wait, subject| Row {
            name: "pipelined_window_64",
            is_stream: true,
            ..Row::calls(wait, subject, ("bare slot rings, window 64", limit))
        };
        self.note(&contest, name, vec![row(Waiting::Spin, spin), row(Waiting::Adaptive, adaptive)]);
        Ok(())
    }

    /// The callers share all processors but the worker's; then everything is left to the kernel.
    fn threads(&mut self, share: f64) -> Result<(), Problem> {
        let mut places = vec![(Place::anywhere(), ANYWHERE)];
        if let Some((_, worker)) = self.pair {
            let mut caller = handbell_measure::allowed();
            caller.retain(|processor| *processor != worker);
            places.push((Place { caller, partner: Some(worker) }, APART));
        }
        for (place, name) in &places {
            let mut contest = Contest::default();
            let threads =
                |threads| Threads::new(self.app, Manner::new(Waiting::Adaptive, place.partner), threads);
            let one = contest.add(place, threads(1));
            let four = contest.add(place, threads(THREADS));
            contest.run(self.total.mul_f64(share / places.len() as f64), SHARED, LEAST_ROUNDS)?;
            let row = Row {
                name: "four_threads",
                is_stream: true,
                ..Row::calls(Waiting::Adaptive, four, ("one thread", one))
            };
            self.note(&contest, name, vec![row]);
        }
        Ok(())
    }

    fn many(&mut self, place: &Place, name: &'static str, share: f64) -> Result<(), Problem> {
        let mut contest = Contest::default();
        let one = contest.add(place, self.calls(Waiting::Adaptive, place));
        let manner = Manner { plan: nodes::plan(MANY), ..Manner::new(Waiting::Adaptive, place.partner) };
        let mut host = Calls::new(self.app, manner);
        let memory = host.host.memory_per_worker_bytes()?;
        let many = contest.add(place, host);
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let row = Row { name: "one_of_64", ..Row::calls(Waiting::Adaptive, many, ("one worker alone", one)) };
        self.note(&contest, name, vec![row]);
        if let Some(case) = self.cases.last_mut() {
            case.memory_per_worker_bytes = memory;
        }
        Ok(())
    }

    fn memory(&mut self, home: usize, share: f64) -> Result<(), Problem> {
        let place = Place { caller: vec![home], partner: None };
        let mut contest = Contest::default();
        let manner = Manner { profile: Profile::Memory, ..Manner::new(Waiting::Adaptive, None) };
        let call = contest.add(&place, Calls::new(self.app, manner));
        let memcpy = contest.add(&place, Memcpy::new(SMALL));
        contest.run(self.total.mul_f64(share), BUSY, LEAST_ROUNDS)?;
        let row = |name, subject| Row {
            name,
            wait: None,
            beside: None,
            ..Row::calls(Waiting::Adaptive, subject, ("", 0))
        };
        self.note(&contest, TOGETHER, vec![row("memory_call", call), row("memcpy", memcpy)]);
        Ok(())
    }
}
