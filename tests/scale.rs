//! Many at once: LEDGER-01 with more callers than there is room, REPLY-06 under a flood, REPLY-04 and HANDOFF-E-01
//! for thousands that stand in one ring.
//!
//! `HANDBELL_TEST_CALLERS=100000` (usual: 10,000) is how many requests the first test makes,
//! `HANDBELL_TEST_FLOOD=1000000` (20,000) how many good ones the flood carries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use handbell::testing::{self, Envelope, RawRequest, RawWorker, flags};
use handbell::{
    App, CallError, Category, Cause, Deadline, DispatchError, Engine, EventKind, NodeId, Pending, Plan,
    TraceId,
};

mod common;
use common::{
    TOKEN, alarm, balanced, coarse_clock_catches_up, engine, failure, far, ms, number_from, started, stop,
    token, until,
};

/// Set for a worker that floods.
const FLOODS: &str = "HANDBELL_TEST_FLOODS";

fn app() -> App {
    common::app().node("pass", |request, output| Ok(output.emit(request.payload())?))
}

fn main() {
    if std::env::var(FLOODS).is_ok() {
        testing::serve_raw_if_worker(&app(), flood);
    }
    app().serve_if_worker();
    common::run(tests![
        ledger_01_more_callers_than_there_is_room,
        reply_06_a_flood_of_duplicates_and_late_replies_is_counted,
        reply_04_thousands_that_are_not_wanted_any_more_are_skipped,
        reply_08_callers_ids_of_any_kind_are_told_apart_in_a_large_table,
    ]);
}

// ---- more callers than room ----

/// How requests of one kind of caller ended.
#[derive(Clone, Copy, Default, Debug)]
struct Ends {
    replies: u64,
    cancelled: u64,
    timeouts: u64,
    /// Of these, those that never got a place.
    without_place: u64,
}

impl Ends {
    fn add(&mut self, result: Result<handbell::Reply, CallError>, number: u64) {
        match result {
            Ok(reply) => {
                assert_eq!(reply.to_value::<u64>(), Some(number));
                self.replies += 1;
            }
            Err(CallError::Cancelled) => self.cancelled += 1,
            Err(error) => {
                assert_eq!(failure(error, Category::Timeout).cause(), Cause::Deadline);
                self.timeouts += 1;
            }
        }
    }

    fn sum(&self) -> u64 {
        self.replies + self.cancelled + self.timeouts
    }
}

impl std::ops::Add for Ends {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            replies: self.replies + other.replies,
            cancelled: self.cancelled + other.cancelled,
            timeouts: self.timeouts + other.timeouts,
            without_place: self.without_place + other.without_place,
        }
    }
}

fn ledger_01_more_callers_than_there_is_room() {
    const SLOTS: usize = 64;
    const PLACES: usize = 4096;
    let requests = number_from("HANDBELL_TEST_CALLERS", 10_000);
    let plan = Plan::new().group("first", ["pass"]).group("second", ["echo"]).edge("pass", "echo");
    let builder = app().engine(plan).env(TOKEN, token()).slots(SLOTS).max_in_flight(PLACES);
    let (engine, pass) = started(builder, "pass");
    // Eight callers with windows, half of them with futures, who together want all places; and thirty-two who call.
    let callers = |kind: u64| if kind < 2 { 4 } else { 32 };
    let (next, begin) = (AtomicU64::new(0), Instant::now());
    let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < requests);
    let (ends, most) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .flat_map(|kind| (0..callers(kind)).map(move |_| kind))
            .map(|kind| {
                let engine = &engine;
                scope.spawn(move || match kind {
                    0 => with_window(engine, pass, PLACES / 8, take, Pending::wait),
                    1 => with_window(engine, pass, PLACES / 8, take, alarm::block_on),
                    _ => one_by_one(engine, pass, take),
                })
            })
            .collect();
        let mut most = 0;
        while threads.iter().any(|thread| !thread.is_finished()) {
            let audit = engine.audit();
            most = most.max(audit.in_flight);
            std::thread::sleep(Duration::from_millis(2));
        }
        let ends = threads.into_iter().map(|thread| thread.join().expect("it ends"));
        (ends.fold(Ends::default(), |sum, ends| sum + ends), most)
    });
    println!(
        "{requests} requests of 40 callers, at most {most} seen in flight, {:.1?}: {ends:?}",
        begin.elapsed()
    );
    assert_eq!(ends.sum(), requests);
    // While somebody may want it, what those who gave up have left in the rings is read.
    let wanted = engine.request(pass).deadline(far()).dispatch(b"the end").unwrap();
    until("the rings are empty", || (0..2).all(|lane| testing::open_frames(&engine, lane) == 0));
    assert_eq!(wanted.wait().unwrap().bytes().as_ref(), b"the end");
    let counters = engine.counters();
    assert_eq!(counters.registered, requests - ends.without_place + 1);
    assert_eq!((counters.completed(), counters.cancelled), (ends.replies + 1, ends.cancelled));
    assert_eq!((counters.expired, counters.failed), (ends.timeouts - ends.without_place, 0));
    assert_eq!((counters.rejected, counters.duplicate_terminal), (0, 0));
    balanced(&engine);
    stop(&engine);
}

