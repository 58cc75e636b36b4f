//! ORDER-01 and PARITY-01 for plans of many groups: the frames of a run enter every group in the order of (input,
//! path of emissions), and both profiles give the same bytes.
//!
//! Every group ends in a log or has one at its entrance: what entered, in which order. A log answers once all
//! frames of an input have come, so that no frame is too late to count.

use handbell::testing;
use handbell::{CallError, Engine, EngineBuilder, NodeId, OnError, Plan, Profile, Reply};

mod common;
use common::ordered::{self, Frame};
use common::{TOKEN, balanced, far, ms, patiently, stop, token, until};

program![
    of ordered::app;
    order_01_a_chain,
    order_01_branches_that_join,
    order_01_a_diamond_with_a_slow_side,
    order_01_fan_out_of_fan_out,
    order_01_many_processes_before_a_log,
    order_01_keyed_groups,
    order_01_with_payloads_of_half_an_arena,
    parity_01_errors_stand_in_their_place,
    parity_01_a_run_stops_at_its_first_error,
    parity_01_deadlines_within_a_run,
    order_01_two_runs_at_once,
    order_01_a_dropped_run_leaves_nothing,
    order_01_a_death_within_a_run,
    parity_01_local_groups_are_like_others,
];

// ---- the runs ----

/// A plan, and where its logs are.
struct Course {
    plan: Plan,
    first: &'static str,
    /// Frames of each input that reach the log at the end.
    total: u64,
    inputs: u64,
    filling: usize,
    /// Its first group is.
    is_keyed: bool,
    /// Logs by node, and whether they are reached by key.
    logs: &'static [(&'static str, bool)],
}

const LOG: &[(&str, bool)] = &[("log_told", false)];

fn course(plan: Plan, first: &'static str, total: u64) -> Course {
    Course { plan, first, total, inputs: 120, filling: 20, is_keyed: false, logs: LOG }
}

impl Course {
    fn engine(&self, profile: Profile, state: impl Fn(EngineBuilder) -> EngineBuilder) -> Engine {
        let builder = ordered::app().engine(self.plan.clone()).env(TOKEN, token()).on_output(|_| {});
        state(builder.profile(profile)).start().expect("the engine starts")
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        let frame = |input| Frame { input, total: self.total, path: vec![], filling: self.filling };
        (0..self.inputs).map(|input| frame(input).bytes()).collect()
    }

    /// What comes out, and what every log says.
    fn go(&self, engine: &Engine, window: usize, on_error: OnError) -> (Vec<String>, Vec<String>) {
        let first = engine.node(self.first).unwrap();
        let run = engine.run(first, self.inputs()).window(window).on_error(on_error).deadline(far());
        let run = if self.is_keyed { run.key(|number, _| number % 4) } else { run };
        let run = run.tags(3, 4).reply_to(5).start().unwrap();
        let mut out = Vec::new();
        for (number, result) in run {
            assert_eq!(number, out.len() as u64, "in input order");
            out.push(seen(result));
        }
        (out, self.told(engine))
    }

    fn told(&self, engine: &Engine) -> Vec<String> {
        let mut told = Vec::new();
        for (log, is_keyed) in self.logs {
            let node = engine.node(log).unwrap();
            for key in 0..if *is_keyed { 16 } else { 1 } {
                told.push(tell(engine, node, key));
            }
        }
        told
    }

    /// Both profiles, windows of 1, 16 and 512: the same, and in order.
    fn is_in_order(&self, state: impl Fn(EngineBuilder) -> EngineBuilder) {
        let mut first = None;
        for profile in [Profile::Memory, Profile::ProcessSupervisor] {
            for window in [1, 16, 512] {
                let engine = self.engine(profile, &state);
                let (out, told) = self.go(&engine, window, OnError::Record);
                stop(&engine);
                assert_eq!(out.len() as u64, self.inputs);
                told.iter().for_each(|log| is_sorted(log));
                let (first_out, first_told) = first.get_or_insert_with(|| (out.clone(), told.clone()));
                for (number, (one, other)) in first_out.iter().zip(&out).enumerate() {
                    assert!(
                        one == other,
                        "{profile:?}, window {window}, input {number}:\n{one:.200}\n{other:.200}"
                    );
                }
                assert!(*first_told == told, "{profile:?}, window {window}: the logs differ");
            }
        }
        let (out, told) = first.expect("there were runs");
        assert!(out.iter().all(|out| out.starts_with("Identity")), "{:?}", out.first());
        let lines: usize = told.iter().filter(|log| !log.is_empty()).map(|log| log.lines().count()).sum();
        assert!(lines as u64 >= self.inputs * self.total, "{lines} frames");
    }
}

