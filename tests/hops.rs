//! Plans of several groups: requests on their way from process to process, and how they end there.

use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{
    CallError, Category, Cause, Engine, EngineBuilder, ExecutionClass, Failure, Pending, Plan, Profile,
};
use rustix::process::Signal;

mod common;
use common::scripted::{self, Gate, script, trail};
use common::{TOKEN, balanced, failure, far, is_alive, kill, ms, patiently, sent_within, stop, token, until};

program![
    of scripted::app;
    handoff_01_each_group_is_a_process_of_its_own,
    handoff_02_calls_and_local_groups_cross_no_ring,
    handoff_03_identity_goes_all_the_way,
    handoff_c_02_a_misrouted_frame_harms_nobody,
    reply_01_the_last_of_several_branches_ends_a_request,
    reply_03_the_first_of_two_branches_that_reply_wins,
    late_outputs_are_dropped_and_counted,
    handoff_e_01_a_timeout_names_the_group_that_it_met,
    reply_04_a_cancel_reaches_every_group,
    more_than_max_branches_fail_a_request,
    parity_01_branches_that_have_ended_still_count,
    flow_01_a_long_way_is_one_branch,
    flow_01_a_circle_ends_by_max_hops,
    handoff_e_04_an_error_names_its_group,
    handoff_e_02_a_death_ends_what_is_in_that_group,
    handoff_e_02_a_detached_request_meets_a_dead_group,
    handoff_05_a_stop_waits_for_every_hop,
    reply_08_an_id_is_in_flight_until_the_last_group,
    reply_09_a_late_answer_from_a_second_group_reaches_nobody,
    ledger_01_balances_in_every_lane,
];

fn over(plan: Plan) -> EngineBuilder {
    scripted::app().engine(plan).env(TOKEN, token()).on_output(|_| {})
}

/// With processes, and in memory.
fn both(plan: &Plan, state: impl Fn(EngineBuilder) -> EngineBuilder) -> [Engine; 2] {
    [Profile::ProcessSupervisor, Profile::Memory]
        .map(|profile| state(over(plan.clone())).profile(profile).start().expect("the engine starts"))
}

/// Each node in a group of its own, named like the node in capitals.
fn apart(nodes: &[&str]) -> Plan {
    nodes.iter().fold(Plan::new(), |plan, node| plan.group(node.to_uppercase(), [*node]))
}

/// `a` → `b` → `c`.
fn chain() -> Plan {
    apart(&["a", "b", "c"]).edge("a", "b").edge("b", "c")
}

/// `a` → `b`, `c`, `d`; and `c` → `d`.
fn fan() -> Plan {
    apart(&["a", "b", "c", "d"]).edge("a", "b").edge("a", "c").edge("a", "d").edge("c", "d")
}

fn is_memory(engine: &Engine) -> bool {
    engine.summary().profile == Profile::Memory
}

fn ask(engine: &Engine, node: &str, words: &str) -> Pending {
    ask_within(engine, node, words, 3_600_000)
}

fn ask_within(engine: &Engine, node: &str, words: &str, deadline_ms: u64) -> Pending {
    let node = engine.node(node).expect("the plan has it");
    sent_within(engine, node, deadline_ms, &script(words))
}

fn call(engine: &Engine, node: &str, words: &str) -> Result<String, CallError> {
    ask(engine, node, words).wait().map(|reply| trail(&reply))
}

/// As [`call`], but looks on until the request has ended: who waits in the memory profile may run a node that is
/// held up behind a gate.
fn call_from_afar(engine: &Engine, node: &str, words: &str) -> Result<String, CallError> {
    let pending = ask(engine, node, words);
    until("it has ended", || engine.audit().not_taken == 1);
    pending.wait().map(|reply| trail(&reply))
}

/// The failure is of this category, names this group, and has this class.
fn fails(result: Result<String, CallError>, group: &str, class: ExecutionClass) {
    let failure = failure(result.expect_err("it fails"), Category::Execution);
    let Cause::Execution { class: found, .. } = failure.cause() else { panic!("{failure:?}") };
    assert_eq!((failure.group(), found), (group, class));
}

