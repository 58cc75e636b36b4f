//! Groups of several processes: by key always the same one, else the least loaded one, and what becomes of
//! requests when one of them dies.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use handbell::testing;
use handbell::{
    CallError, Category, Cause, Engine, EngineBuilder, ExecutionClass, Failure, Pending, Plan, Profile,
    TryDispatchError,
};
use rustix::process::Signal;

mod common;
use common::scripted::{self, Gate, script, trail};
use common::{TOKEN, failure, far, is_alive, kill, stop, token, until};

program![
    of scripted::app;
    placement_02_an_edge_inside_a_group_is_a_call,
    placement_03_the_same_key_reaches_the_same_process,
    placement_03_requests_of_a_key_run_in_order,
    placement_03_without_a_key_the_least_loaded_takes_it,
    placement_03_a_keyed_group_is_not_reached_without_a_key,
    placement_03_both_profiles_spread_keys_alike,
    a_dead_process_leaves_its_group_to_the_others,
    a_dead_process_takes_its_keys_with_it,
    a_dead_process_does_not_end_the_wait_for_another,
];

fn over(plan: Plan) -> EngineBuilder {
    scripted::app().engine(plan).env(TOKEN, token()).on_output(|_| {})
}

fn both(plan: &Plan) -> [Engine; 2] {
    [Profile::ProcessSupervisor, Profile::Memory]
        .map(|profile| over(plan.clone()).profile(profile).start().expect("the engine starts"))
}

fn is_memory(engine: &Engine) -> bool {
    engine.summary().profile == Profile::Memory
}

fn dispatch(engine: &Engine, node: &str, key: Option<u64>, words: &str) -> Result<Pending, CallError> {
    let request = engine.request(engine.node(node).expect("the plan has it")).deadline(far());
    let request = if let Some(key) = key { request.key(key) } else { request };
    Ok(request.dispatch(&script(words))?)
}

fn call(engine: &Engine, node: &str, key: Option<u64>, words: &str) -> Result<String, CallError> {
    dispatch(engine, node, key, words)?.wait().map(|reply| trail(&reply))
}

