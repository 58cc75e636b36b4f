//! Every way in which a request fails, before its worker has begun it, while the worker is at it, and when it has
//! been answered but nobody has read that: HANDOFF-E-01 to -06, HANDOFF-05, PARITY-02.
//!
//! The table `docs/failures.md` is made here from what is seen, and compared.
//! `HANDBELL_BLESS=1 cargo test --test failure_map` writes it anew.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{CallError, Category, Cause, Deadline, KilledFor, Pending, Profile, Rule, WorkerEvent};
use rustix::process::Signal;

#[path = "../common/mod.rs"]
mod common;
mod nodes;
mod rows;
mod seen;

use common::{Notices, balanced, failure, kill, ms, started, stop, until, worker_pid};
use nodes::{RAW, acting, app, group, raw};
use rows::{refusals, starts};
use seen::{
    CAUSE_NAMES, CLASS_NAMES, KILLED_NAMES, REFUSED_NAMES, RULE_NAMES, Row, cell, cut, doubled, three,
};

fn main() {
    if std::env::var_os(RAW).is_some() {
        testing::serve_raw_if_worker(&app(), raw);
    }
    app().serve_if_worker();
    common::run(tests![
        handoff_e_the_map_is_what_the_engine_does,
        parity_02_the_map_holds_in_memory,
        handoff_e_02_corruption_comes_before_the_kernels_word,
        handoff_e_02_corruption_comes_before_a_deadline,
        handoff_e_02_the_kernels_word_comes_before_the_end_of_a_connection,
        handoff_05_a_stop_without_a_drain_delivers_what_was_published,
    ]);
}

// ---- the table ----

const HEAD: &str = "\
# How a request fails

A failure has a category, a message that names the group and nothing else, and its cause as data. The command
`handbell` says the message in one line on standard error, and ends with the category's code; each is seen from outside,
with real workers, in `tools/tests/ends.rs`.

| category | message | exit code |
|---|---|---|
| `timeout` | `remote handoff timed out for group '<group>'` | 7 |
| `transport` | `remote handoff transport failed for group '<group>'` | 6 |
| `execution` | `remote handoff failed for group '<group>'` | 8 |
| `shutdown` | `remote handoff shut down for group '<group>'` | 9 |

The first cause counts, for a request and for its worker. Where several are there to be seen at the same time:
the engine's own stop, before a broken rule, before what the kernel says, before a deadline, before silence, before the
end of a connection. What fails later is told to `on_failure`, behind what was told before, and changes nothing.

Each row was seen with three requests of one worker (of those that refuse one request, with one for each cell): one
that it had not begun, one that it was at, and one that it had answered while nobody read that. What a worker has
published is delivered, whatever becomes of the worker. `counters` are those of all requests of the row; `worker` is
what the kernel says of its end.

Made and checked by `tests/failure_map/`.

| what happens | category | cause | not yet begun | begun | answered, not yet read | counters | worker |
|---|---|---|---|---|---|---|---|
";

const STARTS: &str = "
A start that is refused has no request that could fail: `StartError` says at which step, and all that was started has
been ended again. The command ends with 5. Where a dead worker's successor cannot be started, and there is no further
try, what waits for it ends with the step and the reason as its cause, as do later requests. Refused bundles, layouts,
segments, handshakes and versions, of which the last names both, are seen in `tests/by_hand.rs`, of first starts and of
successors.

| what happens | message |
|---|---|
";

/// Figures differ from machine to machine.
fn without_figures(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' | ',' if shown.ends_with('…') => {}
            '0'..='9' => shown.push('…'),
            _ => shown.push(c),
        }
    }
    shown
}