/// Every frame that any lane has been sent has been answered, and the answer has been read.
fn settled(engine: &Engine) {
    let lanes = engine.lane_counters().len();
    // Reading takes a caller, or the engine's thread while there is something that nobody waits for.
    let held = ask(engine, "a", "a:z1");
    until("every frame is answered", || {
        let rest = |lane| testing::open_frames(engine, lane) == 0;
        engine.audit().in_flight == 0 && (0..lanes).all(rest)
    });
    drop(held);
}

fn handoff_01_each_group_is_a_process_of_its_own() {
    for engine in both(&chain(), |builder| builder) {
        for _ in 0..100 {
            let said = call(&engine, "a", "a:pid group >b;b:pid group >c;c:pid group =").unwrap();
            let words: Vec<&str> = said.split(' ').collect();
            let [a, pid_a, "A", b, pid_b, "B", c, pid_c, "C"] = words[..] else { panic!("{said}") };
            assert_eq!([a, b, c], ["a", "b", "c"]);
            let pids = [pid_a, pid_b, pid_c].map(|pid| pid.parse::<i32>().unwrap());
            if is_memory(&engine) {
                assert_eq!(pids, [std::process::id() as i32; 3]);
            } else {
                assert_eq!(pids, *engine.summary().worker_pids);
                assert!(pids[0] != pids[1] && pids[1] != pids[2] && pids[0] != pids[2]);
                assert!(!pids.contains(&(std::process::id() as i32)));
            }
        }
        assert_eq!(engine.counters().forwarded, 200);
        stop(&engine);
    }
}

fn handoff_02_calls_and_local_groups_cross_no_ring() {
    let edges = ["a", "b", "c", "d", "e", "f", "g"];
    let plan = Plan::new()
        .group("one", ["a", "b"])
        .group("here", ["c", "d"])
        .local()
        .group("two", ["e", "f", "g"])
        .group("aside", ["h"])
        .local();
    let plan = edges.windows(2).fold(plan, |plan, pair| plan.edge(pair[0], pair[1]));
    for engine in both(&plan, |builder| builder) {
        for calls in 1..=50 {
            assert_eq!(call(&engine, "a", "").unwrap(), "a b c d e f g");
            // Alone: with no frame anywhere.
            assert_eq!(call(&engine, "h", "").unwrap(), "h");
            let rings = [0, 1, 2, 3].map(|lane| testing::ring_positions(&engine, lane));
            let expected = if is_memory(&engine) { None } else { Some((calls, calls)) };
            assert_eq!(rings, [expected, None, expected, None], "one frame in and one out for each hop");
        }
        assert_eq!(engine.counters().forwarded, 100);
        stop(&engine);
    }
}

fn handoff_03_identity_goes_all_the_way() {
    for engine in both(&chain(), |builder| builder) {
        let a = engine.node("a").unwrap();
        for i in [1, u128::MAX, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c] {
            let (reply_to, run, scenario) = (i as u32 ^ 0x8000_0001, i as u16, !i as u16);
            let request = engine.request(a).trace_id(i).reply_to(reply_to).tags(run, scenario);
            let pending =
                request.deadline(far()).dispatch(&script("a:id >b;b:id >c;c:id =")).expect("it is taken");
            let reply = pending.wait().unwrap();
            let id = format!("{i:032x}/[{reply_to},{run},{scenario}]");
            assert_eq!(trail(&reply), format!("a {id} b {id} c {id}"));
            let identity = reply.identity();
            assert_eq!(identity.trace_id, i.into());
            assert_eq!((identity.reply_to, identity.run, identity.scenario), (reply_to, run, scenario));
        }
        // The engine's own id is one, too.
        let pending = ask(&engine, "a", "a:id >b;b:id >c;c:id =");
        let id = pending.trace_id();
        let reply = pending.wait().unwrap();
        assert_eq!(reply.trace_id(), id);
        assert_eq!(trail(&reply).matches(&id.to_string()).count(), 3);
        stop(&engine);
    }
}

fn handoff_c_02_a_misrouted_frame_harms_nobody() {
    let builder = testing::with_unserved_group(over(chain()), "elsewhere", &["h"]);
    let engine = builder.start().unwrap();
    let asked: Vec<_> = (0..60).map(|i| (i, ask(&engine, if i % 3 == 1 { "h" } else { "a" }, ""))).collect();
    for (i, pending) in asked {
        let said = pending.wait().map(|reply| trail(&reply));
        match i % 3 {
            1 => fails(said, "elsewhere", ExecutionClass::Misrouted),
            _ => assert_eq!(said.unwrap(), "a b c"),
        }
    }
    let counters = engine.counters();
    assert_eq!((counters.misrouted, counters.failed, counters.completed()), (20, 20, 40));
    stop(&engine);
}

