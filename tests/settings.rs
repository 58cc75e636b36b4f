//! Settings are checked once, before anything starts, and do what they say: GATE-01.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use handbell::{EngineBuilder, Plan, Profile, StartError, Stream, Waiting};

mod common;
use common::{app, engine, far, memory_engine, start, started, stop, until, worker_pid};

program!(
    gate_01_a_refused_setting_names_field_value_and_rule,
    gate_01_a_refused_plan_names_what_is_wrong,
    gate_01_a_budget_names_both_figures,
    gate_02_the_summary_shows_what_was_started,
    every_policy_of_waiting_answers,
    both_ends_on_one_processor_answer,
    a_worker_is_pinned,
    the_environment_is_an_allow_list,
    output_is_captured_line_by_line,
    a_flood_of_output_holds_up_nobody,
    a_summary_shows_what_was_started,
);

fn refused(builder: EngineBuilder) -> String {
    builder.start().expect_err("it must be refused").to_string()
}

fn gate_01_a_refused_setting_names_field_value_and_rule() {
    for start in [engine, memory_engine] {
        let e = || start(&["echo"]);
        let slots = "must be a power of two between 2 and 65536";
        let bytes = "must be a power of two between 4096 and 68719476736";
        let time = "must be between 1 ms and one day";
        for (builder, said) in [
            (e().slots(3), format!("slots = 3: {slots}")),
            (e().slots(0), format!("slots = 0: {slots}")),
            (e().slots(1), format!("slots = 1: {slots}")),
            (e().slots(131_072), format!("slots = 131072: {slots}")),
            (e().slot_bytes(64), "slot_bytes = 64: must be a power of two between 128 and 4096".into()),
            (e().slot_bytes(200), "slot_bytes = 200: must be a power of two between 128 and 4096".into()),
            (e().request_arena_bytes(2048), format!("request_arena_bytes = 2048: {bytes}")),
            (e().reply_arena_bytes(5000), format!("reply_arena_bytes = 5000: {bytes}")),
            (e().max_in_flight(0), "max_in_flight = 0: must be between 1 and 1048576".into()),
            (e().max_branches(17), "max_branches = 17: must be between 1 and 16".into()),
            (e().completed_history(0), "completed_history = 0: must be between 1 and 16777216".into()),
            (e().start_timeout(Duration::ZERO), format!("start_timeout = 0ns: {time}")),
            (e().term_timeout(Duration::from_secs(86_401)), format!("term_timeout = 86401s: {time}")),
        ] {
            assert_eq!(refused(builder), format!("setting {said}"));
        }
        let pin = refused(e().pin(9999));
        assert!(
            pin.starts_with("setting pin = 9999: must be a processor that this process may use: ["),
            "{pin}"
        );
    }
}

fn gate_01_a_refused_plan_names_what_is_wrong() {
    let plan = Plan::new;
    let long = "x".repeat(65);
    for (plan, said) in [
        (plan(), "the plan has no group"),
        (plan().group("g", [] as [&str; 0]), "group 'g' has no node"),
        (plan().group("g", ["echo", "echo"]), "node 'echo' is in group 'g' and again in group 'g'"),
        (
            plan().group("g", ["echo"]).edge("echo", "upper"),
            "edge 'echo' -> 'upper': node 'upper' is in no group",
        ),
        (
            plan().group("g", ["echo", "upper"]).edge("echo", "upper").edge("echo", "upper"),
            "node 'echo' has two edges labelled 'upper'",
        ),
        (
            plan().group("g", ["echo", "upper"]).edge("echo", "upper").edge("upper", "echo"),
            "the edges form a circle inside group 'g': 'echo' -> 'upper' -> 'echo'",
        ),
        (
            plan().group("g g", ["echo"]),
            "group name \"g g\": must be 1 to 64 of a-z, A-Z, 0-9, '-', '_', '.', ':'",
        ),
    ] {
        assert_eq!(refused(app().engine(plan)), format!("plan: {said}"));
    }
    let name = refused(app().engine(Plan::new().group("g", [long])));
    assert!(name.starts_with("plan: node name \"xxx"), "{name}");
}

