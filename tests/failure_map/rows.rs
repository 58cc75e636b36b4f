//! The rows of the table: each makes one kind of failure happen.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{
    Category, Cause, Counters, Deadline, Engine, EngineBuilder, ExecutionClass, KilledFor, NodeId, Plan,
    Profile, RefusedFor, Restart, Rule, StartError, StartStep, StopReport, WorkerEvent,
};
use rustix::process::Signal;

use crate::common::scripted::Gate;
use crate::common::{
    Notices, balanced, failure, far, is_alive, kill, ms, pause, started, stop, until, worker_pid,
};
use crate::nodes::{BROKEN, Place, RAW, acting, group, over};
use crate::seen::{RULES, Row, cell, counted, cut, doubled, three, worker_end};

/// The worker ends, by itself or by the hand of somebody else.
fn worker_ends(seen: &'static str, node: &str, payload: &[u8], cause: Cause) -> Row {
    let three = three(group(&["echo", node]), b"", node, payload, None);
    let pid = worker_pid(&three.engine);
    if node == "stuck" {
        kill(pid, Signal::KILL);
    }
    until("it is dead", || !is_alive(pid));
    three.end(Row::new(seen, cause), cause, stop)
}

/// The engine has killed it; a stop that came first would have ended it otherwise.
fn stop_the_dead(engine: &Engine) -> StopReport {
    let pid = worker_pid(engine);
    until("the worker is dead", || !is_alive(pid));
    stop(engine)
}

fn corruption(number: usize, rule: Rule) -> Row {
    let seen = "an impossible frame, block, ticket or word";
    let cause = Cause::Killed(KilledFor::Corruption(rule));
    let first: &[u8] = if rule == Rule::BlockHeld { b"block" } else { b"" };
    let builder = group(&["echo"]).env(RAW, "1");
    let three = three(builder, first, "echo", format!("rule {number}").as_bytes(), None);
    three.end(Row::new(seen, cause), cause, stop_the_dead)
}

/// The engine's thread judges silence and connections; it cannot do that and leave a reply unread.
pub const READS_FIRST: &str = "cannot be: the thread that sees this reads the reply first";

fn leaves(seen: &'static str, word: &str, cause: Cause) -> Row {
    let builder = group(&["echo"]).env(RAW, "1").heartbeat_timeout(Duration::from_secs(3));
    let three = three(builder, b"", "echo", word.as_bytes(), None);
    let row = three.end(Row::new(seen, cause), cause, stop_the_dead);
    assert_eq!(row.replied, "the reply");
    Row { replied: READS_FIRST.into(), ..row }
}

fn hung() -> Row {
    let cause = Cause::Killed(KilledFor::Hung);
    for within in doubled(100) {
        let builder = group(&["echo", "stuck"]).hung_after(Duration::from_secs(1));
        let (engine, echo) = started(builder, "echo");
        let before = engine.counters();
        let stuck = engine.node("stuck").unwrap();
        let hangs = engine.request(stuck).deadline(Deadline::after(within)).dispatch(b"").unwrap();
        let waiting = engine.request(echo).dispatch(b"").unwrap();
        failure(hangs.wait().unwrap_err(), Category::Timeout);
        let waiting = waiting.wait();
        let was_skipped = waiting.is_ok();
        if was_skipped {
            stop(&engine);
            continue;
        }
        let mut row = Row::new("it stands still `hung_after` behind a deadline", cause);
        row.before = cell(waiting, cause);
        row.started = "cannot be: its own deadline has ended it".into();
        row.replied = READS_FIRST.into();
        row.worker = worker_end(&stop_the_dead(&engine));
        row.counters = counted(&before, &engine);
        return row;
    }
    unreachable!("one of them is long enough")
}

fn deadline() -> Row {
    let row = || Row::new("its deadline passes", Cause::Deadline);
    for within in doubled(200) {
        let begin = Instant::now();
        let mut three = three(group(&["echo", "stuck"]), b"", "stuck", b"", Some(within));
        if begin.elapsed() < within {
            std::thread::sleep(within);
            let mut row = row();
            row.replied = three.take_reply(Cause::Deadline) + ", if that is read before the clock is";
            return three.end(row, Cause::Deadline, cut);
        }
        drop(three.held.take());
        cut(&three.engine);
    }
    unreachable!("one of them is long enough")
}