fn reply_01_the_last_of_several_branches_ends_a_request() {
    for engine in both(&fan(), |builder| builder) {
        for slow in ["b", "c", "d"] {
            let begin = Instant::now();
            let words = format!("a:>b >c >d;{slow}:z30;b:;c:;d:");
            assert!(ask(&engine, "a", &words).wait().unwrap().is_empty());
            assert!(begin.elapsed() >= Duration::from_millis(30), "{slow} is a branch, too");
        }
        // One of them goes on before it ends.
        assert!(ask(&engine, "a", "a:>b >c;b:;c:z10 >d;d:z10").wait().unwrap().is_empty());
        let counters = engine.counters();
        assert_eq!((counters.completed_by_last, counters.completed_by_terminal), (4, 0));
        assert_eq!(counters.late_output_drop, 0);
        stop(&engine);
    }
}

fn reply_03_the_first_of_two_branches_that_reply_wins() {
    for engine in both(&fan(), |builder| builder) {
        for count in 1..=10 {
            let gate = Gate::new();
            let words = format!("a:>b >c;b:=;c:{} =", gate.word());
            assert_eq!(call_from_afar(&engine, "a", &words).unwrap(), "a b");
            gate.open();
            // Its answer stands behind the second one.
            assert_eq!(call(&engine, "c", "c:=").unwrap(), "c");
            assert_eq!(engine.counters().duplicate_terminal, count);
        }
        // An error is a terminal like any other.
        let gate = Gate::new();
        let words = format!("a:>b >c;b:!3;c:{} =", gate.word());
        fails(call_from_afar(&engine, "a", &words), "B", ExecutionClass::NodeError);
        gate.open();
        assert_eq!(call(&engine, "c", "c:=").unwrap(), "c");
        let counters = engine.counters();
        assert_eq!((counters.duplicate_terminal, counters.late_reply_drop), (10, 1), "nothing completed it");
        stop(&engine);
    }
}

fn late_outputs_are_dropped_and_counted() {
    for engine in both(&fan(), |builder| builder) {
        let gate = Gate::new();
        let words = format!("a:>b >c;b:=;c:{} >d >d >d", gate.word());
        assert_eq!(call_from_afar(&engine, "a", &words).unwrap(), "a b");
        gate.open();
        assert_eq!(call(&engine, "c", "c:=").unwrap(), "c");
        let counters = engine.counters();
        assert_eq!((counters.late_output_drop, counters.forwarded), (3, 2));
        let entered = testing::ring_positions(&engine, 3);
        assert!(entered.is_none_or(|(sent, _)| sent == 0), "nobody asked D for anything: {entered:?}");
        stop(&engine);
    }
}

fn timeout(pending: Pending) -> Failure {
    let failure = failure(pending.wait().expect_err("it does not end"), Category::Timeout);
    assert_eq!(failure.cause(), Cause::Deadline);
    failure
}

fn handoff_e_01_a_timeout_names_the_group_that_it_met() {
    for engine in both(&chain(), |builder| builder) {
        // On a slow machine they do not come so far before their deadline.
        let mut tries = 0;
        let mut meets = |words: &str, group: &str, is_started: bool| {
            patiently(500, |limit_ms| {
                tries += 1;
                let failure = timeout(ask_within(&engine, "a", words, limit_ms));
                let is_so = (failure.group(), failure.started()) == (group, is_started);
                is_so.then(|| failure.to_string())
            })
        };
        for (words, group) in [("a:wait", "A"), ("b:wait", "B"), ("c:wait", "C")] {
            assert_eq!(meets(words, group, true), format!("remote handoff timed out for group '{group}'"));
        }
        // Behind one that is running there: not started.
        settled(&engine);
        let begun =
            (0..).find(|position| !testing::has_begun_at(&engine, 2, *position)).expect("there is an end");
        let gate = Gate::new();
        let running = ask(&engine, "c", &format!("c:{} =", gate.word()));
        until("it runs", || testing::has_begun_at(&engine, 2, begun));
        meets("", "C", false);
        gate.open();
        assert_eq!(trail(&running.wait().unwrap()), "c");
        assert_eq!(call(&engine, "a", "").unwrap(), "a b c", "nobody was killed");
        assert_eq!(engine.counters().expired, tries);
        stop(&engine);
    }
}

