//! Runs that are polled: by a runtime of a few lines, by tokio, from thread to thread; and a run whose key panics.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use handbell::{App, CallError, Category, Drain, Engine, EngineBuilder, OnError, Plan, Profile, Reply, Run};

mod common;
use common::alarm::{Alarm, block_on};
use common::ordered::{self, Frame};
use common::scripted::{Gate, follow, script};
use common::{TOKEN, failure, far, ms, stop, token, until};

program![
    of app;
    order_01_a_polled_run_gives_what_an_iterated_one_does,
    order_01_a_run_goes_from_thread_to_thread,
    order_01_a_run_in_a_task_of_tokio,
    polling_never_waits,
    only_the_latest_waker_of_a_run_is_woken,
    room_that_comes_free_wakes_a_run,
    waiting_for_room_ends_with_the_deadline_and_with_a_stop,
    a_polled_run_stops_at_its_first_error,
    a_dropped_run_waits_for_nothing,
    order_01_a_key_that_panics_shifts_no_numbers,
];

fn app() -> App {
    ordered::app().node("a", follow)
}

fn both(plan: &Plan, state: impl Fn(EngineBuilder) -> EngineBuilder) -> [Engine; 2] {
    [Profile::ProcessSupervisor, Profile::Memory].map(|profile| {
        let builder = app().engine(plan.clone()).env(TOKEN, token()).on_output(|_| {});
        state(builder.profile(profile)).start().expect("the engine starts")
    })
}

fn diamond() -> Plan {
    Plan::new()
        .group("A", ["fork"])
        .group("B", ["slow"])
        .group("C", ["three"])
        .group("D", ["log", "log_told"])
        .labelled_edge("fork", "left", "slow")
        .labelled_edge("fork", "right", "three")
        .edge("slow", "log")
        .labelled_edge("three", "on", "log")
}

/// One node that does what its payload says.
fn single() -> Plan {
    Plan::new().group("A", ["a"])
}

fn inputs(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|input| Frame { input, total: 4, path: vec![], filling: 20 }.bytes()).collect()
}

type Item = (u64, Result<Reply, CallError>);

/// What comes of an item, without the ids that the engine makes.
fn seen((number, result): Item) -> (u64, Result<Vec<u8>, String>) {
    (number, result.map(Reply::into_vec).map_err(|error| error.to_string()))
}

async fn next<I: Iterator<Item: AsRef<[u8]>>>(run: &mut Run<I>) -> Option<Item> {
    poll_fn(|context| run.poll_next(context)).await
}

fn poll_once<I: Iterator<Item: AsRef<[u8]>>>(run: &mut Run<I>, alarm: &Arc<Alarm>) -> Poll<Option<Item>> {
    run.poll_next(&mut Context::from_waker(&Waker::from(Arc::clone(alarm))))
}

fn order_01_a_polled_run_gives_what_an_iterated_one_does() {
    let mut first = None;
    for engine in both(&diamond(), |builder| builder) {
        let fork = engine.node("fork").unwrap();
        let iterated: Vec<_> = engine.run(fork, inputs(60)).start().unwrap().map(seen).collect();
        assert_eq!(iterated.len(), 60);
        stop(&engine);
        assert_eq!(*first.get_or_insert_with(|| iterated.clone()), iterated);
    }
    for window in [1, 16, 64] {
        for engine in both(&diamond(), |builder| builder) {
            let fork = engine.node("fork").unwrap();
            let mut run = engine.run(fork, inputs(60)).window(window).start().unwrap();
            let mut polled = Vec::new();
            while let Some(item) = block_on(next(&mut run)) {
                polled.push(seen(item));
            }
            assert!(block_on(next(&mut run)).is_none(), "it stays at its end");
            drop(run);
            assert_eq!(first.as_ref(), Some(&polled), "window {window}");
            stop(&engine);
        }
    }
}

fn order_01_a_run_goes_from_thread_to_thread() {
    for engine in both(&diamond(), |builder| builder) {
        let mut run = engine.run(engine.node("fork").unwrap(), inputs(60)).window(16).start().unwrap();
        let mut taken = 0;
        while let Some(next_run) = std::thread::spawn(move || {
            for _ in 0..7 {
                let (number, result) = block_on(next(&mut run))?;
                assert_eq!(number, taken);
                let bytes = result.expect("it answers").into_vec();
                assert_eq!(Frame::of(&bytes[8..]).input, number);
                taken += 1;
            }
            // Polled and iterated by turns.
            if let Some((number, result)) = run.next() {
                assert_eq!(number, taken);
                result.expect("it answers");
                taken += 1;
            }
            Some((run, taken))
        })
        .join()
        .expect("it ends")
        {
            (run, taken) = next_run;
        }
        stop(&engine);
        assert_eq!(engine.counters().completed(), 60);
    }
}

