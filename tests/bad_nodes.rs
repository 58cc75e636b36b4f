//! Nodes that do what no node should: HANDOFF-04, HANDOFF-E-04 and -05, MEMORY-01. Nobody but the request, and at
//! worst its worker, pays for it; where no process is in it, the same in memory.
#![allow(unsafe_code)] // a node that closes descriptors which are not its own

use std::error::Error;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use handbell::{
    App, CallError, Category, Cause, Deadline, EngineBuilder, ExecutionClass, Failure, KilledFor, NodeError,
    Output, Plan, Profile, Request, Resource, StopMode, Stream, WorkerEvent,
};

mod common;
use common::{
    Notices, TOKEN, failure, far, is_alive, start, started, stop, token, transport, until, worker_pid,
};

program!(
    of app;
    handoff_04_a_node_that_overflows_its_stack,
    handoff_04_a_node_that_uses_up_its_memory,
    handoff_04_a_node_that_closes_every_descriptor,
    handoff_04_a_node_that_becomes_another_program,
    handoff_04_a_node_that_floods_its_output,
    handoff_04_a_panic_that_panics_when_it_is_dropped,
    stop_ipc_03_a_subscriber_that_panics_changes_nothing,
    handoff_04_a_panic_in_the_midst_of_a_reply_keeps_no_room,
    handoff_04_a_state_that_panics_at_the_end,
    handoff_d_01_a_thousand_replies_to_one_request,
    handoff_02_a_thousand_outputs_of_one_node,
    handoff_e_04_a_nodes_text_is_bounded_and_shown_on_request_only,
    handoff_e_04_an_error_finds_its_way_past_a_full_arena,
);

// ---- the nodes ----

type Result = std::result::Result<(), NodeError>;

fn app() -> App {
    common::app()
        .node("overflow", |request, output| {
            let depth = deep(request.payload().len() as u64);
            Ok(output.reply(&depth.to_le_bytes())?)
        })
        .node("hoard", hoard)
        .node("close_all", |_, _| close_all())
        .node("exec", |_, _| {
            let error = Command::new("sleep").arg("1000").exec();
            panic!("wanted: {error}")
        })
        .node("flood", flood)
        .node("bomb", |_, _| std::panic::resume_unwind(Box::new(Bomb)))
        .node("panic_in_reply", |_, output| {
            Ok(output.reply_with(4000, |_| std::panic::resume_unwind(Box::new("wanted")))?)
        })
        .node_with("last_words", || Ok(LastWords))
        .node("replies", |request, output| {
            (0..1000_u32).try_for_each(|i| output.reply(if i == 0 { request.payload() } else { b"more" }))?;
            Ok(())
        })
        .node("fail_as_told", |request, _| {
            let (code, text) = request.payload().split_at(4);
            Err(NodeError::new(
                u32::from_le_bytes(code.try_into().expect("four bytes")),
                &String::from_utf8_lossy(text),
            ))
        })
}

/// Calls itself until there is no stack.
fn deep(depth: u64) -> u64 {
    let here = [depth; 64];
    std::hint::black_box(&here);
    if depth == u64::MAX { 0 } else { deep(depth + 1) + here[(depth % 64) as usize] % 2 }
}

/// Takes memory until there is none: asks whether there is any, or does not.
fn hoard(request: &Request<'_>, output: &mut Output<'_>) -> Result {
    static STEP: [u8; 1 << 20] = [1; 1 << 20];
    let asks = request.payload() == b"asks";
    let mut hoarded: Vec<Vec<u8>> = Vec::new();
    // With the limit of its group it ends long before.
    while hoarded.len() < 4096 {
        let mut more = Vec::new();
        if asks {
            more.try_reserve_exact(STEP.len()).map_err(|_| NodeError::new(12, "no memory"))?;
        }
        more.extend_from_slice(&STEP);
        hoarded.push(more);
    }
    Ok(output.reply(b"there was no end")?)
}

fn close_all() -> ! {
    for fd in 0..1024 {
        // SAFETY: nobody may use them afterwards, and nobody who does is owed anything: this is what is tried here.
        unsafe { libc::close(fd) };
    }
    loop {
        std::thread::park();
    }
}

const FLOOD_LINES: usize = 8192;
const LINE: usize = 1023;