fn gate_01_a_budget_names_both_figures() {
    let builder = || engine(&["echo"]);
    let running = builder().start().unwrap();
    let needed = running.summary().mapped_bytes;
    stop(&running);
    let refused = builder().memory_limit(needed - 1).start().unwrap_err();
    assert!(matches!(refused, StartError::Budget(_)));
    let limit = needed - 1;
    assert_eq!(
        refused.to_string(),
        format!("budget: memory_limit = {limit} bytes: the plan needs {needed} bytes, {needed} per lane")
    );
    stop(&builder().memory_limit(needed).start().unwrap());
    // More than any machine has.
    let refused = builder().reply_arena_bytes(1 << 36).request_arena_bytes(1 << 36).start().unwrap_err();
    let said = refused.to_string();
    assert!(
        said.starts_with("budget: the plan needs 1374") && said.contains(" bytes are available"),
        "{said}"
    );
}

const POLICIES: [Waiting; 3] = [Waiting::Spin, Waiting::Adaptive, Waiting::Block];

fn every_policy_of_waiting_answers() {
    for waiting in POLICIES {
        let (engine, echo) = started(engine(&["echo", "sleep"]).waiting(waiting), "echo");
        let sleep = engine.node("sleep").unwrap();
        assert_eq!(engine.summary().waiting, waiting);
        for i in 0u32..300 {
            assert_eq!(engine.call(echo, &i.to_le_bytes(), far()).unwrap().to_value::<u32>(), Some(i));
        }
        // Both sides have gone to sleep meanwhile, or would have.
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            assert!(engine.call(echo, b"", far()).is_ok());
            assert!(engine.call(sleep, b"20", far()).is_ok());
        }
        stop(&engine);
    }
}

/// The processors that this thread may use.
fn processors() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).expect("a thread knows its processors");
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
}

fn both_ends_on_one_processor_answer() {
    let processor = processors()[0];
    for waiting in POLICIES {
        // A thread of its own, because it keeps what is set here.
        let run = move || {
            let mut set = rustix::thread::CpuSet::new();
            set.set(processor);
            rustix::thread::sched_setaffinity(None, &set).expect("one of its own");
            let (engine, echo) = started(engine(&["echo"]).waiting(waiting).pin(processor), "echo");
            for i in 0u32..300 {
                assert_eq!(engine.call(echo, &i.to_le_bytes(), far()).unwrap().to_value::<u32>(), Some(i));
            }
            stop(&engine);
        };
        std::thread::spawn(run).join().expect("it answers");
    }
}

fn a_worker_is_pinned() {
    for processor in processors() {
        let (engine, _) = started(engine(&["echo"]).pin(processor), "echo");
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker_pid(&engine))).unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
        assert_eq!(allowed, Some(processor.to_string().as_str()));
        stop(&engine);
    }
}

fn the_environment_is_an_allow_list() {
    let builder = engine(&["env", "env_names"]).env("HANDBELL_STATED", "as stated").env("TZ", "Mars/Olympus");
    let (engine, env) = started(builder, "env");
    let ask =
        |name: &str| String::from_utf8(engine.call(env, name.as_bytes(), far()).unwrap().into_vec()).unwrap();
    assert_eq!(ask("HANDBELL_STATED"), "as stated");
    assert_eq!(ask("TZ"), "Mars/Olympus", "what is stated wins");
    assert_eq!(ask("PATH"), std::env::var("PATH").unwrap_or_else(|_| "(unset)".into()));
    let names = engine.call(engine.node("env_names").unwrap(), b"", far()).unwrap().into_vec();
    const MAY: &str = "PATH HOME USER LANG LC_ALL LC_CTYPE TZ TMPDIR LD_LIBRARY_PATH RUST_BACKTRACE RUST_LOG \
        LLVM_PROFILE_FILE HANDBELL_WORKER HANDBELL_STATED HANDBELL_TEST_TOKEN";
    for name in String::from_utf8(names).unwrap().split(' ') {
        assert!(MAY.split_whitespace().any(|may| may == name), "{name} was inherited");
    }
    stop(&engine);
}

type Lines = Arc<Mutex<Vec<(String, i32, Stream, String)>>>;

fn capturing(nodes: &[&str]) -> (EngineBuilder, Lines) {
    let lines = Lines::default();
    let sink = Arc::clone(&lines);
    let builder = engine(nodes).on_output(move |line| {
        let text = String::from_utf8_lossy(line.text).into_owned();
        sink.lock().unwrap().push((line.group.into(), line.pid, line.stream, text));
        // A sink that panics loses nothing but its own work.
        if line.text.ends_with(b"panic") {
            std::panic::resume_unwind(Box::new("wanted"));
        }
    });
    (builder, lines)
}