fn order_01_a_run_in_a_task_of_tokio() {
    for engine in both(&diamond(), |builder| builder) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let fork = engine.node("fork").unwrap();
        // A run owns all that it needs: a task may keep it, and it outlives the handle that it came from.
        let one = |engine: Engine, base: u64| async move {
            let frame = |input| Frame { input: base + input, total: 4, path: vec![], filling: 20 };
            let inputs = (0..50).map(|input| frame(input).bytes());
            let mut run = engine.run(fork, inputs.collect::<Vec<_>>()).window(8).start().unwrap();
            drop(engine);
            let mut count = 0;
            while let Some((number, result)) = next(&mut run).await {
                let bytes = result.expect("it answers").into_vec();
                assert_eq!((number, Frame::of(&bytes[8..]).input), (count, base + count));
                count += 1;
            }
            count
        };
        runtime.block_on(async {
            let tasks = [0, 1 << 32].map(|base| tokio::spawn(one(engine.clone(), base)));
            for task in tasks {
                assert_eq!(task.await.expect("no panic"), 50);
            }
        });
        stop(&engine);
    }
}

/// One thread polls a run over a node that waits, and is what ends that node's waiting.
fn polling_never_waits() {
    for engine in both(&single(), |builder| builder) {
        let gate = Gate::new();
        let words = [format!("a:{} =", gate.word()), "a:=".into()];
        let inputs = words.map(|words| script(&words));
        let mut run = engine.run(engine.node("a").unwrap(), inputs).window(1).start().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let opened = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                gate.open();
                gate
            });
            for number in 0..2 {
                let (found, result) = next(&mut run).await.expect("two inputs");
                assert_eq!(found, number);
                result.expect("it answers");
            }
            assert!(next(&mut run).await.is_none());
            opened.await.expect("no panic");
        });
        stop(&engine);
    }
}

fn only_the_latest_waker_of_a_run_is_woken() {
    for engine in both(&single(), |builder| builder) {
        let gate = Gate::new();
        let inputs = [script(&format!("a:{} =", gate.word()))];
        let mut run = engine.run(engine.node("a").unwrap(), inputs).start().unwrap();
        let alarms = [Arc::new(Alarm::default()), Arc::new(Alarm::default())];
        assert!(alarms.iter().all(|alarm| poll_once(&mut run, alarm).is_pending()));
        gate.open();
        alarms[1].wait_beyond(0);
        assert!(matches!(poll_once(&mut run, &alarms[1]), Poll::Ready(Some((0, Ok(_))))));
        assert_eq!(alarms[0].rings(), 0);
        drop(run);
        stop(&engine);
    }
}

fn room_that_comes_free_wakes_a_run() {
    // All places are taken by one that is ended and not taken; or, in its group, by one that runs.
    for engine in both(&single(), |builder| builder.max_in_flight(1)) {
        let a = engine.node("a").unwrap();
        for round in 0..20 {
            let held = engine.request(a).deadline(far()).dispatch(&script("a:=")).unwrap();
            let mut run = engine.run(a, [script("a:="), script("a:=")]).window(1).start().unwrap();
            let alarm = Arc::new(Alarm::default());
            assert!(poll_once(&mut run, &alarm).is_pending(), "round {round}");
            let taker = std::thread::spawn(move || held.wait().map(drop));
            // From the poll on: a slot that came free wakes it as well, and who has been woken and does not poll is not
            // woken again.
            alarm.wait_beyond(0);
            for number in 0..2 {
                assert_eq!(block_on(next(&mut run)).map(|(found, _)| found), Some(number));
            }
            assert!(block_on(next(&mut run)).is_none());
            taker.join().unwrap().expect("it answers");
        }
        stop(&engine);
    }
    // The ring is full of what a node works at, one after the other, and nobody waits for any of it.
    for engine in both(&single(), |builder| builder.slots(2)) {
        let a = engine.node("a").unwrap();
        for _ in 0..5 {
            let held: Vec<_> =
                std::iter::from_fn(|| engine.request(a).deadline(far()).try_dispatch(&script("a:z5 =")).ok())
                    .take(4)
                    .collect();
            assert!(held.len() >= 2);
            let inputs = vec![script("a:="); 10];
            let mut run = engine.run(a, inputs).window(4).start().unwrap();
            for number in 0..10 {
                let (found, result) = block_on(next(&mut run)).expect("ten inputs");
                assert_eq!(found, number);
                result.expect("it answers");
            }
            held.into_iter().for_each(|held| drop(held.wait().expect("it answers")));
        }
        stop(&engine);
    }
}