/// A thirtieth has hardly any time.
fn deadline(number: u64) -> Deadline {
    if number % 30 == 7 { ms(2) } else { far() }
}

/// Keeps `window` requests in flight; gives up a few.
fn with_window(
    engine: &Engine,
    node: NodeId,
    window: usize,
    take: impl Fn() -> Option<u64>,
    end: fn(Pending) -> Result<handbell::Reply, CallError>,
) -> Ends {
    let (mut ends, mut pendings) = (Ends::default(), std::collections::VecDeque::new());
    loop {
        let number = take();
        if let Some(number) = number {
            let request = engine.request(node).deadline(deadline(number));
            match request.dispatch(&number.to_le_bytes()) {
                Ok(pending) => {
                    if number % 40 == 3 {
                        pending.cancel();
                    }
                    pendings.push_back((number, pending));
                }
                Err(error) => {
                    ends.add(Err(error.into()), number);
                    ends.without_place += 1;
                }
            }
        }
        if number.is_some() && pendings.len() < window {
            continue;
        }
        match pendings.pop_front() {
            Some((number, pending)) => ends.add(end(pending), number),
            None if number.is_none() => return ends,
            None => {}
        }
    }
}

fn one_by_one(engine: &Engine, node: NodeId, take: impl Fn() -> Option<u64>) -> Ends {
    let mut ends = Ends::default();
    while let Some(number) = take() {
        ends.add(engine.request(node).deadline(far()).call(&number.to_le_bytes()), number);
    }
    ends
}

// ---- a flood ----

/// Three terminals for each request; for what was asked to be kept, when the next request comes.
fn flood(raw: &mut RawWorker) {
    let mut kept: Option<RawRequest> = None;
    while let Some(request) = raw.receive() {
        raw.begin(&request);
        if kept.take().is_some_and(|kept| !thrice(raw, &kept)) {
            return;
        }
        if request.payload == b"keep" {
            kept = Some(request);
        } else if !thrice(raw, &request) {
            return;
        }
    }
}

fn thrice(raw: &mut RawWorker, request: &RawRequest) -> bool {
    let last = request.answer(request.payload.len());
    let earlier = Envelope { flags: last.flags & !flags::LAST, ..last };
    [earlier, earlier, last].into_iter().all(|envelope| raw.send(envelope, &request.payload))
}

/// Good requests with a window of 64, and after each 16 windows one that is given up for its deadline: how long the
/// good ones took, late replies to the others included, and how many others there were.
fn through(engine: &Engine, node: NodeId, good: u64, keeps: bool) -> (Duration, u64) {
    const WINDOW: u64 = 64;
    let (mut took, mut given_up) = (Duration::ZERO, 0);
    for window in (0..good).step_by(WINDOW as usize) {
        let (begin, numbers) = (Instant::now(), window..good.min(window + WINDOW));
        let pendings: Vec<_> = numbers
            .clone()
            .map(|number| engine.request(node).deadline(far()).dispatch(&number.to_le_bytes()).unwrap())
            .collect();
        for (number, pending) in numbers.zip(pendings) {
            assert_eq!(pending.wait().unwrap().to_value::<u64>(), Some(number));
        }
        took += begin.elapsed();
        if keeps && window % (16 * WINDOW) == 0 {
            // It is answered, three times, when the next one comes, and so after its deadline in any case. One that
            // is late already when it is sent does not get as far as the worker.
            let late = engine.request(node).deadline(ms(1)).dispatch(b"keep");
            given_up += u64::from(late.is_ok());
            failure(late.map_err(CallError::from).and_then(Pending::wait).unwrap_err(), Category::Timeout);
        }
    }
    (took, given_up)
}

fn reply_06_a_flood_of_duplicates_and_late_replies_is_counted() {
    let good = number_from("HANDBELL_TEST_FLOOD", 20_000);
    let (normal, echo) = started(engine(&["echo"]), "echo");
    let (flooded, node) = started(engine(&["echo"]).env(FLOODS, "1"), "echo");
    let (rounds, mut ratios, mut given_up) = (20, Vec::new(), 0);
    for _ in 0..rounds {
        let (usual, _) = through(&normal, echo, good / rounds, false);
        let (under_flood, late) = through(&flooded, node, good / rounds, true);
        given_up += late;
        ratios.push(usual.as_secs_f64() / under_flood.as_secs_f64());
    }
    // Whatever is kept is answered now; and while somebody may want it, everything is read.
    let wanted = flooded.request(node).deadline(far()).dispatch(b"the end").unwrap();
    until("the rings are empty", || testing::open_frames(&flooded, 0) == 0);
    assert_eq!(wanted.wait().unwrap().bytes().as_ref(), b"the end");
    ratios.sort_by(f64::total_cmp);
    let good = good / rounds * rounds + 1;
    println!(
        "good requests under a flood of {good} × 3 replies and {given_up} × 3 late ones: {:.0} % of the usual \
         throughput (quartiles: {:.0?})",
        ratios[ratios.len() / 2] * 100.0,
        [1, 3].map(|quarter| ratios[ratios.len() * quarter / 4] * 100.0)
    );
    let counters = flooded.counters();
    assert_eq!((counters.registered, counters.completed_by_terminal), (good + given_up, good));
    assert_eq!((counters.expired, counters.late_reply_drop), (given_up, 3 * given_up));
    assert_eq!((counters.duplicate_terminal, counters.terminals_that_ended), (2 * good, good));
    assert_eq!(counters.terminals_received, 3 * (good + given_up));
    assert_eq!((counters.rejected, counters.failed, counters.completed_by_last), (0, 0, 0));
    let last = flooded.events().pop().expect("there are some");
    assert_eq!(last.kind, EventKind::DuplicateTerminal);
    stop(&flooded);
    stop(&normal);
}