/// 8 MiB in lines to each stream, and 1 MiB without an end of line.
fn flood(_: &Request<'_>, output: &mut Output<'_>) -> Result {
    let line = [&[b'x'; LINE][..], b"\n"].concat();
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    for _ in 0..FLOOD_LINES {
        out.write_all(&line).expect("the pipe is drained");
        err.write_all(&line).expect("the pipe is drained");
    }
    out.write_all(&vec![b'y'; 1 << 20]).expect("the pipe is drained");
    out.flush().expect("the pipe is drained");
    Ok(output.reply(b"done")?)
}

/// Panics with another of its kind when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new(Bomb));
    }
}

/// A state that panics when its worker ends.
struct LastWords;

impl handbell::Node for LastWords {
    fn handle(&mut self, _: &Request<'_>, output: &mut Output<'_>) -> Result {
        Ok(output.reply(b"well")?)
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("wanted"));
    }
}

// ---- in the engine ----

fn over(plan: Plan) -> EngineBuilder {
    app().engine(plan).env(TOKEN, token()).on_output(|_| {})
}

fn group(nodes: &[&str]) -> EngineBuilder {
    over(Plan::new().group("g", nodes.iter().copied()))
}

const BOTH: [Profile; 2] = [Profile::ProcessSupervisor, Profile::Memory];

/// The node takes its worker along, and nobody else.
fn dies(builder: EngineBuilder, node: &str, causes: &[Cause]) {
    let (other, echo_of_other) = start(&["echo"]);
    let (engine, node) = started(builder, node);
    let (echo, pid) = (engine.node("echo").unwrap(), worker_pid(&engine));
    assert_eq!(*engine.call(echo, b"before", far()).unwrap().bytes(), *b"before");
    let running = engine.request(node).dispatch(b"").unwrap();
    let behind = engine.request(echo).dispatch(b"");
    let failed = failure(running.wait().unwrap_err(), Category::Transport);
    assert!(causes.contains(&failed.cause()) && failed.started(), "{failed:?}");
    let behind = behind.map_or_else(CallError::from, |behind| behind.wait().unwrap_err());
    let behind = failure(behind, Category::Transport);
    assert_eq!((behind.cause(), behind.started()), (failed.cause(), false));
    until("it is gone", || !is_alive(pid));
    assert_eq!(
        failure(engine.call(echo, b"", Deadline::Never).unwrap_err(), Category::Transport).cause(),
        failed.cause()
    );
    assert_eq!(*other.call(echo_of_other, b"others go on", far()).unwrap().bytes(), *b"others go on");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Forced);
    stop(&other);
}

fn handoff_04_a_node_that_overflows_its_stack() {
    // Rust's own handler sees it, and aborts.
    dies(group(&["overflow", "echo"]), "overflow", &[Cause::Signal(6)]);
}

fn handoff_04_a_node_that_uses_up_its_memory() {
    let limited = || over(Plan::new().group("g", ["hoard", "echo"]).limit(Resource::Data, 96 << 20));
    dies(limited(), "hoard", &[Cause::Signal(6)]);
    // Who asks first is told, and can say so.
    let (engine, hoard) = started(limited(), "hoard");
    for _ in 0..3 {
        let failed = failure(engine.call(hoard, b"asks", far()).unwrap_err(), Category::Execution);
        assert_eq!(failed.node_error().map(|error| (error.code(), error.text())), Some((12, "no memory")));
    }
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
}

fn handoff_04_a_node_that_closes_every_descriptor() {
    // The engine sees its connections end, and the worker's other thread that it cannot hear any more.
    let causes = [Cause::Killed(KilledFor::ConnectionLost), Cause::Signal(9)];
    dies(group(&["close_all", "echo"]), "close_all", &causes);
}

fn handoff_04_a_node_that_becomes_another_program() {
    dies(group(&["exec", "echo"]), "exec", &[Cause::Killed(KilledFor::ConnectionLost)]);
}