fn reply_04_a_cancel_reaches_every_group() {
    for engine in both(&fan(), |builder| builder) {
        for words in ["a:wait", "a:>b;b:wait", "a:>c;c:>d;d:wait", "a:>b >c >d;b:wait;c:wait;d:wait"] {
            let pending = ask(&engine, "a", words);
            // On its way, or where it waits: either is given up.
            std::thread::sleep(Duration::from_millis(10));
            pending.cancel();
            assert!(matches!(pending.wait(), Err(CallError::Cancelled)), "{words}");
            for node in ["b", "c", "d"] {
                // A node that had not been told would still be waiting.
                assert_eq!(call(&engine, node, &format!("{node}:=")).unwrap(), node);
            }
        }
        assert_eq!(engine.counters().cancelled, 4);
        settled(&engine);
        stop(&engine);
    }
}

fn more_than_max_branches_fail_a_request() {
    for max_branches in [1, 2, 4, 16] {
        for engine in both(&fan(), |builder| builder.max_branches(max_branches)) {
            let words = |count| format!("a:{};b:z2", ">b ".repeat(count));
            for _ in 0..3 {
                assert!(ask(&engine, "a", &words(max_branches)).wait().unwrap().is_empty());
                // The first one holds all others up until the last has been emitted.
                let gate = Gate::new();
                let too_many = format!("a:{};b:{}", ">b ".repeat(max_branches + 1), gate.word());
                fails(call_from_afar(&engine, "a", &too_many), "A", ExecutionClass::TooManyBranches);
                gate.open();
                settled(&engine);
            }
            stop(&engine);
        }
    }
}

/// Whoever is slow: the node that emits, so that each branch has ended before the next begins, those that it emits
/// to, so that all are open at once, or nobody.
fn parity_01_branches_that_have_ended_still_count() {
    for max_branches in [1, 3, 8] {
        for engine in both(&fan(), |builder| builder.max_branches(max_branches)) {
            for (emits, runs) in [("z2 >b ", ""), (">b ", "z2"), (">b ", "")] {
                let before = engine.counters();
                let words = |count| format!("a:{};b:{runs}", emits.repeat(count));
                assert!(ask(&engine, "a", &words(max_branches)).wait().unwrap().is_empty());
                let too_many = call_from_afar(&engine, "a", &words(max_branches + 1));
                fails(too_many, "A", ExecutionClass::TooManyBranches);
                settled(&engine);
                let counters = engine.counters();
                // The first has one that goes on with LAST; the second ends before that.
                let forwarded = 2 * max_branches as u64 - 1;
                assert_eq!(counters.forwarded - before.forwarded, forwarded, "{emits} {runs}");
                assert_eq!(counters.late_output_drop - before.late_output_drop, 1, "{emits} {runs}");
            }
            // An answer behind an output ends the node's own branch; the output's is another.
            let said = call_from_afar(&engine, "a", "a:>b =;b:");
            match max_branches {
                1 => fails(said, "A", ExecutionClass::TooManyBranches),
                _ => assert_eq!(said.unwrap(), "a"),
            }
            settled(&engine);
            stop(&engine);
        }
    }
}

fn flow_01_a_long_way_is_one_branch() {
    let plan = apart(&["a", "b"]).edge("a", "b").edge("b", "a").max_hops(200);
    for engine in both(&plan, |builder| builder.max_branches(1)) {
        fails(call(&engine, "a", ""), "B", ExecutionClass::TooManyHops);
        assert_eq!(engine.counters().forwarded, 200 - 1);
        stop(&engine);
    }
}

fn flow_01_a_circle_ends_by_max_hops() {
    let plan = apart(&["a", "b"]).edge("a", "b").edge("b", "a").max_hops(5);
    for engine in both(&plan, |builder| builder) {
        // a, b, a, b, a, b: the seventh hop leads back to `a`, where five are the limit.
        fails(call(&engine, "a", ""), "B", ExecutionClass::TooManyHops);
        if !is_memory(&engine) {
            let sent = [0, 1].map(|lane| testing::ring_positions(&engine, lane).map(|(sent, _)| sent));
            assert_eq!(sent, [Some(3), Some(3)]);
        }
        // From `b` the path is shorter by one: its sixth hop would be to `a`.
        fails(call(&engine, "b", ""), "B", ExecutionClass::TooManyHops);
        assert_eq!(engine.counters().forwarded, 5 + 4);
        stop(&engine);
    }
}

