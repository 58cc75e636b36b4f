//! Runs whose inputs have several branches: all that enters runs, the answer that is first in the order of places
//! counts, and so both profiles give the same bytes, also where nodes keep state and answer every frame.

use std::time::{Duration, SystemTime};

use handbell::{
    App, CallError, Counters, Engine, EngineBuilder, ExecutionClass, NodeError, OnError, Output, Plan,
    Profile, Request, Restart,
};

mod common;
use common::played::{self, Play};
use common::scripted::{self, script};
use common::{Numbers, TOKEN, balanced, far, ms, number_from, stop, token, until};

program![
    of app;
    parity_01_a_diamond_into_a_node_that_answers_every_frame,
    order_01_the_first_place_wins_whoever_is_faster,
    order_01_an_answer_with_more_behind_it,
    order_01_an_error_is_an_answer_in_its_place,
    ledger_01_answers_of_inputs_that_end_otherwise,
    ledger_01_a_dropped_run_with_answers_leaves_nothing,
    restart_02_a_rerun_answers_again,
    order_01_plain_requests_end_with_their_first_answer,
    parity_01_random_plans_are_like_a_model,
];

fn app() -> App {
    played::add_to(scripted::app())
        .node_with("counter", || {
            // Answers every frame with how many there have been, and the frame.
            let mut count = 0_u64;
            Ok(move |request: &Request<'_>, output: &mut Output<'_>| {
                count += 1;
                Ok(output.reply(&[&count.to_le_bytes(), request.payload()].concat())?)
            })
        })
        .node("split", |request, output| {
            output.emit_to("left", &[request.payload(), b"l"].concat())?;
            Ok(output.emit_to("right", &[request.payload(), b"r"].concat())?)
        })
        .node("slow", |request, output| {
            dawdle(1000);
            Ok(output.emit(request.payload())?)
        })
        .node("three", |request, output| {
            (0..3).try_for_each(|index| Ok(output.emit(&[request.payload(), &[b'0' + index]].concat())?))
        })
        .node("left", answer)
        .node("right", answer)
        .node("again", |request, output| {
            // In its first life it dies behind an answer and two outputs, of which the second is not sent.
            output.reply(b"answer")?;
            output.emit(b"one")?;
            output.emit(b"two")?;
            let path = String::from_utf8_lossy(request.payload()).into_owned();
            if std::fs::File::create_new(&path).is_ok() {
                while !std::fs::exists(path.clone() + ".go").unwrap_or(false) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::process::exit(9);
            }
            Ok(())
        })
}

/// Sleeps for a while that differs from time to time, seldom longer than this.
fn dawdle(us: u64) {
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64 | 1);
    let mut numbers = Numbers(now);
    if numbers.below(4) > 0 {
        std::thread::sleep(Duration::from_micros(numbers.below(us)));
    }
}

/// Answers with the payload's bytes up to the length that its first four say.
fn answer(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    dawdle(400);
    let payload = request.payload();
    let len = u32::from_le_bytes(payload[..4].try_into().expect("four bytes")) as usize;
    let said = [payload, &vec![payload[payload.len() - 1]; len]].concat();
    Ok(output.reply(&said)?)
}

fn over(plan: &Plan) -> EngineBuilder {
    app().engine(plan.clone()).env(TOKEN, token()).on_output(|_| {})
}

fn both(plan: &Plan) -> [Engine; 2] {
    [Profile::Memory, Profile::ProcessSupervisor]
        .map(|profile| over(plan).profile(profile).start().expect("the engine starts"))
}

/// What comes out of a run, each as text.
fn go(engine: &Engine, first: &str, inputs: &[Vec<u8>], window: usize) -> Vec<Result<Vec<u8>, String>> {
    let run = engine.run(engine.node(first).unwrap(), inputs).window(window).deadline(far());
    let run = run.on_error(OnError::Record).start().unwrap();
    let out = run.map(|(_, result)| match result {
        Ok(reply) => Ok(reply.into_vec()),
        Err(CallError::Failed(failure)) => Err(format!("{failure} {:?}", failure.cause())),
        Err(error) => Err(error.to_string()),
    });
    out.collect()
}

/// Terminals: received, that ended a request, duplicate, late.
fn terminals(counters: &Counters) -> [u64; 4] {
    assert!(counters.balances(0), "{counters:?}");
    [
        counters.terminals_received,
        counters.terminals_that_ended,
        counters.duplicate_terminal,
        counters.late_reply_drop,
    ]
}