/// The process that says so last.
fn pid(said: &str) -> i32 {
    said.rsplit(' ').next().and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

/// `a` before three processes of `b` and `c`.
fn spread() -> Plan {
    Plan::new().group("one", ["a"]).group("many", ["b", "c"]).processes(3).edge("a", "b").edge("b", "c")
}

/// The same, reached by keys only, with a log that each process has for itself.
fn keyed() -> Plan {
    let plan = Plan::new().group("one", ["a", "d"]).group("many", ["b", "log", "told"]).processes(3).keyed();
    plan.edge("a", "b").edge("b", "log").edge("d", "log")
}

fn placement_02_an_edge_inside_a_group_is_a_call() {
    let engine = over(spread()).start().unwrap();
    for _ in 0..30 {
        let said = call(&engine, "a", None, "a:pid >b;b:pid >c;c:pid =").unwrap();
        let words: Vec<&str> = said.split(' ').collect();
        let [_, a, _, b, _, c] = words[..] else { panic!("{said}") };
        assert!(a != b && b == c, "{said}");
    }
    assert_eq!(engine.counters().forwarded, 30, "one hop each");
    stop(&engine);
}

fn placement_03_the_same_key_reaches_the_same_process() {
    let engine = over(keyed()).start().unwrap();
    let mut homes = HashMap::new();
    for round in 0..4 {
        for key in (0..40).chain([u64::MAX, 1 << 63, 1 << 40]) {
            // By a caller, and by a node of another group.
            let said = match round % 2 {
                0 => call(&engine, "b", Some(key), "b:pid =").unwrap(),
                _ => call(&engine, "a", None, &format!("a:>b@{key};b:pid =")).unwrap(),
            };
            let pid = pid(&said);
            assert_eq!(*homes.entry(key).or_insert(pid), pid, "key {key}");
        }
    }
    let used: HashSet<i32> = homes.into_values().collect();
    let pids: HashSet<i32> = engine.summary().groups[1].worker_pids.iter().copied().collect();
    assert_eq!(used, pids, "every process has keys");
    stop(&engine);
}

fn placement_03_requests_of_a_key_run_in_order() {
    for engine in both(&keyed()) {
        let mut pending = Vec::new();
        for number in 0..300 {
            let key = number % 7;
            // Half of them over another group first; each way keeps its own order.
            let words = format!("a:>b@{key};b:>log;log:z0 =");
            let node = if number / 7 % 2 == 0 { "a" } else { "b" };
            let trail = format!("{words}#{node}-{key}-{number}");
            let request = engine.request(engine.node(node).unwrap()).deadline(far());
            pending.push(request.key(key).dispatch(trail.as_bytes()).unwrap());
        }
        for pending in pending {
            pending.wait().unwrap();
        }
        let mut all = 0;
        let mut asked = HashSet::new();
        for key in 0..7 {
            let told = engine.node("told").unwrap();
            let reply = engine.request(told).key(key).deadline(far()).call(b"").unwrap();
            let log = String::from_utf8(reply.into_vec()).unwrap();
            let mut latest: HashMap<String, u64> = HashMap::new();
            for line in log.lines() {
                let (way, number) = line.split(' ').next().unwrap().rsplit_once('-').unwrap();
                let number = number.parse().unwrap();
                let before = latest.insert(way.to_owned(), number);
                assert!(before.is_none_or(|before| before < number), "{way}: {before:?} before {number}");
            }
            assert!(log.contains(&format!("a-{key}-")) && log.contains(&format!("b-{key}-")));
            if asked.insert(log.clone()) {
                all += log.lines().count();
            }
        }
        assert_eq!(all, 300);
        stop(&engine);
    }
}

fn placement_03_without_a_key_the_least_loaded_takes_it() {
    let engine = over(spread()).start().unwrap();
    let gate = Gate::new();
    let held = format!("b:{} pid =", gate.word());
    // Each of the first three finds the processes before it busy, whichever way it comes.
    let first = dispatch(&engine, "b", None, &held).unwrap();
    let second = dispatch(&engine, "a", None, &held).unwrap();
    until("it has arrived", || testing::open_frames(&engine, 2) == 1);
    let third = dispatch(&engine, "b", None, &held).unwrap();
    assert_eq!([1, 2, 3].map(|lane| testing::open_frames(&engine, lane)), [1, 1, 1]);
    gate.open();
    let pids = [first, second, third].map(|pending| pid(&trail(&pending.wait().unwrap())));
    assert_eq!(pids, *engine.summary().groups[1].worker_pids);
    stop(&engine);
    // In memory there are as many states, and a slow one takes no second request while another is idle.
    let engine = over(spread()).profile(Profile::Memory).start().unwrap();
    let gate = Gate::new();
    let first = dispatch(&engine, "b", None, &format!("b:{} =", gate.word())).unwrap();
    until("it runs", || testing::has_begun_at(&engine, 1, 0));
    for _ in 0..10 {
        assert_eq!(call(&engine, "b", None, "b:=").unwrap(), "b");
        assert_eq!(call(&engine, "a", None, "b:=").unwrap(), "a b");
    }
    gate.open();
    assert_eq!(trail(&first.wait().unwrap()), "b");
    stop(&engine);
}

fn placement_03_a_keyed_group_is_not_reached_without_a_key() {
    for engine in both(&keyed()) {
        let b = engine.node("b").unwrap();
        let said = "the node belongs to a keyed group: the request needs a key";
        let request = || engine.request(b).deadline(far());
        assert_eq!(request().call(b"").unwrap_err().to_string(), said);
        assert_eq!(request().dispatch(b"").map(drop).unwrap_err().to_string(), said);
        assert_eq!(request().loan(10).map(drop).unwrap_err().to_string(), said);
        assert_eq!(request().loan_zeroed(100_000).map(drop).unwrap_err().to_string(), said);
        let Err(TryDispatchError::Refused(refused)) = request().try_dispatch(b"") else { panic!("no key") };
        assert_eq!(refused.to_string(), said);
        let mut loan = request().key(3).loan(1000).unwrap();
        loan.fill(b'#');
        assert!(trail(&loan.call().unwrap()).ends_with("b log"));
        assert_eq!(engine.counters().registered, 1, "nothing was sent");
        // At an edge it is the node's fault.
        let failed: Failure = failure(call(&engine, "a", None, "a:>b").unwrap_err(), Category::Execution);
        let class = ExecutionClass::KeyMissing;
        assert_eq!((failed.group(), failed.cause()), ("one", Cause::Execution { class, code: 0 }));
        assert_eq!(call(&engine, "a", None, "a:>b@0;b:=").unwrap(), "a b");
        stop(&engine);
    }
}

fn placement_03_both_profiles_spread_keys_alike() {
    let [process, memory] = both(&keyed());
    for key in 0..100 {
        for engine in [&process, &memory] {
            let said = call(engine, "d", None, &format!("d:>log@{key};log:="));
            assert!(said.unwrap().ends_with("log"));
        }
        let asked = [&process, &memory].map(|engine| {
            engine.lane_counters().iter().map(|lane| lane.terminals_received).collect::<Vec<_>>()
        });
        assert_eq!(asked[0], asked[1], "key {key}");
    }
    stop(&process);
    stop(&memory);
    assert!(!is_memory(&process) && is_memory(&memory));
}

fn is_dead(engine: &Engine, process: usize) {
    let pid = engine.summary().groups[1].worker_pids[process];
    kill(pid, Signal::KILL);
    until("it is gone", || !is_alive(pid));
}

fn a_dead_process_leaves_its_group_to_the_others() {
    let engine = over(spread()).start().unwrap();
    let pids = engine.summary().groups[1].worker_pids.clone();
    let gate = Gate::new();
    let held: Vec<_> =
        (0..9).map(|_| dispatch(&engine, "b", None, &format!("b:{} pid =", gate.word())).unwrap()).collect();
    is_dead(&engine, 0);
    until("its requests have failed", || engine.counters().failed == 3);
    gate.open();
    let ends: Vec<_> = held.into_iter().map(|pending| pending.wait()).collect();
    let failed = ends.iter().filter(|end| end.is_err()).count();
    assert_eq!(failed, 3, "one in three was there");
    for end in ends.into_iter().filter_map(Result::ok) {
        assert!(pids[1..].contains(&pid(&trail(&end))));
    }
    for _ in 0..50 {
        assert!(pids[1..].contains(&pid(&call(&engine, "b", None, "b:pid =").unwrap())));
        assert!(pids[1..].contains(&pid(&call(&engine, "a", None, "b:pid =").unwrap())));
    }
    stop(&engine);
}

fn a_dead_process_takes_its_keys_with_it() {
    let engine = over(keyed()).start().unwrap();
    let pids = engine.summary().groups[1].worker_pids.clone();
    let home = |key| pid(&call(&engine, "b", Some(key), "b:pid =").unwrap());
    let homes: Vec<i32> = (0..30).map(home).collect();
    is_dead(&engine, 1);
    let lost = homes.iter().position(|home| *home == pids[1]).expect("it has keys") as u64;
    until("it is known", || call(&engine, "b", Some(lost), "b:=").is_err());
    for (key, home) in homes.into_iter().enumerate() {
        let asked = [
            call(&engine, "b", Some(key as u64), "b:pid ="),
            call(&engine, "a", None, &format!("a:>b@{key};b:pid =")),
        ];
        for said in asked {
            if home == pids[1] {
                let failed = failure(said.unwrap_err(), Category::Transport);
                assert_eq!((failed.group(), failed.cause()), ("many", Cause::Signal(9)));
                assert!(!failed.started());
            } else {
                assert_eq!(pid(&said.unwrap()), home, "others stay where they are");
            }
        }
    }
    stop(&engine);
}

fn a_dead_process_does_not_end_the_wait_for_another() {
    let plan = Plan::new().group("one", ["a"]).group("many", ["b"]).processes(2);
    let engine = over(plan).slots(2).start().unwrap();
    let gate = Gate::new();
    let held: Vec<_> =
        (0..4).map(|_| dispatch(&engine, "b", None, &format!("b:{} =", gate.word())).unwrap()).collect();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| call(&engine, "b", None, "b:pid ="))).collect();
        // Asleep by now, for room in either ring.
        std::thread::sleep(Duration::from_millis(50));
        is_dead(&engine, 0);
        until("its requests have failed", || engine.counters().failed == 2);
        std::thread::sleep(Duration::from_millis(50));
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "the other process is full, too");
        gate.open();
        for waiting in waiting {
            assert_eq!(pid(&waiting.join().unwrap().unwrap()), engine.summary().groups[1].worker_pids[1]);
        }
    });
    assert_eq!(held.into_iter().map(Pending::wait).filter(Result::is_err).count(), 2);
    // With both gone there is nothing left to wait for.
    is_dead(&engine, 1);
    until("it is known", || call(&engine, "b", None, "b:=").is_err());
    let failed = failure(call(&engine, "b", None, "b:=").unwrap_err(), Category::Transport);
    assert_eq!((failed.group(), failed.started()), ("many", false));
    stop(&engine);
}