fn stopped() -> [Row; 2] {
    let notices = Notices::default();
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let builder = group(&["echo", "stuck"]).on_worker_event(notices.listener()).on_failure(move |failure| {
        heard.lock().unwrap().push((failure.cause(), failure.started(), failure.to_string()));
    });
    let mut three = three(builder, b"", "stuck", b"", None);
    let report = std::thread::scope(|scope| {
        let stops = scope.spawn(|| cut(&three.engine));
        until("all have ended", || three.engine.counters().failed == three.before.failed + 2);
        drop(three.held.take());
        stops.join().unwrap()
    });
    let cause = Cause::Stopped;
    let mut row = Row::new("a stop cuts it off", cause);
    assert_eq!(report.cut_off, 2);
    row.replied = three.take_reply(cause);
    row.started = cell(three.started.wait(), cause);
    row.before = cell(three.waiting.wait(), cause);
    row.worker = worker_end(&report);
    row.counters = counted(&three.before, &three.engine);
    balanced(&three.engine);
    let overrun = Cause::Killed(KilledFor::StopOverrun);
    let message = "remote handoff shut down for group 'g'".to_owned();
    // The stop waits for listeners for no longer than for the worker, and those of the two requests are told where these
    // are taken.
    until("the end is told", || {
        told.lock().unwrap().contains(&(overrun, true, message.clone()))
            && notices.has(&WorkerEvent::Stopped { gracefully: false })
    });
    assert_eq!(notices.events().last(), Some(&WorkerEvent::Stopped { gracefully: false }));
    let cannot = || "cannot be: the stop has ended it; told of the worker alone, to `on_failure`".to_owned();
    let worker = row.worker.clone();
    let of_worker = Row {
        before: cannot(),
        started: cannot(),
        replied: cannot(),
        worker,
        ..Row::new("its worker does not end when it is told to", overrun)
    };
    [row, of_worker]
}

/// A dead worker's successor cannot be started, in this way.
fn no_successor(seen: &'static str, way: &str, step: StartStep, reason: RefusedFor) -> Row {
    let restart = Restart::on_failure(2).delay(Duration::from_millis(1), Duration::from_millis(1));
    let (program, broken) = (Place::new(), Place::new());
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program.0).expect("a place for a program");
    let plan = Plan::new().group("g", ["fragile"]).command([&program.0]).restart(restart);
    for start_timeout in doubled(1000) {
        let notices = Notices::default();
        let builder = over(plan.clone().redispatch_unstarted()).env(BROKEN, &broken.0);
        let builder = builder.start_timeout(start_timeout).on_worker_event(notices.listener());
        let Ok(engine) = builder.start() else { continue };
        let fragile = engine.node("fragile").unwrap();
        let (before, born) = (engine.counters(), worker_pid(&engine));
        match way {
            "is gone" => std::fs::remove_file(&program.0).unwrap(),
            _ => std::fs::write(&broken.0, way).unwrap(),
        }
        pause(born);
        let waiting = engine.request(fragile).dispatch(b"").unwrap();
        kill(born, Signal::KILL);
        let waiting = waiting.wait();
        until("the group is given up", || notices.has(&WorkerEvent::GivenUp));
        // Of two tries each.
        let refused = WorkerEvent::StartRefused { step, reason };
        let mut told = notices.events_of(born);
        // It stands still for a moment before it dies.
        told.retain(|event| !matches!(event, WorkerEvent::Suspect | WorkerEvent::StoppedBySignal));
        if told.iter().filter(|event| **event == refused).count() < 2 && way == "is never built" {
            // Where the machine stood still, it got to an earlier step only.
            stop(&engine);
            std::fs::remove_file(&broken.0).unwrap();
            continue;
        }
        use WorkerEvent::{Crashed, GivenUp, Ready, Started};
        let crashed = Crashed(Cause::Signal(9));
        assert_eq!(told, [Started, Ready, crashed, refused.clone(), refused, GivenUp], "{seen}");
        let cause = Cause::StartRefused { step, reason };
        let mut row = Row::new(seen, cause);
        row.before = cell(waiting, cause);
        let refused = cell(engine.call(fragile, b"", far()), cause);
        assert_eq!(refused, "`transport`, not started", "whoever comes later is told the same");
        row.started = "cannot be: it failed with the former life".into();
        row.replied = "cannot be: it was delivered with the former life".into();
        row.worker = worker_end(&stop(&engine));
        row.counters = counted(&before, &engine);
        return row;
    }
    unreachable!("one of them is long enough")
}