/// `split` to two groups that answer.
fn two_answers() -> Plan {
    let plan = Plan::new().group("A", ["split"]).group("B", ["left"]).group("C", ["right"]);
    plan.edge("split", "left").edge("split", "right")
}

fn parity_01_a_diamond_into_a_node_that_answers_every_frame() {
    let plan = Plan::new()
        .group("A", ["split"])
        .group("B", ["slow"])
        .group("C", ["three"])
        .group("D", ["counter"])
        .labelled_edge("split", "left", "slow")
        .labelled_edge("split", "right", "three")
        .edge("slow", "counter")
        .edge("three", "counter");
    let inputs: Vec<Vec<u8>> = (0..50_u8).map(|input| vec![input]).collect();
    for engine in both(&plan) {
        let mut before = 0;
        for window in [1, 16, 64].repeat(3) {
            for (input, out) in go(&engine, "split", &inputs, window).into_iter().enumerate() {
                // The slow side's frame comes first, then the three of the other side.
                let expected = [&(before + 4 * input as u64 + 1).to_le_bytes()[..], &[input as u8, b'l']];
                assert_eq!(out, Ok(expected.concat()), "window {window}, input {input}");
            }
            before += 4 * inputs.len() as u64;
            let counters = engine.counters();
            assert_eq!(terminals(&counters), [before, before / 4, 3 * before / 4, 0]);
            assert_eq!((counters.completed_by_terminal, counters.ended()), (before / 4, before / 4));
            assert_eq!((counters.forwarded, counters.late_output_drop), (before / 4 * 6, 0));
        }
        stop(&engine);
    }
}

fn order_01_the_first_place_wins_whoever_is_faster() {
    for engine in both(&two_answers()) {
        let mut asked = 0;
        // Inline, in the arena, and more than half of that.
        for len in [0_u32, 1000, 150_000] {
            for window in [1, 16] {
                let inputs = vec![len.to_le_bytes().to_vec(); 40];
                for out in go(&engine, "split", &inputs, window) {
                    let out = out.expect("it answers");
                    assert_eq!(out.len(), 5 + len as usize);
                    assert!(out[4..].iter().all(|byte| *byte == b'l'), "{len}, window {window}");
                }
                asked += 40;
                assert_eq!(terminals(&engine.counters()), [2 * asked, asked, asked, 0]);
                assert_eq!(engine.counters().completed_by_terminal, asked);
            }
        }
        let lanes = engine.lane_counters();
        assert_eq!([1, 2].map(|lane| lanes[lane].terminals_received), [asked; 2]);
        assert_eq!([1, 2].map(|lane| lanes[lane].terminals_that_ended), [asked, 0]);
        assert_eq!([1, 2].map(|lane| lanes[lane].duplicate_terminal), [0, asked]);
        stop(&engine);
    }
}

/// `a` → `b`, `log`; `log` → `b`.
fn chain_with_log() -> Plan {
    let plan = Plan::new().group("A", ["a"]).group("L", ["log", "told"]).group("B", ["b"]);
    plan.edge("a", "b").edge("a", "log").edge("log", "b")
}

fn trail(out: &Result<Vec<u8>, String>) -> String {
    let out = String::from_utf8(out.clone().expect("it answers")).expect("text");
    out.split_once('#').map_or(out.clone(), |(_, trail)| trail.trim().to_owned())
}

fn order_01_an_answer_with_more_behind_it() {
    for engine in both(&chain_with_log()) {
        let cases = [
            // Its own answer stands before what it emits then, and all of that runs.
            ("a:= >log >log;log:= >b;b:=", "a", [5, 1, 4, 0], 2),
            // The output stands before the answer, however slow.
            ("a:>b = >log;b:z1 =;log:", "a b", [2, 1, 1, 0], 1),
            // Only what is in the second place answers.
            ("a:>b >log =;b:;log:z1", "a", [1, 1, 0, 0], 1),
            ("a:= = =", "a", [3, 1, 2, 0], 0),
        ];
        for (words, said, counted, logged) in cases {
            let count = 20;
            let told = || {
                let log = engine.call(engine.node("told").unwrap(), b"", far()).unwrap().into_vec();
                String::from_utf8(log).unwrap().lines().count() as u64
            };
            let (lines, before) = (told(), terminals(&engine.counters()));
            for window in [1, 16] {
                for out in go(&engine, "a", &vec![script(words); count], window) {
                    assert_eq!(trail(&out), said, "{words}");
                }
            }
            let after = terminals(&engine.counters());
            let each = [0, 1, 2, 3].map(|i| (after[i] - before[i]) / (2 * count as u64));
            assert_eq!(each, counted, "{words}");
            assert_eq!(told() - lines, 2 * count as u64 * logged, "all that entered has run: {words}");
        }
        stop(&engine);
    }
}

