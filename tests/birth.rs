//! What a worker prints before it is ready: drained, and handed on also when it refuses to begin.
//!
//! A program of its own, because it is its own worker: the first line of `main` serves if it was started as one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use handbell::{App, BuildError, Drain, EngineBuilder, NodeError, Output, Plan, Request, StartError};

/// More than a pipe holds.
const LINES: usize = 4_000;
const LINE: &str = "a line that is printed while the node's state is being built";

fn nothing(_: &Request<'_>, _: &mut Output<'_>) -> Result<(), NodeError> {
    Ok(())
}

fn app() -> App {
    App::new()
        .node_with("talks", || {
            (0..LINES).for_each(|_| println!("{LINE}"));
            Ok(nothing)
        })
        .node_with("fails", || match std::env::var_os("HANDBELL_WORKER") {
            Some(_) => Err(BuildError::new("the model is missing")),
            None => Ok(nothing),
        })
}

/// An engine for one node, and the lines that its worker prints.
fn engine_of(node: &str) -> (EngineBuilder, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let lines = Arc::clone(&lines);
        move |line: handbell::OutputLine<'_>| {
            lines.lock().unwrap().push(String::from_utf8_lossy(line.text).into_owned());
        }
    };
    (app().engine(Plan::new().group("g", [node])).on_output(sink), lines)
}

fn boot_03_a_worker_may_print_while_it_builds() {
    let (builder, lines) = engine_of("talks");
    let engine = builder.start().expect("output is drained meanwhile");
    engine.stop(Drain::within(Duration::from_secs(5)));
    assert_eq!(*lines.lock().unwrap(), vec![LINE; LINES]);
}

fn boot_04_a_worker_that_refuses_says_why() {
    let (builder, lines) = engine_of("fails");
    let error = builder.start().expect_err("the node cannot be built");
    assert!(matches!(error, StartError::Refused { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "start refused by the worker of group 'g': node 'fails' could not be built"
    );
    let lines = lines.lock().unwrap();
    let reason = "worker cannot start: node 'fails' cannot be built: the model is missing";
    assert_eq!(*lines, [reason]);
}

fn main() {
    app().serve_if_worker();
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(120));
        eprintln!("birth: still running after 120 s");
        std::process::abort();
    });
    boot_03_a_worker_may_print_while_it_builds();
    boot_04_a_worker_that_refuses_says_why();
    println!("birth: 2 passed");
}