fn handoff_e_04_an_error_names_its_group() {
    for engine in both(&chain(), |builder| builder) {
        for (words, group, class) in [
            ("a:!7", "A", ExecutionClass::NodeError),
            ("b:!7", "B", ExecutionClass::NodeError),
            ("c:!7", "C", ExecutionClass::NodeError),
            ("b:panic", "B", ExecutionClass::Panic),
            ("b:>nowhere", "B", ExecutionClass::NoSuchEdge),
        ] {
            fails(call(&engine, "a", words), group, class);
        }
        // What was emitted before the error has gone on; the error came first.
        let gate = Gate::new();
        let words = format!("b:>c !7;c:{} =", gate.word());
        fails(call_from_afar(&engine, "a", &words), "B", ExecutionClass::NodeError);
        gate.open();
        settled(&engine);
        assert_eq!(engine.counters().forwarded, 1 + 2 + 1 + 1 + 2);
        stop(&engine);
    }
}

fn handoff_e_02_a_death_ends_what_is_in_that_group() {
    let engine = over(fan()).start().unwrap();
    let pid = engine.summary().groups[2].worker_pids[0];
    let elsewhere = ask(&engine, "a", "a:>b;b:z300 =");
    let running = ask(&engine, "a", "a:>c;c:wait");
    until("it runs", || testing::has_begun_at(&engine, 2, 0));
    let queued: Vec<_> = (0..20).map(|_| ask(&engine, "a", "a:>c >b;c:=;b:z1")).collect();
    // In B before it was in C; but it is C that dies.
    let branched = ask(&engine, "a", "a:>b >c;b:z300;c:=");
    until("they wait", || testing::open_frames(&engine, 2) == 22);
    kill(pid, Signal::KILL);
    let ended = |pending: Pending| {
        let failure = failure(pending.wait().expect_err("C is dead"), Category::Transport);
        assert_eq!((failure.group(), failure.cause()), ("C", Cause::Signal(9)));
        assert_eq!(failure.to_string(), "remote handoff transport failed for group 'C'");
        failure.started()
    };
    assert!(ended(running), "its node ran");
    assert!(!ended(branched), "its node there did not");
    for pending in queued {
        assert!(!ended(pending), "its node did not");
    }
    until("it is gone", || !is_alive(pid));
    assert_eq!(trail(&elsewhere.wait().unwrap()), "a b", "the other groups go on");
    for _ in 0..20 {
        assert!(!ended(ask(&engine, "a", "a:>c")));
        assert_eq!(call(&engine, "a", "a:>d;d:=").unwrap(), "a d");
    }
    assert_eq!(engine.counters().failed, 42);
    stop(&engine);
}

fn handoff_e_02_a_detached_request_meets_a_dead_group() {
    let engine = over(chain()).start().unwrap();
    let pid = engine.summary().groups[1].worker_pids[0];
    // Nobody takes their ends: whoever finds the group dead frees them.
    let gate = Gate::new();
    for _ in 0..5 {
        ask(&engine, "a", &format!("a:{} >b", gate.word())).detach();
    }
    kill(pid, Signal::KILL);
    until("it is gone", || !is_alive(pid));
    gate.open();
    until("what was detached has ended", || engine.audit().free == 1024);
    assert_eq!(engine.counters().failed, 5);
    assert_eq!(call(&engine, "c", "").unwrap(), "c");
    stop(&engine);
}

fn handoff_05_a_stop_waits_for_every_hop() {
    for engine in both(&chain(), |builder| builder) {
        let pending: Vec<_> = (0..20).map(|_| ask(&engine, "a", "a:z1 >b;b:z1 >c;c:z1 =")).collect();
        assert_eq!(engine.stop(handbell::Drain::within(Duration::from_secs(30))).cut_off, 0);
        for pending in pending {
            assert_eq!(trail(&pending.wait().unwrap()), "a b c");
        }
        balanced(&engine);
    }
    for engine in both(&chain(), |builder| builder) {
        let pending = ask(&engine, "a", "b:wait");
        until("it runs", || testing::has_begun_at(&engine, 1, 0));
        assert_eq!(engine.stop(handbell::Drain::within(Duration::from_millis(20))).cut_off, 1);
        let failure = failure(pending.wait().unwrap_err(), Category::Shutdown);
        assert_eq!((failure.group(), failure.started()), ("B", true));
        balanced(&engine);
    }
}

