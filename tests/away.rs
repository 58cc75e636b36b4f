//! What goes on while the owner of a run does something else between two items: FLOW-01.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use handbell::{App, OnError, Plan, testing};

mod common;
use common::scripted::{Gate, follow, script};
use common::{TOKEN, balanced, far, stop, token, until};

program![
    of app;
    flow_01_a_death_in_a_run_holds_up_nobody_else,
    flow_01_answers_of_dead_inputs_hold_up_nobody_else,
    flow_01_an_input_whose_turn_comes_when_it_is_dead_holds_up_nobody_else,
];

fn app() -> App {
    let scripted =
        ["a", "b", "c", "d", "e"].into_iter().fold(common::app(), |app, name| app.node(name, follow));
    scripted
        .node("pass", |request, output| Ok(output.emit(request.payload())?))
        .node("mortal", |request, output| {
            if request.payload()[0] == 0 {
                std::thread::sleep(Duration::from_millis(50));
                std::process::exit(3);
            }
            Ok(output.emit(request.payload())?)
        })
        .node("fork", |request, output| {
            output.emit_to("left", request.payload())?;
            Ok(output.emit_to("right", request.payload())?)
        })
        .node("end", |request, output| Ok(output.reply(request.payload())?))
        .node("beside", |request, output| Ok(output.reply(request.payload())?))
}

fn flow_01_a_death_in_a_run_holds_up_nobody_else() {
    let plan = Plan::new()
        .group("a", ["pass"])
        .group("b", ["mortal"])
        .stateless()
        .processes(2)
        .group("c", ["end"])
        .edge("pass", "mortal")
        .edge("mortal", "end");
    let fates = fates(plan, "pass");
    assert!(!fates[0] && fates[39], "{fates:?}");
}

/// The left side has answered before the right one dies, with all that is asked of it.
fn flow_01_answers_of_dead_inputs_hold_up_nobody_else() {
    let plan = Plan::new()
        .group("a", ["fork"])
        .group("b", ["mortal"])
        .group("c", ["end"])
        .labelled_edge("fork", "left", "end")
        .labelled_edge("fork", "right", "mortal");
    assert!(!fates(plan, "fork")[0]);
}

/// Whether each of 40 inputs had an answer; behind each item, somebody else is called. Fewer bytes may wait between
/// groups than the window has: what dead inputs hold up would keep that call out.
fn fates(plan: Plan, first: &str) -> Vec<bool> {
    let engine = app().engine(plan.group("d", ["beside"])).forward_bytes(4096).start().unwrap();
    let [first, beside] = [first, "beside"].map(|name| engine.node(name).unwrap());
    let inputs: Vec<Vec<u8>> = (0..40).map(|number| vec![number; 1000]).collect();
    let run = engine.run(first, inputs).window(16).on_error(OnError::Record).start().unwrap();
    let mut fates = Vec::new();
    for (_, result) in run {
        fates.push(result.is_ok());
        assert_eq!(*engine.call(beside, b"x", far()).unwrap().bytes(), *b"x");
    }
    assert_eq!(fates.len(), 40);
    balanced(&engine);
    stop(&engine);
    fates
}

/// Two inputs die with the same worker. The first makes way, by which a held frame of the second has its turn; and
/// the second, with all its other frames, makes way too.
fn flow_01_an_input_whose_turn_comes_when_it_is_dead_holds_up_nobody_else() {
    let (die, stay) = (Gate::new(), Gate::new());
    let groups = ["a", "b", "c", "d", "e"].into_iter();
    let plan = groups.fold(Plan::new(), |plan, name| plan.group(name, [name]));
    let edges = [("a", "b"), ("a", "c"), ("a", "d"), ("a", "e"), ("b", "d"), ("e", "c")];
    let plan = edges.into_iter().fold(plan, |plan, (from, to)| plan.edge(from, to));
    let engine = app().engine(plan).env(TOKEN, token()).start().unwrap();
    let inputs = [
        format!("a:>e;e:{} exit9", die.word()),
        // Held before `c`, which the first may reach; at work in `b`, from where `d` can be reached.
        format!("a:>c >b >e =;b:{}", stay.word()),
        "a:>d".to_owned(),
    ];
    let inputs = inputs.map(|words| script(&words));
    let mut run = engine.run(engine.node("a").unwrap(), inputs).on_error(OnError::Record).start().unwrap();
    assert!(matches!(run.poll_next(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    until("all stand where they wait", || {
        engine.counters().forwarded == 5 && [1, 4].iter().all(|lane| testing::has_begun_at(&engine, *lane, 0))
    });
    die.open();
    until("the last one has its answer", || engine.counters().completed() == 1);
    stay.open();
    assert_eq!(run.map(|(_, result)| result.is_ok()).collect::<Vec<_>>(), [false, false, true]);
    balanced(&engine);
    stop(&engine);
}