fn tell(engine: &Engine, node: NodeId, key: u64) -> String {
    let reply = engine.request(node).key(key).deadline(far()).call(b"").expect("it tells");
    String::from_utf8(reply.into_vec()).expect("text")
}

/// The lines of a log that are of these inputs.
fn within(log: &str, inputs: std::ops::Range<u64>) -> String {
    let is_own = |line: &&str| {
        line.split(' ').next().is_some_and(|input| inputs.contains(&input.parse().expect("a number")))
    };
    log.lines().filter(is_own).collect::<Vec<_>>().join("\n")
}

/// Inputs ascend, and so do the paths of each.
fn is_sorted(log: &str) {
    let place = |line: &str| {
        let (input, path) = line.split_once(' ').expect("input and path");
        let path: Vec<u8> =
            path.trim_matches(['[', ']']).split(", ").filter_map(|index| index.parse().ok()).collect();
        (input.parse::<u64>().expect("a number"), path)
    };
    let places: Vec<_> = log.lines().map(place).collect();
    for pair in places.windows(2) {
        assert!(pair[0] < pair[1], "{:?} entered before {:?}", pair[0], pair[1]);
    }
}

/// All that a caller can see of a result.
fn seen(result: Result<Reply, CallError>) -> String {
    match result {
        Ok(reply) => format!("{:?} {:?}", reply.identity().tags_only(), reply.bytes()),
        Err(CallError::Failed(failure)) => {
            let own = failure.node_error().map(|error| (error.code(), error.text().to_owned()));
            format!("{failure} {:?} {own:?}", failure.cause())
        }
        Err(error) => error.to_string(),
    }
}

trait TagsOnly {
    fn tags_only(self) -> Self;
}

impl TagsOnly for handbell::Identity {
    /// Ids made by two engines are never the same.
    fn tags_only(self) -> Self {
        Self { trace_id: Default::default(), ..self }
    }
}

// ---- the courses ----

fn chain() -> Course {
    let plan = Plan::new()
        .group("A", ["next"])
        .group("B", ["after"])
        .group("C", ["log", "log_told"])
        .labelled_edge("next", "on", "after")
        .labelled_edge("after", "on", "log");
    course(plan, "next", 1)
}

/// `fork` → `after` → `log`, and `fork` → `two` → `log`.
fn join() -> Course {
    let plan = Plan::new()
        .group("A", ["fork"])
        .group("B", ["after"])
        .group("C", ["two"])
        .group("D", ["log", "log_told"])
        .labelled_edge("fork", "left", "after")
        .labelled_edge("fork", "right", "two")
        .labelled_edge("after", "on", "log")
        .labelled_edge("two", "on", "log");
    course(plan, "fork", 3)
}

fn order_01_a_chain() {
    chain().is_in_order(|builder| builder);
    chain().is_in_order(|builder| builder.slots(2));
}

fn order_01_branches_that_join() {
    join().is_in_order(|builder| builder);
    join().is_in_order(|builder| builder.slots(2));
}

/// The first side is slow; the second emits three outputs for each input. `state` is asked of every second group.
fn slow_diamond(state: impl Fn(Plan) -> Plan) -> Course {
    let plan = Plan::new().group("A", ["fork"]).group("B", ["slow"]);
    let plan = state(plan).group("C", ["three"]).group("D", ["through", "through_told"]);
    let plan = state(plan)
        .group("E", ["log", "log_told"])
        .labelled_edge("fork", "left", "slow")
        .labelled_edge("fork", "right", "three")
        .edge("slow", "through")
        .labelled_edge("three", "on", "through")
        .edge("through", "log");
    let logs = &[("through_told", false), ("log_told", false)];
    Course { logs, ..course(plan, "fork", 4) }
}

fn order_01_a_diamond_with_a_slow_side() {
    slow_diamond(|plan| plan).is_in_order(|builder| builder);
}

fn order_01_fan_out_of_fan_out() {
    let plan = Plan::new()
        .group("A", ["three"])
        .group("B", ["fork_twice"])
        .group("C", ["next"])
        .group("D", ["after"])
        .group("E", ["log", "log_told"])
        .labelled_edge("three", "on", "fork_twice")
        .labelled_edge("fork_twice", "left", "next")
        .labelled_edge("fork_twice", "right", "after")
        .labelled_edge("next", "on", "log")
        .labelled_edge("after", "on", "log");
    course(plan, "three", 12).is_in_order(|builder| builder.max_branches(16));
}

fn order_01_many_processes_before_a_log() {
    let plan = Plan::new()
        .group("A", ["next"])
        .processes(3)
        .stateless()
        .group("B", ["two"])
        .processes(2)
        .stateless()
        .group("C", ["log", "log_told"])
        .labelled_edge("next", "on", "two")
        .labelled_edge("two", "on", "log");
    let course = course(plan, "next", 2);
    course.is_in_order(|builder| builder);
    course.is_in_order(|builder| builder.slots(2));
}