/// There is no such file.
const NO_ENTRY: RefusedFor = RefusedFor::System { errno: 2 };

/// What the node, the executor or the table refuses; the same in both profiles.
fn refused(profile: Profile, seen: &'static str, class: ExecutionClass, words: &str) -> Row {
    let code = if class == ExecutionClass::NodeError { 7 } else { 0 };
    let cause = Cause::Execution { class, code };
    let (engine, act) = started(acting(profile), "act");
    let before = engine.counters();
    let ask = |words: &str| engine.request(act).deadline(far()).call(words.as_bytes());
    let mut row = Row::new(seen, cause);
    row.before = "cannot be: only a node that runs does this".into();
    let gate = Gate::new();
    let words = words.replace("GATE", &gate.word());
    row.started = cell(ask(&words), cause);
    gate.open();
    row.replied = cell(ask(&format!("= {words}")), cause);
    row.worker = "lives".into();
    row.counters = counted_after_one_more(&before, &engine, act);
    row
}

/// What does not reach a node.
fn unreached(profile: Profile, class: ExecutionClass) -> Row {
    let builder = acting(profile);
    let is_unknown = class == ExecutionClass::UnknownTarget;
    let (seen, builder) = if is_unknown {
        ("a node that the plan does not have", builder)
    } else {
        (
            "a node of a group that the worker does not serve",
            testing::with_unserved_group(builder, "h", &["x"]),
        )
    };
    let (engine, act) = started(builder, "act");
    let before = engine.counters();
    let target = if is_unknown { testing::node_by_number(999) } else { engine.node("x").unwrap() };
    let code = if is_unknown { 999 } else { 6 };
    let cause = Cause::Execution { class, code };
    let mut row = Row::new(seen, cause);
    row.started = cell(engine.call(target, b"", far()), cause);
    let cannot = || "cannot be: the executor refuses it when its turn comes".to_owned();
    (row.before, row.replied, row.worker) = (cannot(), cannot(), "lives".into());
    row.counters = counted_after_one_more(&before, &engine, act);
    row
}

/// Stops an engine that serves on, and leaves out what it takes to see that.
fn counted_after_one_more(before: &Counters, engine: &Engine, act: NodeId) -> String {
    engine.call(act, b"=", far()).expect("it serves on");
    stop(engine);
    let completed_by_terminal = before.completed_by_terminal + 1;
    counted(&Counters { completed_by_terminal, ..*before }, engine)
}

fn no_room() -> Row {
    let cause = Cause::Deadline;
    let (engine, act) = started(acting(Profile::ProcessSupervisor), "act");
    let view = engine.call(act, b"half", far()).unwrap();
    assert!(view.in_place().is_some());
    let error = engine.call(act, b"room", ms(100)).unwrap_err();
    assert!(error.source().is_none());
    let mut row = Row::new("no room for its reply until the deadline", cause);
    row.before = "cannot be: only a node that runs does this".into();
    row.started = cell(Err(error), cause);
    row.replied = "cannot be: the deadline has ended it".into();
    // Whether the engine or the worker comes first, the caller is told the same; the other's word is late.
    (row.counters, row.worker) = ("expired 1".into(), "lives".into());
    drop(view);
    stop(&engine);
    assert_eq!(engine.counters().expired, 1);
    row
}