fn handoff_04_a_node_that_floods_its_output() {
    let counts: Arc<[AtomicU64; 3]> = Arc::default();
    let counted = Arc::clone(&counts);
    let builder = group(&["flood", "echo"]).on_output(move |line| {
        let which = match (line.stream, line.text.first()) {
            (Stream::Stdout, Some(b'x')) => 0,
            (Stream::Stderr, Some(b'x')) => 1,
            _ => 2,
        };
        assert!(line.text.len() <= 4096);
        counted[which].fetch_add(line.text.len() as u64, Ordering::Relaxed);
    });
    let (engine, flood) = started(builder, "flood");
    assert_eq!(*engine.call(flood, b"", far()).unwrap().bytes(), *b"done");
    assert_eq!(*engine.call(engine.node("echo").unwrap(), b"on", far()).unwrap().bytes(), *b"on");
    let pid = worker_pid(&engine);
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    let lines = (FLOOD_LINES * LINE) as u64;
    assert_eq!(
        [0, 1, 2].map(|i| counts[i].load(Ordering::Relaxed)),
        [lines, lines, 4096],
        "what is longer is cut"
    );
    let kept = engine.last_lines(pid);
    assert!(kept.len() <= 64 && kept.iter().all(|line| line.len() <= 4096));
}

fn panics(failed: CallError) {
    let failed = failure(failed, Category::Execution);
    assert_eq!(failed.cause(), Cause::Execution { class: ExecutionClass::Panic, code: 0 });
}

fn handoff_04_a_panic_that_panics_when_it_is_dropped() {
    for profile in BOTH {
        let (engine, bomb) = started(
            group(&["bomb", "echo"])
                .profile(profile)
                .on_failure(|_| std::panic::resume_unwind(Box::new(Bomb))),
            "bomb",
        );
        for _ in 0..3 {
            panics(engine.call(bomb, b"", far()).unwrap_err());
            // Nobody waits for this one: the engine's thread, or its second one, meets it.
            engine.request(bomb).dispatch(b"").unwrap().detach();
            assert_eq!(*engine.call(engine.node("echo").unwrap(), b"on", far()).unwrap().bytes(), *b"on");
        }
        until("all have ended", || engine.audit().in_flight == 0);
        stop(&engine);
    }
}

fn stop_ipc_03_a_subscriber_that_panics_changes_nothing() {
    // Other tests of this program have their events, too.
    let is_ours = |event: &str| event.contains("group=\"traced\"");
    let traced = common::traced::record_and(|event| {
        if event.contains("group=\"traced\"") {
            std::panic::resume_unwind(Box::new(Bomb));
        }
    });
    let (notices, failures) = (Notices::default(), Arc::new(AtomicU64::new(0)));
    let failed = Arc::clone(&failures);
    let plan = Plan::new().group("traced", ["echo", "exit"]).processes(2);
    let builder = app().engine(plan).env(TOKEN, token()).term_timeout(Duration::from_secs(60));
    let builder = builder.on_worker_event(notices.listener()).on_failure(move |_| {
        failed.fetch_add(1, Ordering::Relaxed);
    });
    let (engine, exit) = started(builder, "exit");
    assert_eq!(transport(engine.call(exit, b"4", far()).unwrap_err()), Cause::Exit(4));
    assert_eq!(*engine.call(engine.node("echo").unwrap(), b"on", far()).unwrap().bytes(), *b"on");
    assert_eq!(stop(&engine).workers.len(), 2);
    let events = notices.events();
    assert_eq!(events[4..5], [WorkerEvent::Crashed(Cause::Exit(4))], "{events:?}");
    assert_eq!(events.last(), Some(&WorkerEvent::Stopped { gracefully: true }));
    assert_eq!(failures.load(Ordering::Relaxed), 1);
    let told = traced.lock().unwrap();
    let told: Vec<&String> = told.iter().filter(|event| is_ours(event)).collect();
    assert_eq!(told.iter().filter(|event| event.contains("handoff_failure")).count(), 1, "{told:?}");
    assert_eq!(told.len(), events.len() + 1, "{told:?}");
}

fn handoff_04_a_panic_in_the_midst_of_a_reply_keeps_no_room() {
    for profile in BOTH {
        let builder = group(&["panic_in_reply", "large"]).profile(profile).reply_arena_bytes(4096);
        let (engine, node) = started(builder, "panic_in_reply");
        for _ in 0..20 {
            panics(engine.call(node, b"", far()).unwrap_err());
        }
        assert_eq!(engine.call(engine.node("large").unwrap(), b"4096", far()).unwrap().len(), 4096);
        stop(&engine);
    }
}