fn order_01_keyed_groups() {
    let plan = Plan::new()
        .group("A", ["two_by_key"])
        .processes(2)
        .keyed()
        .group("B", ["through", "through_told"])
        .processes(3)
        .keyed()
        .group("C", ["log", "log_told"])
        .edge("two_by_key", "through")
        .edge("through", "log");
    let logs = &[("through_told", true), ("log_told", false)];
    Course { is_keyed: true, logs, ..course(plan, "two_by_key", 2) }.is_in_order(|builder| builder);
}

fn order_01_with_payloads_of_half_an_arena() {
    for tight in [join(), chain()] {
        let course = Course { filling: 4000, inputs: 60, ..tight };
        course.is_in_order(|builder| builder.slots(2).request_arena_bytes(8192).reply_arena_bytes(8192));
    }
}

/// `moody` fails, panics or stays silent for some inputs.
fn moody() -> Course {
    let plan = Plan::new()
        .group("A", ["next"])
        .processes(2)
        .stateless()
        .group("B", ["moody"])
        .group("C", ["log", "log_told"])
        .labelled_edge("next", "on", "moody")
        .edge("moody", "log");
    course(plan, "next", 1)
}

fn parity_01_errors_stand_in_their_place() {
    let course = moody();
    let mut first = None;
    for profile in [Profile::Memory, Profile::ProcessSupervisor] {
        for window in [1, 16, 512] {
            let engine = course.engine(profile, |builder| builder);
            let went = course.go(&engine, window, OnError::Record);
            stop(&engine);
            for (number, out) in went.0.iter().enumerate() {
                let said = match number % 10 {
                    3 => {
                        "remote handoff failed for group 'B' Execution { class: NodeError, code: 3 } Some((3, \"three\"))"
                    }
                    4 => "remote handoff failed for group 'B' Execution { class: Panic, code: 0 } None",
                    // Its only branch ended without a word.
                    5 => {
                        "Identity { trace_id: TraceId(00000000000000000000000000000000), reply_to: 5, run: 3, scenario: 4 } []"
                    }
                    _ => "Identity",
                };
                assert!(out.starts_with(said), "{profile:?}, window {window}, input {number}: {out}");
            }
            is_sorted(&went.1[0]);
            assert!(*first.get_or_insert_with(|| went.clone()) == went, "{profile:?}, window {window}");
        }
    }
}

fn parity_01_a_run_stops_at_its_first_error() {
    let course = moody();
    for profile in [Profile::Memory, Profile::ProcessSupervisor] {
        for window in [1, 16, 512] {
            let engine = course.engine(profile, |builder| builder);
            let (out, told) = course.go(&engine, window, OnError::Stop);
            assert_eq!(out.len(), 4, "the error is the last item");
            assert!(out[3].contains("NodeError") && out[..3].iter().all(|out| out.starts_with("Identity")));
            // What was behind it has been given up, or has gone through in order before that.
            is_sorted(&told[0]);
            let counters = engine.counters();
            assert_eq!(
                (counters.completed(), counters.failed),
                (4 + counters.completed() - 4, counters.failed)
            );
            stop(&engine);
        }
    }
}

/// Input 7 takes until it has met its deadline; the others have time enough.
fn parity_01_deadlines_within_a_run() {
    let plan = Plan::new()
        .group("A", ["next"])
        .group("B", ["sleepy"])
        .group("C", ["log", "log_told"])
        .labelled_edge("next", "on", "sleepy")
        .edge("sleepy", "log");
    let plan = Course { inputs: 14, ..course(plan, "next", 1) };
    for profile in [Profile::Memory, Profile::ProcessSupervisor] {
        let (engine, out) = patiently(600, |limit_ms| {
            let engine = plan.engine(profile, |builder| builder);
            let next = engine.node("next").unwrap();
            let run = engine.run(next, plan.inputs()).window(16).deadline(ms(limit_ms));
            let run = run.on_error(OnError::Record).start().unwrap();
            let out: Vec<String> = run.map(|(_, result)| seen(result)).collect();
            // A slow machine is late with others, too, or before they have come to B, or sends the rest much later.
            let is_late = |out: &String| out.starts_with("remote handoff timed out for group");
            let is_slow = out[..7].iter().any(is_late) || out[7].contains("group 'A'");
            if is_slow || !out[8..].iter().all(is_late) {
                stop(&engine);
                return None;
            }
            Some((engine, out))
        });
        for (number, out) in out.iter().enumerate() {
            match number {
                7 => assert_eq!(out, "remote handoff timed out for group 'B' Deadline None"),
                // All were sent at once, and those behind it wait for it, before B or, in memory, before A.
                8.. => assert!(out.starts_with("remote handoff timed out for group"), "{number} {out}"),
                _ => assert!(out.starts_with("Identity"), "{number} {out}"),
            }
        }
        // It is told to whoever comes next; the log has only what was in time.
        let told = tell(&engine, engine.node("log_told").unwrap(), 0);
        assert_eq!(told.lines().count(), 7, "{told}");
        is_sorted(&told);
        stop(&engine);
    }
}