/// The refusals that are alike in both profiles.
pub fn refusals(profile: Profile) -> Vec<Row> {
    use ExecutionClass::{
        KeyMissing, Misrouted, NoSuchEdge, NodeError, Panic, TooLarge, TooManyBranches, TooManyHops,
        TooManyOutputs, UnknownTarget,
    };
    let refused = |seen, class, words| refused(profile, seen, class, words);
    vec![
        refused("its node returns an error", NodeError, "error"),
        refused("its node panics", Panic, "panic"),
        unreached(profile, UnknownTarget),
        unreached(profile, Misrouted),
        refused("its reply is larger than the arena", TooLarge, "large"),
        refused("an output along an edge that is not there", NoSuchEdge, "edge"),
        refused("an output to a keyed group without a key", KeyMissing, "key"),
        refused("more outputs inside a group than allowed", TooManyOutputs, "outputs"),
        refused("more branches than `max_branches`", TooManyBranches, "branches GATE"),
        refused("more hops than `max_hops`", TooManyHops, "hops"),
    ]
}

/// Starts that are refused, before there is any request, and what is said then.
pub fn starts() -> Vec<(&'static str, String)> {
    let refused = |builder: EngineBuilder| builder.start().map(drop).expect_err("it is refused");
    let said = |builder| refused(builder).to_string();
    let late = doubled(300).find_map(|within| {
        let error = refused(group(&["stuck_in_factory"]).start_timeout(within));
        // Where the machine stood still, it got to an earlier step only.
        let got_there = matches!(error, StartError::Timeout { step: StartStep::Ready, .. });
        got_there.then(|| error.to_string().replace(&format!("{within:?}"), "…"))
    });
    vec![
        ("the program is not there", said(over(Plan::new().group("g", ["echo"]).command(["/nowhere/x"])))),
        ("more memory than allowed", said(group(&["echo"]).memory_limit(1))),
        ("a node cannot be built", said(group(&["unbuildable"]))),
        ("the worker exits before it is ready", said(group(&["exit_in_factory"]))),
        ("the worker is not ready in time", late.expect("one of the times is long enough")),
    ]
}

/// The table.
pub fn all() -> Vec<Row> {
    let signal = Cause::Signal;
    // These take seconds; they take them together.
    let (slow, mut rows) = std::thread::scope(|scope| {
        let silent = Cause::Killed(KilledFor::HeartbeatLost { silence_ms: 0 });
        let slow = [
            scope.spawn(move || leaves("it is silent for `heartbeat_timeout`", "mute", silent)),
            scope.spawn(hung),
        ];
        let rows = vec![
            deadline(),
            worker_ends("the worker exits", "exit", b"5", Cause::Exit(5)),
            worker_ends("it aborts", "abort", b"", signal(6)),
            worker_ends("it violates its memory", "segv", b"", signal(11)),
            worker_ends(
                "it is killed from outside (`OutOfMemory` if the kernel did it for want of memory: `tests/out_of_memory.rs`)",
                "stuck",
                b"",
                signal(9),
            ),
        ];
        (slow.map(|row| row.join().expect("the row is as it must be")), rows)
    });
    let not_built = RefusedFor::NotBuilt(testing::node_by_number(0));
    rows.extend([
        no_successor(
            "a worker has died, and its successor's program is gone",
            "is gone",
            StartStep::Spawn,
            NO_ENTRY,
        ),
        no_successor("its successor's node cannot be built", "", StartStep::Ready, not_built),
        no_successor(
            "its successor exits before it is ready",
            "exits",
            StartStep::Ready,
            RefusedFor::Exit(3),
        ),
        no_successor(
            "its successor is killed before that",
            "is killed",
            StartStep::Ready,
            RefusedFor::Signal(9),
        ),
        no_successor(
            "its successor is not ready in time",
            "is never built",
            StartStep::Ready,
            RefusedFor::Timeout,
        ),
    ]);
    rows.extend(RULES.into_iter().enumerate().map(|(number, rule)| corruption(number, rule)));
    rows.extend(slow);
    rows.push(leaves(
        "its connection ends while it lives",
        "leave",
        Cause::Killed(KilledFor::ConnectionLost),
    ));
    rows.extend(refusals(Profile::ProcessSupervisor));
    rows.push(no_room());
    rows.extend(stopped());
    rows
}