// ---- thousands in one ring ----

fn reply_04_thousands_that_are_not_wanted_any_more_are_skipped() {
    const COUNT: usize = 4000;
    let nodes = ["until_cancelled", "count", "counted"];
    let (engine, running) = started(engine(&nodes).slots(8192).max_in_flight(8192), "until_cancelled");
    let [count, counted] = ["count", "counted"].map(|name| engine.node(name).unwrap());
    let blocking = engine.request(running).dispatch(b"").unwrap();
    until("the node runs", || testing::has_begun(&engine, 0));
    // On a machine that stands still, a deadline may pass before its request gets into the ring.
    let due = std::iter::repeat_with(|| engine.request(count).deadline(ms(300)).dispatch(b""));
    let due: Vec<Pending> = due.flatten().take(COUNT).collect();
    let given_up = (0..COUNT).map(|_| engine.request(count).deadline(far()).dispatch(b"").unwrap());
    let given_up: Vec<Pending> = given_up.collect();
    let wanted = engine.request(count).deadline(far()).dispatch(b"").unwrap();
    assert_eq!(testing::ring_positions(&engine, 0).map(|(sent, _)| sent), Some(2 * COUNT as u64 + 2));
    given_up.iter().for_each(Pending::cancel);
    for pending in due {
        let failure = failure(pending.wait().unwrap_err(), Category::Timeout);
        assert_eq!((failure.cause(), failure.started()), (Cause::Deadline, false));
    }
    for pending in given_up {
        assert!(matches!(pending.wait(), Err(CallError::Cancelled)));
    }
    // Who has ended them may not have come to cancel them yet; then the worker goes by its clock.
    coarse_clock_catches_up();
    blocking.cancel();
    assert!(matches!(blocking.wait(), Err(CallError::Cancelled)));
    assert_eq!(wanted.wait().unwrap().to_value::<u32>(), Some(1), "only this one was run");
    assert_eq!(u32::from_le_bytes(engine.call_as(counted, b"", far()).unwrap()), 1);
    let counters = engine.counters();
    assert_eq!((counters.expired, counters.cancelled), (COUNT as u64, COUNT as u64 + 1));
    // The skipped ones end without a terminal; what the running node said came late.
    assert_eq!((counters.terminals_received, counters.late_reply_drop), (3, 1));
    stop(&engine);
}

fn reply_08_callers_ids_of_any_kind_are_told_apart_in_a_large_table() {
    const COUNT: u128 = 3000;
    const ODD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
    let (engine, running) =
        started(engine(&["until_cancelled", "echo"]).slots(8192).max_in_flight(8192), "until_cancelled");
    let echo = engine.node("echo").unwrap();
    let blocking = engine.request(running).dispatch(b"").unwrap();
    until("the node runs", || testing::has_begun(&engine, 0));
    // Scattered ones, and some that count over the end of their lower half.
    let scattered = (1..=COUNT).map(|number| number.wrapping_mul(ODD));
    let counting = (0..COUNT).map(|number| u128::from(u64::MAX) - COUNT / 2 + number);
    let ids: Vec<TraceId> = scattered.chain(counting).map(TraceId::from).collect();
    let dispatch = |id: &TraceId| engine.request(echo).trace_id(*id).deadline(far()).dispatch(b"ours");
    let pending: Vec<Pending> = ids.iter().map(|id| dispatch(id).unwrap()).collect();
    for id in &ids {
        assert!(matches!(dispatch(id), Err(DispatchError::TraceInFlight)));
    }
    blocking.cancel();
    assert!(matches!(blocking.wait(), Err(CallError::Cancelled)));
    let all_answered = |pending: Vec<Pending>| {
        for (id, pending) in ids.iter().zip(pending) {
            assert_eq!(pending.wait().unwrap().trace_id(), *id);
        }
    };
    all_answered(pending);
    all_answered(ids.iter().map(|id| dispatch(id).unwrap()).collect());
    let counters = engine.counters();
    assert_eq!((counters.completed(), counters.rejected), (4 * COUNT as u64, 0));
    stop(&engine);
}