fn order_01_two_runs_at_once() {
    let course = Course { inputs: 200, ..join() };
    for profile in [Profile::Memory, Profile::ProcessSupervisor] {
        let engine = course.engine(profile, |builder| builder.slots(4));
        let fork = engine.node("fork").unwrap();
        std::thread::scope(|scope| {
            for base in [0u64, 1 << 32] {
                let (engine, course) = (&engine, &course);
                scope.spawn(move || {
                    let frame = |input| Frame { input: base + input, total: 3, path: vec![], filling: 20 };
                    let inputs = (0..course.inputs).map(|input| frame(input).bytes());
                    let run = engine.run(fork, inputs).window(32).deadline(far()).start().unwrap();
                    for (number, result) in run {
                        let bytes = result.expect("it ends").into_vec();
                        assert_eq!(Frame::of(&bytes[8..]).input, base + number);
                    }
                });
            }
        });
        // Each by itself is in order, whatever the other does.
        let told = course.told(&engine);
        for base in [0u64, 1 << 32] {
            let own = within(&told[0], base..base + course.inputs);
            assert_eq!(own.lines().count() as u64, 3 * course.inputs);
            is_sorted(&own);
        }
        stop(&engine);
    }
}

fn order_01_a_dropped_run_leaves_nothing() {
    for profile in [Profile::Memory, Profile::ProcessSupervisor] {
        for window in [1, 16, 512] {
            let course = Course { filling: 1000, ..join() };
            let engine = course.engine(profile, |builder| builder.slots(4));
            for taken in [0, 1, 10, 50] {
                let fork = engine.node("fork").unwrap();
                let mut run = engine.run(fork, course.inputs()).window(window).start().unwrap();
                for number in 0..taken {
                    assert_eq!(run.next().expect("there are more").0, number);
                }
                drop(run);
            }
            until("what was in flight has ended", || engine.audit().free == 1024);
            // What is left of it holds nothing, so that another run goes through; its inputs are known to the log.
            let fork = engine.node("fork").unwrap();
            let frame = |input| Frame { input, total: 3, path: vec![], filling: 1000 };
            let inputs = (1000..1100).map(|input| frame(input).bytes());
            let all = engine.run(fork, inputs).window(window).deadline(far()).start().unwrap();
            assert_eq!(all.filter(|(_, result)| result.is_ok()).count(), 100);
            let told = course.told(&engine);
            let own = within(&told[0], 1000..1100);
            assert_eq!(own.lines().count(), 300);
            is_sorted(&own);
            balanced(&engine);
            stop(&engine);
        }
    }
}

/// Input 0 hangs in a process that is killed; all that are ready wait behind it, and are let in when it ends.
fn order_01_a_death_within_a_run() {
    let plan = Plan::new()
        .group("A", ["doomed"])
        .processes(2)
        .stateless()
        .group("B", ["log", "log_told"])
        .edge("doomed", "log");
    let course = Course { inputs: 30, ..course(plan, "doomed", 1) };
    let engine = course.engine(Profile::ProcessSupervisor, |builder| builder);
    let pid = engine.summary().worker_pids[0];
    let (out, told) = std::thread::scope(|scope| {
        let run = scope.spawn(|| course.go(&engine, 64, OnError::Record));
        until("the others are ready", || {
            engine.counters().registered == 30 && testing::open_frames(&engine, 1) == 0
        });
        common::kill(pid, rustix::process::Signal::KILL);
        run.join().expect("it ends")
    });
    let died = "remote handoff transport failed for group 'A' Signal(9) None";
    assert_eq!((out.len(), out[0].as_str()), (30, died));
    // Some had been sent to the same process.
    let ended: Vec<u64> = (0..30).filter(|number| out[*number as usize].starts_with("Identity")).collect();
    let dead = out.iter().filter(|out| *out == died).count();
    assert!(ended.len() >= 10 && ended.len() + dead == 30, "{out:#?}");
    assert_eq!(told[0].lines().count(), ended.len());
    is_sorted(&told[0]);
    stop(&engine);
}

fn parity_01_local_groups_are_like_others() {
    slow_diamond(Plan::local).is_in_order(|builder| builder);
}