fn reply_08_an_id_is_in_flight_until_the_last_group() {
    for engine in both(&chain(), |builder| builder) {
        let a = engine.node("a").unwrap();
        let dispatch = |words| engine.request(a).trace_id(8).deadline(far()).dispatch(&script(words));
        let first = dispatch("c:wait").unwrap();
        std::thread::sleep(Duration::from_millis(10));
        let refused = dispatch("").map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "a request with this trace id is in flight");
        first.cancel();
        assert!(matches!(first.wait(), Err(CallError::Cancelled)));
        assert_eq!(trail(&dispatch("").unwrap().wait().unwrap()), "a b c");
        stop(&engine);
    }
}

fn reply_09_a_late_answer_from_a_second_group_reaches_nobody() {
    // One place in the table: B takes the slot of A, and both have a hop in group B.
    for engine in both(&chain(), |builder| builder.max_in_flight(1)) {
        for (what, next, said, replies, outputs) in [("=", "b:=", "a b", 1, 0), (">c", "", "a b c", 0, 1)] {
            let late = || (engine.counters().late_reply_drop, engine.counters().late_output_drop);
            let (gate, before) = patiently(500, |limit_ms| {
                let (gate, before) = (Gate::new(), late());
                let words = format!("b:{} {what}", gate.word());
                let pending = ask_within(&engine, "a", &words, limit_ms);
                // Not by waiting, which in the memory profile may run the very node.
                until("it has ended", || engine.audit().not_taken == 1);
                let failure = timeout(pending);
                if (failure.group(), failure.started()) == ("B", true) {
                    return Some((gate, before));
                }
                // On a slow machine it does not come so far.
                gate.open();
                settled(&engine);
                None
            });
            gate.open();
            assert_eq!(call(&engine, "a", next).unwrap(), said);
            assert_eq!(late(), (before.0 + replies, before.1 + outputs));
        }
        stop(&engine);
    }
}

fn ledger_01_balances_in_every_lane() {
    const ENDS: [&str; 8] = [
        "a:>b >c >d;b:;c:>d;d:",
        "a:>b >c;b:=;c:=",
        "a:>c;c:>d;d:=",
        "a:>b >b;b:!1",
        "a:>c >d;c:>d !2;d:=",
        "a:",
        "a:= =",
        "a:>b >c >d;b:z1 =;c:>d >d >d;d:",
    ];
    for engine in both(&fan(), |builder| builder.slots(16).max_in_flight(64)) {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let engine = &engine;
                scope.spawn(move || {
                    let mut numbers = common::Numbers(thread + 1);
                    for _ in 0..300 {
                        let deadline = if numbers.below(10) == 0 { 1 } else { 60_000 };
                        let a = engine.node("a").unwrap();
                        let words = script(ENDS[numbers.below(8) as usize]);
                        let Ok(pending) = engine.request(a).deadline(ms(deadline)).dispatch(&words) else {
                            continue;
                        };
                        match numbers.below(8) {
                            0 => drop(pending),
                            1 => pending.detach(),
                            _ => drop(pending.wait()),
                        }
                    }
                });
            }
        });
        settled(&engine);
        until("what was detached has ended", || engine.audit().free == 64);
        let (sum, lanes) = (engine.counters(), engine.lane_counters());
        for lane in &lanes {
            let dropped = lane.duplicate_terminal + lane.late_reply_drop + lane.rejected_terminal;
            assert_eq!(lane.terminals_received, lane.terminals_that_ended + dropped, "{lane:?}");
        }
        assert_eq!(lanes.into_iter().reduce(|a, b| a + b), Some(sum));
        assert!(sum.completed_by_last > 0 && sum.duplicate_terminal > 0, "{sum:?}");
        assert!(sum.cancelled > 0 && sum.failed > 0 && sum.late_output_drop > 0, "{sum:?}");
        assert_eq!(sum.rejected, 0);
        balanced(&engine);
        stop(&engine);
    }
}