fn order_01_an_error_is_an_answer_in_its_place() {
    let failed = "remote handoff failed for group 'B' Execution { class: NodeError, code: 7 }";
    for engine in both(&chain_with_log()) {
        for (words, said) in [
            ("a:>b >log;b:z1 !7;log:=", Err(failed)),
            ("a:>log >b;b:!7;log:z1 =", Ok("a log")),
            ("a:>b =;b:z1 !7", Err(failed)),
            ("a:= >b;b:!7", Ok("a")),
            // What was emitted before the error stands before it.
            ("a:>log !3;log:z1 >b;b:=", Ok("a log b")),
        ] {
            let before = engine.counters();
            for out in go(&engine, "a", &vec![script(words); 10], 16) {
                match said {
                    Ok(said) => assert_eq!(trail(&out), said, "{words}"),
                    Err(said) => assert_eq!(out, Err(said.to_owned()), "{words}"),
                }
            }
            let (counters, failed) = (engine.counters(), u64::from(said.is_err()));
            assert_eq!(counters.failed - before.failed, 10 * failed, "{words}");
            assert_eq!(counters.completed() - before.completed(), 10 - 10 * failed, "{words}");
            assert_eq!(counters.duplicate_terminal - before.duplicate_terminal, 10, "{words}");
        }
        assert_eq!(engine.counters().late_reply_drop, 0);
        stop(&engine);
    }
}

fn ledger_01_answers_of_inputs_that_end_otherwise() {
    for engine in both(&chain_with_log()) {
        let run = |words: &str, deadline_ms| {
            let inputs = vec![script(words); 5];
            let run = engine.run(engine.node("a").unwrap(), &inputs).window(5).deadline(ms(deadline_ms));
            let run = run.on_error(OnError::Record).start().unwrap();
            run.map(|(_, result)| result.map(drop).unwrap_err()).collect::<Vec<CallError>>()
        };
        // `b` has answered when the deadline passes, or is late itself; nothing else ends the input.
        for end in run("a:>b >log;b:=;log:wait", 300) {
            let CallError::Failed(failure) = end else { panic!("{end:?}") };
            assert_eq!(failure.cause(), handbell::Cause::Deadline);
        }
        settled(&engine);
        let counters = engine.counters();
        // Whose deadline passed before it could be sent is not registered. The one is that which settled it.
        assert_eq!((counters.expired, counters.completed()), (counters.registered - 1, 1), "{counters:?}");
        assert_eq!(counters.duplicate_terminal, 0);
        // One branch too many ends an input at once, whoever has answered.
        for end in run("a:= >b >b >b >b >b >b >b >b >b;b:=", 60_000) {
            let CallError::Failed(failure) = end else { panic!("{end:?}") };
            let class = ExecutionClass::TooManyBranches;
            assert_eq!(failure.cause(), handbell::Cause::Execution { class, code: 0 });
        }
        settled(&engine);
        let counters = engine.counters();
        assert_eq!((counters.failed, counters.duplicate_terminal), (5, 0), "{counters:?}");
        stop(&engine);
    }
}

/// Every frame has been answered, and the answer has been read.
fn settled(engine: &Engine) {
    let lanes = engine.lane_counters().len();
    // Reading takes a caller, or the engine's thread while there is something that nobody waits for.
    let held = engine.request(engine.node("told").unwrap()).deadline(far()).dispatch(b"").unwrap();
    until("every frame is answered", || {
        engine.audit().in_flight == 0
            && (0..lanes).all(|lane| handbell::testing::open_frames(engine, lane) == 0)
    });
    held.wait().expect("it tells");
}

fn ledger_01_a_dropped_run_with_answers_leaves_nothing() {
    for engine in both(&chain_with_log()) {
        for window in [1, 16, 64] {
            for taken in [0, 1, 20] {
                let inputs = vec![script("a:>b = >log;b:=;log:z1 >b"); 64];
                let mut run = engine.run(engine.node("a").unwrap(), &inputs).window(window).start().unwrap();
                for number in 0..taken {
                    assert_eq!(run.next().expect("there are more").0, number);
                }
                drop(run);
                until("what was in flight has ended", || engine.audit().free == 1024);
                settled(&engine);
                balanced(&engine);
            }
        }
        let out = go(&engine, "a", &vec![script("a:>b >log;b:=;log:="); 20], 16);
        assert!(out.iter().all(|out| trail(out) == "a b"));
        stop(&engine);
    }
}