fn handoff_04_a_state_that_panics_at_the_end() {
    let (engine, node) = started(group(&["last_words"]), "last_words");
    assert_eq!(*engine.call(node, b"", far()).unwrap().bytes(), *b"well");
    let report = stop(&engine);
    assert_eq!((report.workers[0].mode, report.workers[0].cause), (StopMode::Forced, Cause::Exit(101)));
}

fn handoff_d_01_a_thousand_replies_to_one_request() {
    for profile in BOTH {
        let (engine, replies) = started(group(&["replies", "echo"]).slots(16).profile(profile), "replies");
        for _ in 0..3 {
            assert_eq!(*engine.call(replies, b"first", far()).unwrap().bytes(), *b"first");
        }
        // Behind all that the node had to say.
        engine.call(engine.node("echo").unwrap(), b"", far()).unwrap();
        stop(&engine);
        let counters = engine.counters();
        assert_eq!((counters.completed(), counters.duplicate_terminal), (4, 3 * 999), "{profile:?}");
        assert_eq!((counters.late_reply_drop, counters.rejected), (0, 0));
    }
}

fn handoff_02_a_thousand_outputs_of_one_node() {
    for profile in BOTH {
        let plan = Plan::new().group("g", ["burst", "nothing"]).edge("burst", "nothing");
        let (engine, burst) = started(over(plan).profile(profile), "burst");
        for _ in 0..3 {
            assert!(engine.call(burst, &[7; 1000], far()).unwrap().is_empty());
        }
        stop(&engine);
        assert_eq!(engine.counters().completed_by_last, 3);
    }
}

// ---- a node's own text ----

/// Everything that a failure shows by itself.
fn shown(failed: &Failure) -> String {
    let own = failed.node_error().expect("the node's own");
    assert!(failed.source().is_none() && own.source().is_none());
    format!("{failed} {failed:?} {failed:#?} {own} {own:?} {own:#?}")
}

fn handoff_e_04_a_nodes_text_is_bounded_and_shown_on_request_only() {
    let long = "card 4111 ".repeat(100);
    let limit = &long[..160];
    let controls = "\u{1b}[2J\u{7}card 4111\0\r\n\u{202e}\u{feff}";
    let straddling = format!("{}é", &long[..159]);
    for profile in BOTH {
        let (engine, node) = started(group(&["fail_as_told"]).profile(profile), "fail_as_told");
        for (code, text, expected) in [
            (0, "", ""),
            (u32::MAX, "card 4111", "card 4111"),
            (1, limit, limit),
            (2, &long[..161], limit),
            (3, &*long, limit),
            // Cut at a character.
            (4, &*straddling, &long[..159]),
            (5, controls, controls),
        ] {
            let payload = [&u32::to_le_bytes(code)[..], text.as_bytes()].concat();
            let failed = failure(engine.call(node, &payload, far()).unwrap_err(), Category::Execution);
            let cause = Cause::Execution { class: ExecutionClass::NodeError, code };
            assert_eq!((failed.cause(), failed.started()), (cause, true));
            let own = failed.node_error().expect("the node's own");
            assert_eq!((own.code(), own.text()), (code, expected), "{profile:?}");
            let all = shown(&failed);
            assert!(!all.contains("card 4111") && !all.contains('\u{1b}') && !all.contains('\0'), "{all}");
        }
        stop(&engine);
    }
    // What is no UTF-8 cannot be said; what comes so from a lying worker breaks a rule.
    assert_eq!(NodeError::new(1, "\u{10ffff}").text(), "\u{10ffff}");
}

fn handoff_e_04_an_error_finds_its_way_past_a_full_arena() {
    // While the caller holds the whole arena, an error still finds its way.
    let builder = group(&["fail_as_told", "large"]).reply_arena_bytes(4096);
    let (engine, node) = started(builder, "fail_as_told");
    let large = engine.node("large").unwrap();
    let view = engine.call(large, b"2048", far()).unwrap();
    assert!(view.in_place().is_some());
    let other = engine.request(large).deadline(far()).dispatch(b"2048").unwrap();
    let failed = failure(engine.call(node, b"\x07\0\0\0text", far()).unwrap_err(), Category::Execution);
    assert_eq!(failed.node_error().map(|error| (error.code(), error.text())), Some((7, "text")));
    assert_eq!(other.wait().unwrap().len(), 2048);
    drop(view);
    stop(&engine);
}