fn waiting_for_room_ends_with_the_deadline_and_with_a_stop() {
    for engine in both(&single(), |builder| builder.max_in_flight(1)) {
        let a = engine.node("a").unwrap();
        let held = engine.request(a).deadline(far()).dispatch(&script("a:=")).unwrap();
        let run = engine.run(a, vec![script("a:="); 2]).window(1).deadline(ms(50));
        let mut run = run.on_error(OnError::Record).start().unwrap();
        for number in 0..2 {
            // Nothing was sent; the first waits as long as it may, and so does the next.
            let (found, result) = block_on(next(&mut run)).expect("two inputs");
            assert_eq!((found, failure(result.unwrap_err(), Category::Timeout).group()), (number, "A"));
        }
        assert!(block_on(next(&mut run)).is_none());
        let mut run = engine.run(a, [script("a:=")]).window(1).start().unwrap();
        let alarm = Arc::new(Alarm::default());
        assert!(poll_once(&mut run, &alarm).is_pending());
        // A stop lets what is in flight end; that is taken only behind it.
        engine.stop(Drain::within(Duration::from_secs(30)));
        // From the poll on, as above.
        alarm.wait_beyond(0);
        let refused = block_on(next(&mut run)).expect("one input").1.unwrap_err();
        assert!(matches!(refused, CallError::Stopped), "{refused:?}");
        assert!(block_on(next(&mut run)).is_none());
        held.wait().expect("it answers");
        common::balanced(&engine);
    }
}

fn a_polled_run_stops_at_its_first_error() {
    for engine in both(&single(), |builder| builder) {
        let words = ["a:=", "a:!3", "a:=", "a:="].map(script);
        for window in [1, 3] {
            let run = engine.run(engine.node("a").unwrap(), words.clone()).window(window);
            let mut run = run.start().unwrap();
            let mut out = Vec::new();
            while let Some(item) = block_on(next(&mut run)) {
                out.push(seen(item));
            }
            assert_eq!(out.len(), 2, "the error is the last item");
            assert!(out[0].1.is_ok() && out[1].1.is_err(), "{out:?}");
        }
        until("what was given up has ended", || engine.audit().free == 1024);
        stop(&engine);
    }
}

fn a_dropped_run_waits_for_nothing() {
    for engine in both(&single(), |builder| builder.max_in_flight(1)) {
        let a = engine.node("a").unwrap();
        let held = engine.request(a).deadline(far()).dispatch(&script("a:=")).unwrap();
        let alarm = Arc::new(Alarm::default());
        for _ in 0..3 {
            let mut run = engine.run(a, [script("a:=")]).window(1).start().unwrap();
            assert!(poll_once(&mut run, &alarm).is_pending());
        }
        until("its wakers have gone with it", || Arc::strong_count(&alarm) == 1);
        held.wait().expect("it answers");
        engine.call(a, &script("a:="), far()).expect("it answers");
        stop(&engine);
    }
}

fn order_01_a_key_that_panics_shifts_no_numbers() {
    let plan = Plan::new().group("A", ["a"]).processes(2).keyed();
    for engine in both(&plan, |builder| builder) {
        let mut left = 3;
        let inputs: Vec<_> = (0..20).map(|input| script(&format!("a:=;{input}"))).collect();
        let run = engine.run(engine.node("a").unwrap(), inputs.clone()).window(4);
        let tries = Arc::new(Mutex::new(Vec::new()));
        let run = run.key({
            let tries = Arc::clone(&tries);
            move |number, _| {
                tries.lock().unwrap().push(number);
                let count = tries.lock().unwrap().iter().filter(|tried| **tried == number).count();
                assert!(number % 5 != 2 || count > 2, "wanted");
                number
            }
        });
        let mut run = run.start().unwrap();
        let mut numbers = Vec::new();
        let mut panics = 0;
        loop {
            // By turns as an iterator and polled.
            left -= 1;
            let took = catch_unwind(AssertUnwindSafe(|| {
                if left % 2 == 0 { run.next() } else { block_on(next(&mut run)) }
            }));
            match took {
                Ok(Some((number, result))) => {
                    let said = result.expect("it answers").into_vec();
                    assert!(said.starts_with(&inputs[number as usize]), "the reply to another input");
                    numbers.push(number);
                }
                Ok(None) => break,
                Err(_) => panics += 1,
            }
        }
        assert_eq!(numbers, (0..20).collect::<Vec<u64>>());
        assert_eq!(panics, 2 * 4, "each of four inputs twice");
        drop(run);
        stop(&engine);
    }
}