fn restart_02_a_rerun_answers_again() {
    let soon = Restart::on_failure(100).delay(Duration::from_millis(1), Duration::from_millis(1));
    let plan = Plan::new()
        .group("A", ["again"])
        .restart(soon)
        .idempotent()
        .group("B", ["counter"])
        .edge("again", "counter");
    let engine = over(&plan).start().unwrap();
    for round in 0..4 {
        let path = std::env::temp_dir().join(format!("{}-again-{round}", token()));
        let path = path.to_str().expect("text").to_owned();
        let go = path.clone() + ".go";
        let mut input = Some(path.clone());
        // It may die once it has been sent: asked for another input, the run is past that.
        let inputs = std::iter::from_fn(|| {
            input.take().or_else(|| {
                std::fs::write(&go, []).expect("a file in the directory for temporary files");
                None
            })
        });
        let run = engine.run(engine.node("again").unwrap(), inputs).window(2).deadline(far());
        let out: Vec<_> =
            run.start().unwrap().map(|(_, result)| result.map(|reply| reply.into_vec())).collect();
        [path, go].iter().for_each(|path| std::fs::remove_file(path).expect("it has run"));
        assert!(matches!(&out[..], [Ok(said)] if said == b"answer"), "round {round}: {out:?}");
    }
    let counters = engine.counters();
    // Each answered twice, and each of the two outputs went on once and was answered.
    assert_eq!(terminals(&counters), [4 * 4, 4, 4 * 3, 0]);
    assert_eq!((counters.forwarded, counters.replayed_output_drop), (8, 4));
    let counted = engine.call(engine.node("counter").unwrap(), b"", far()).unwrap();
    assert_eq!(*counted.bytes(), 9_u64.to_le_bytes());
    stop(&engine);
}

fn order_01_plain_requests_end_with_their_first_answer() {
    for engine in both(&chain_with_log()) {
        let gate = scripted::Gate::new();
        let words = script(&format!("a:>b >log;b:{} =;log:=", gate.word()));
        // Beside a run, so that somebody minds the order.
        let run = engine.run(engine.node("a").unwrap(), [script("")]).start().unwrap();
        let pending = engine.request(engine.node("a").unwrap()).deadline(far()).dispatch(&words).unwrap();
        until("it has ended", || engine.audit().not_taken == 1);
        assert_eq!(scripted::trail(&pending.wait().unwrap()), "a log");
        gate.open();
        drop(run);
        settled(&engine);
        assert_eq!(engine.counters().duplicate_terminal, 1);
        stop(&engine);
    }
}

// ---- random plans beside a model ----

/// `HANDBELL_ORDER_PLANS` says how many; the usual number takes some seconds.
fn parity_01_random_plans_are_like_a_model() {
    let first = number_from("HANDBELL_ORDER_FIRST", 1);
    for seed in first..first + number_from("HANDBELL_ORDER_PLANS", 8) {
        for profile in [Profile::Memory, Profile::ProcessSupervisor] {
            let play = Play::new(seed);
            let mut model = play.model();
            let engine = app().engine(play.plan()).env(TOKEN, token()).on_output(|_| {});
            let engine = engine.profile(profile).max_branches(16).start().expect("the engine starts");
            for window in [1, 16, 64] {
                let inputs: Vec<Vec<u8>> = (0..40).map(|input| play.input(input)).collect();
                let out = go(&engine, "n0", &inputs, window);
                for (number, (input, out)) in inputs.iter().zip(out).enumerate() {
                    let expected = model.run(input);
                    assert_eq!(
                        out, expected,
                        "seed {seed}, {profile:?}, window {window}, input {number} of {play:?}"
                    );
                }
                let counters = engine.counters();
                let what = format!("seed {seed}, {profile:?}, window {window}: {counters:?}, {play:?}");
                let ended = model.answered + model.failed;
                let counted = [model.terminals, ended, model.terminals - ended, 0];
                assert_eq!(terminals(&counters), counted, "{what}");
                assert_eq!(counters.completed_by_terminal, model.answered, "{what}");
                assert_eq!(
                    (counters.failed, counters.completed_by_last),
                    (model.failed, model.silent),
                    "{what}"
                );
                assert_eq!((counters.forwarded, counters.late_output_drop), (model.outputs, 0), "{what}");
            }
            stop(&engine);
        }
        println!("seed {seed}: as the model says");
    }
}