fn handoff_e_the_map_is_what_the_engine_does() {
    let rows = rows::all();
    let mut table = HEAD.to_owned();
    for row in &rows {
        let _ = writeln!(table, "{}", row.line());
    }
    for name in [CAUSE_NAMES, KILLED_NAMES, RULE_NAMES, CLASS_NAMES, REFUSED_NAMES].concat() {
        // Those that are shown by what is inside; what is told as the deadline that has passed by then; what takes a memory control group of one's own to provoke; and what
        // takes a worker that is born by hand.
        let is_elsewhere = "Killed Execution Corruption OutOfMemory NoRoom NoAnswer Bundle Version Layout Segment NotRegistered";
        let is_there = is_elsewhere.split(' ').any(|elsewhere| elsewhere == name)
            || rows.iter().any(|row| row.cause.contains(name));
        assert!(is_there, "no row of the table has the cause {name}");
    }
    table += STARTS;
    for (seen, said) in starts() {
        let _ = writeln!(table, "| {seen} | {} |", without_figures(&said));
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/failures.md");
    if std::env::var_os("HANDBELL_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &table).expect("the repository can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    for (seen, written) in table.lines().zip(written.lines()) {
        assert_eq!(seen, written, "docs/failures.md is not what is seen: HANDBELL_BLESS=1 writes it anew");
    }
    assert_eq!(table.lines().count(), written.lines().count());
}

fn parity_02_the_map_holds_in_memory() {
    let lines = |profile| refusals(profile).iter().map(Row::line).collect::<Vec<_>>();
    assert_eq!(lines(Profile::Memory), lines(Profile::ProcessSupervisor));
    // Deadline and stop, of what runs and of what waits behind it.
    let seen = |pending: Pending, cause| cell(pending.wait(), cause);
    let begin = || {
        let (engine, act) = started(acting(Profile::Memory), "act");
        let running = engine.request(act).dispatch(b"wait").unwrap();
        until("it runs", || testing::has_begun_at(&engine, 0, 0));
        (engine, act, running)
    };
    let (engine, act, running) = begin();
    let behind = engine.request(act).deadline(ms(50)).dispatch(b"=").unwrap();
    assert_eq!(seen(behind, Cause::Deadline), "`timeout`, not started");
    running.cancel();
    assert!(matches!(running.wait(), Err(CallError::Cancelled)));
    // Not begun when its deadline has passed before.
    let begun = doubled(50).find(|within| {
        let seen = cell(engine.call(act, b"wait", Deadline::after(*within)), Cause::Deadline);
        assert!(seen.starts_with("`timeout`, "), "{seen}");
        seen == "`timeout`, started"
    });
    assert!(begun.is_some());
    stop(&engine);
    let (engine, act, running) = begin();
    let behind = engine.request(act).dispatch(b"=").unwrap();
    assert_eq!(cut(&engine).cut_off, 2);
    assert_eq!(seen(running, Cause::Stopped), "`shutdown`, started");
    assert_eq!(seen(behind, Cause::Stopped), "`shutdown`, not started");
    assert_eq!((engine.counters().failed, engine.counters().completed()), (2, 0));
    balanced(&engine);
}

// ---- which cause counts ----

fn handoff_e_02_corruption_comes_before_the_kernels_word() {
    for _ in 0..20 {
        let notices = Notices::default();
        let builder = group(&["echo"]).env(RAW, "1").on_worker_event(notices.listener());
        let (engine, echo) = started(builder, "echo");
        // Kind, and then it aborts: whoever comes first, a reader or who settles the death, finds the lie.
        let pending = engine.request(echo).dispatch(b"rule 1 abort").unwrap();
        let crash = || notices.events().into_iter().find(|event| matches!(event, WorkerEvent::Crashed(_)));
        until("the death is told", || crash().is_some());
        let cause = Cause::Killed(KilledFor::Corruption(Rule::Kind));
        assert_eq!(crash(), Some(WorkerEvent::Crashed(cause)));
        assert_eq!(cell(pending.wait(), cause), "`transport`, started");
        stop(&engine);
    }
}

fn handoff_e_02_corruption_comes_before_a_deadline() {
    let mut three = three(group(&["echo"]).env(RAW, "1"), b"", "echo", b"rule 1", None);
    let replied = three.replied.take().unwrap();
    let engine = &three.engine;
    let cause = Cause::Killed(KilledFor::Corruption(Rule::Kind));
    // It stands in the lane when the lie is read, and its deadline passes before anybody settles that.
    let behind = engine.request(engine.node("echo").unwrap()).deadline(ms(2000)).dispatch(b"").unwrap();
    let begin = Instant::now();
    assert_eq!(cell(three.started.wait(), cause), "`transport`, started");
    let was_in_time = begin.elapsed() < Duration::from_millis(1900);
    std::thread::sleep(Duration::from_millis(2000));
    let behind = behind.wait();
    if was_in_time {
        assert_eq!(cell(behind, cause), "`transport`, not started");
    }
    assert_eq!(cell(replied.wait(), cause), "the reply");
    assert_eq!(cell(three.waiting.wait(), cause), "`transport`, not started");
    drop(three.held);
    stop(&three.engine);
}

fn handoff_e_02_the_kernels_word_comes_before_the_end_of_a_connection() {
    let three = three(group(&["echo", "stuck"]), b"", "stuck", b"", None);
    kill(worker_pid(&three.engine), Signal::KILL);
    // All its descriptors end with it, long before anybody looks.
    std::thread::sleep(Duration::from_millis(300));
    three.end(Row::new("", Cause::Signal(9)), Cause::Signal(9), stop);
}

fn handoff_05_a_stop_without_a_drain_delivers_what_was_published() {
    let mut three = three(group(&["echo", "stuck"]), b"published", "stuck", b"", None);
    std::thread::scope(|scope| {
        let stops = scope.spawn(|| cut(&three.engine));
        until("the rest is cut off", || three.engine.counters().failed >= 2);
        drop(three.held.take());
        stops.join().unwrap();
    });
    assert_eq!(*three.replied.take().unwrap().wait().unwrap().bytes(), *b"published");
    failure(three.started.wait().unwrap_err(), Category::Shutdown);
    drop(three.waiting);
    balanced(&three.engine);
}