fn output_is_captured_line_by_line() {
    let (builder, lines) = capturing(&["print"]);
    let (engine, print) = started(builder, "print");
    let pid = worker_pid(&engine);
    let long = "x".repeat(10_000);
    for text in ["one", "panic", "two\nthree", "", &long] {
        engine.call(print, text.as_bytes(), far()).unwrap();
    }
    // What was printed before the end is handed on before the stop returns.
    stop(&engine);
    let lines = lines.lock().unwrap();
    assert!(lines.iter().all(|(group, from, ..)| group == "g" && *from == pid));
    let of = |stream| {
        lines.iter().filter(move |line| line.2 == stream).map(|line| line.3.as_str()).collect::<Vec<_>>()
    };
    let cut = &long[..4092];
    let expected = |word: &str| -> Vec<String> {
        ["one", "panic", "two"]
            .map(|text| format!("{word} {text}"))
            .into_iter()
            .chain(["three".into(), format!("{word} "), format!("{word} {cut}")])
            .collect()
    };
    assert_eq!(of(Stream::Stdout), expected("out"));
    assert_eq!(of(Stream::Stderr), expected("err"));
}

fn a_flood_of_output_holds_up_nobody() {
    let (builder, lines) = capturing(&["print", "exit"]);
    let (engine, print) = started(builder, "print");
    let text = format!("{}\n", "y".repeat(1000)).repeat(100);
    for _ in 0..20 {
        assert!(engine.call(print, text.as_bytes(), far()).is_ok());
    }
    // The worker's last words are taken although it is dead.
    engine.call(print, b"last words", far()).unwrap();
    assert!(engine.call(engine.node("exit").unwrap(), b"0", far()).is_err());
    until("all of it is there", || {
        lines.lock().unwrap().iter().filter(|line| line.3.ends_with("last words")).count() == 2
    });
    stop(&engine);
    assert_eq!(lines.lock().unwrap().iter().filter(|line| line.3.len() >= 1000).count(), 20 * 200);
}

fn a_summary_shows_what_was_started() {
    let (engine, _) = start(&["echo", "upper"]);
    let shown = engine.summary().to_string();
    for word in
        ["process_supervisor", "echo → upper", &worker_pid(&engine).to_string(), "1024 slots of 256 bytes"]
    {
        assert!(shown.contains(word), "{shown}");
    }
    stop(&engine);
    let engine = memory_engine(&["echo"]).start().unwrap();
    assert_eq!((engine.summary().profile, engine.summary().mapped_bytes), (Profile::Memory, 0));
    stop(&engine);
}

fn gate_02_the_summary_shows_what_was_started() {
    let plan = || {
        Plan::new()
            .group("f", ["first"])
            .processes(2)
            .stateless()
            .group("g", ["second"])
            .edge("first", "second")
    };
    let builder = common::app().engine(plan()).env(common::TOKEN, common::token());
    let (engine, _) = common::started(builder.slots(64).max_in_flight(10), "first");
    let (summary, pids) = (engine.summary(), engine.worker_pids());
    let shown = summary.to_string();
    for said in [
        "profile    process_supervisor, waiting Adaptive".to_owned(),
        format!("group      f (first): workers [{}, {}]", pids[0], pids[1]),
        format!("group      g (second): workers [{}]", pids[2]),
        format!("{} bytes mapped: 3 lanes of {} bytes", summary.mapped_bytes, summary.lane_bytes),
        "64 slots of 256 bytes, payload 262144 bytes, 10 requests in flight, 8 branches each".to_owned(),
        "security   doorbell on 127.0.0.1, fresh secrets; segments sealed, one writer each".to_owned(),
    ] {
        assert!(shown.contains(&said), "{said}\n{shown}");
    }
    assert_eq!(summary.mapped_bytes, 3 * summary.lane_bytes);
    common::stop(&engine);
    let builder = common::app().engine(plan()).profile(handbell::Profile::Memory);
    let (engine, _) = common::started(builder, "first");
    let shown = engine.summary().to_string();
    assert!(
        shown.contains("profile    memory") && shown.contains("f (first): in this process, 2 of it"),
        "{shown}"
    );
    assert!(shown.contains("0 bytes mapped") && !shown.contains("security"), "{shown}");
    common::stop(&engine);
}
