//! How workers begin, one and many: in the plan's order, built side by side, each as its group states, and all
//! gone again if one fails: BOOT-03, BOOT-04.
//!
//! A program of its own, because it is its own worker: the first line of `main` serves if it was started as one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handbell::testing::Births;
use handbell::{
    App, BuildError, Drain, EngineBuilder, NodeError, Output, Plan, Request, Resource, StartError, Stream,
    WorkerEvent,
};

mod common;
use common::watch::state_of;
use common::{far, patiently, until};

/// More than a pipe holds.
const LINES: usize = 4_000;
const LINE: &str = "a line that is printed while the node's state is being built";

/// Workers that are only built when all of them are being built.
const EIGHT: usize = 8;

/// A directory in which workers leave word for each other.
const PLACE: &str = "HANDBELL_TEST_PLACE";

/// Set in a process that is an engine, and is paused.
const ROLE: &str = "HANDBELL_TEST_ROLE";

fn nothing(_: &Request<'_>, _: &mut Output<'_>) -> Result<(), NodeError> {
    Ok(())
}

type Nothing = fn(&Request<'_>, &mut Output<'_>) -> Result<(), NodeError>;

fn app() -> App {
    let app = App::new()
        .node_with("talks", || {
            (0..LINES).for_each(|_| println!("{LINE}"));
            Ok(nothing)
        })
        .node_with("fails", || match std::env::var_os("HANDBELL_WORKER") {
            Some(_) => Err(BuildError::new("the model is missing")),
            None => Ok(nothing),
        })
        .node_with("fails_here", || match std::env::var_os("HANDBELL_WORKER") {
            Some(_) => Ok(nothing),
            None => Err(BuildError::new("the model is missing")),
        })
        .node_with("exits", || -> Result<Nothing, BuildError> { std::process::exit(3) })
        .node_with("stuck", || -> Result<Nothing, BuildError> {
            loop {
                std::thread::park();
            }
        })
        .node_with("exits_when_told", || -> Result<Nothing, BuildError> {
            wait_for(&place().join("go"));
            std::process::exit(3)
        })
        .node_with("pauses_its_engine", || {
            // In all it takes a second of its engine's time.
            std::thread::sleep(Duration::from_millis(500));
            let engine = rustix::process::getppid().expect("it has one").as_raw_nonzero().get();
            common::pause(engine);
            std::thread::sleep(PAUSE);
            common::kill(engine, rustix::process::Signal::CONT);
            // Who is to be late is late by now.
            std::thread::sleep(Duration::from_millis(500));
            Ok(nothing)
        })
        .node("args", |_, output| {
            let args: Vec<String> = std::env::args().skip(1).collect();
            Ok(output.reply(args.join(" ").as_bytes())?)
        })
        .node_with("tells", || {
            println!("cwd {}", std::env::current_dir().expect("there is one").display());
            println!("open files {}", own_limit("Max open files"));
            Ok(nothing)
        });
    let app = app.node_with("meets_all", || {
        fs::write(place().join(std::process::id().to_string()), "").map_err(BuildError::new)?;
        while fs::read_dir(place()).map_err(BuildError::new)?.count() < EIGHT {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(nothing)
    });
    // Names of their own, because a node belongs to one group.
    let app = ["up0", "up1", "up2", "up3"].into_iter().fold(app, |app, name| {
        app.node_with(name, || {
            println!("up");
            Ok(nothing)
        })
    });
    [["meets_a", "b"], ["meets_b", "a"]].into_iter().fold(app, |app, [node, other]| {
        let own = node.trim_start_matches("meets_");
        app.node_with(node, move || {
            fs::write(place().join(own), "").map_err(BuildError::new)?;
            wait_for(&place().join(other));
            Ok(nothing)
        })
    })
}

fn place() -> PathBuf {
    std::env::var_os(PLACE).expect("the test gave it").into()
}

/// The watchdog of the test ends a wait for what never comes.
fn wait_for(path: &Path) {
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn own_limit(name: &str) -> String {
    limit_of("self", name)
}

/// The soft and the hard limit, in one word.
fn limit_of(pid: impl std::fmt::Display, name: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it is alive");
    let row = limits.lines().find_map(|row| row.strip_prefix(name)).expect("the kernel knows it");
    row.split_whitespace().take(2).collect::<Vec<_>>().join("/")
}

/// A directory that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("handbell-birth-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("nobody else uses the name");
        Self(path.canonicalize().expect("it is there"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("it was there");
    }
}

/// What a worker printed: group, which of its processes, pid, text.
type Lines = Arc<Mutex<Vec<(String, u16, i32, String)>>>;

fn taking(lines: &Lines) -> impl Fn(handbell::OutputLine<'_>) + Send + Sync + 'static {
    let lines = Arc::clone(lines);
    move |line| {
        assert_eq!(line.stream == Stream::Stderr, line.text.starts_with(b"worker cannot start"));
        let text = String::from_utf8_lossy(line.text).into_owned();
        lines.lock().unwrap().push((line.group.into(), line.process, line.pid, text));
    }
}

fn texts(lines: &Lines) -> Vec<String> {
    lines.lock().unwrap().iter().map(|(.., text)| text.clone()).collect()
}

/// The workers of a plan, and what they print.
fn births(plan: Plan) -> (Births, Lines) {
    let lines = Lines::default();
    (Births::of(plan).env(common::TOKEN, common::token()).on_output(taking(&lines)), lines)
}

/// The start fails; what it says, and that everybody who spoke is gone, not even waiting to be reaped.
fn refused(births: Births, lines: &Lines) -> String {
    let error = births.start().map(drop).expect_err("it cannot start");
    for (group, process, pid, _) in lines.lock().unwrap().iter() {
        assert_eq!(state_of(*pid), None, "process {process} of group {group} is still there");
    }
    error.to_string()
}

/// An engine for one node, and the lines that its worker prints.
fn engine_of(node: &str) -> (EngineBuilder, Lines) {
    let lines = Lines::default();
    let builder = app().engine(Plan::new().group("g", [node])).env(common::TOKEN, common::token());
    (builder.on_output(taking(&lines)), lines)
}

fn exe() -> PathBuf {
    std::env::current_exe().expect("a program has a path")
}

// ---- one worker ----

fn boot_03_a_worker_may_print_while_it_builds() {
    let (builder, lines) = engine_of("talks");
    let engine = builder.start().expect("output is drained meanwhile");
    engine.stop(Drain::within(Duration::from_secs(5)));
    assert_eq!(texts(&lines), vec![LINE; LINES]);
}

fn boot_04_a_worker_that_refuses_says_why() {
    let (builder, lines) = engine_of("fails");
    let error = builder.start().expect_err("the node cannot be built");
    assert!(matches!(error, StartError::Refused { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "start refused by the worker of group 'g': node 'fails' could not be built"
    );
    assert_eq!(texts(&lines), ["worker cannot start: node 'fails' cannot be built: the model is missing"]);
}

// ---- several workers ----

fn boot_03_workers_start_in_the_plans_order() {
    let plan = Plan::new().group("a", ["up0"]).processes(3).group("b", ["up1"]).group("c", ["up2", "up3"]);
    let (births, lines) = births(plan);
    let workers = births.start().unwrap();
    let pids = workers.pids();
    // Numbers are given out in order, and begin anew once in a long while.
    let descents = pids.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(pids.len() == 5 && descents <= 1, "{pids:?}");
    assert!(pids.iter().all(|pid| common::is_alive(*pid)));
    drop(workers);
    assert!(pids.iter().all(|pid| state_of(*pid).is_none()));
    let mut lines = lines.lock().unwrap().clone();
    lines.sort();
    let line = |group: &str, process, place: usize| (group.to_owned(), process, pids[place], "up".to_owned());
    let expected = [
        line("a", 0, 0),
        line("a", 1, 1),
        line("a", 2, 2),
        line("b", 0, 3),
        line("c", 0, 4),
        line("c", 0, 4),
    ];
    assert_eq!(*lines, expected);
}

fn boot_03_nodes_are_built_side_by_side() {
    let scratch = Scratch::new();
    // Each waits for the other's: whoever is built first only after the other hangs.
    let plan = Plan::new().group("a", ["meets_a"]).group("b", ["meets_b"]);
    let (births, _) = births(plan);
    let workers = births.env(PLACE, &scratch.0).start().expect("they meet");
    assert_eq!(workers.pids().len(), 2);
}

fn boot_03_eight_workers_that_wait_for_each_other_start() {
    let scratch = Scratch::new();
    let plan = Plan::new().group("g", ["meets_all"]).processes(EIGHT);
    let begin = Instant::now();
    let builder = app().engine(plan).env(common::TOKEN, common::token()).env(PLACE, &scratch.0);
    let engine = builder.start().expect("they meet");
    println!("eight workers that wait for each other: started after {:?}", begin.elapsed());
    assert_eq!(engine.summary().worker_pids.len(), EIGHT);
    assert_eq!(common::stop(&engine).workers.len(), EIGHT);
}

fn boot_03_all_workers_may_print_while_they_build() {
    let (births, lines) = births(Plan::new().group("g", ["talks"]).processes(3));
    let workers = births.start().expect("output is drained meanwhile");
    let pids = workers.pids();
    drop(workers);
    let lines = lines.lock().unwrap();
    for (process, pid) in pids.into_iter().enumerate() {
        let own = lines.iter().filter(|line| line.2 == pid);
        assert!(own.clone().all(|(_, of, _, text)| usize::from(*of) == process && text == LINE));
        assert_eq!(own.count(), LINES);
    }
}

fn a_plan_of_local_groups_has_no_worker() {
    let workers = births(Plan::new().group("g", ["up0"]).local()).0.start().unwrap();
    assert_eq!((workers.pids().len(), workers.mapped_bytes()), (0, 0));
}

fn boot_04_one_that_fails_takes_the_others_with_it() {
    for (node, said) in [
        ("exits", "the worker of group 'bad' ended at step ready: Exit(3)"),
        ("fails", "start refused by the worker of group 'bad': node 'fails' could not be built"),
    ] {
        let plan = Plan::new().group("a", ["up0"]).processes(2).group("b", ["up1"]).group("bad", [node]);
        let (births, lines) = births(plan.clone());
        assert_eq!(refused(births, &lines), said);
        let ups = texts(&lines).iter().filter(|text| *text == "up").count();
        assert!(ups <= 3, "all are awaited at once: some may not have been built when the failure was seen");
    }
    // What comes behind it in the plan is gone, too.
    let plan = Plan::new().group("bad", ["exits"]).group("b", ["up1"]);
    let (births, lines) = births(plan);
    assert_eq!(refused(births, &lines), "the worker of group 'bad' ended at step ready: Exit(3)");
}

fn boot_04_a_worker_that_is_never_ready_takes_the_others_with_it() {
    let plan = Plan::new().group("a", ["up0"]).group("b", ["stuck"]).group("c", ["up1"]);
    is_late(&plan, "ready");
}

/// The worker of group 'b' does not come to this step in time.
fn is_late(plan: &Plan, step: &str) {
    patiently(3000, |timeout_ms| {
        let timeout = Duration::from_millis(timeout_ms);
        let (births, lines) = births(plan.clone());
        let said = refused(births.start_timeout(timeout), &lines);
        assert!(said.contains(&format!("within start_timeout = {timeout:?}")), "{said}");
        // On a slow machine others are late, too, or at another step.
        said.starts_with(&format!("the worker of group 'b' did not reach step {step} ")).then_some(())
    });
}

/// How long an engine is paused, and how long it gives its workers.
const PAUSE: Duration = Duration::from_secs(5);
const LESS_THAN_THE_PAUSE: Duration = Duration::from_secs(4);

fn boot_04_a_pause_of_the_engine_is_not_the_workers() {
    let mut engine = std::process::Command::new("/proc/self/exe");
    engine.env(ROLE, "paused").env(common::TOKEN, common::token());
    assert!(engine.status().expect("this program starts").success());
}

/// Not a test: an engine that one of its workers pauses while nodes are built, for longer than they may take.
fn starts_though_it_is_paused() -> ! {
    let plan = Plan::new().group("a", ["up0"]).group("b", ["pauses_its_engine"]).group("c", ["up1"]);
    let builder = app().engine(plan).env(common::TOKEN, common::token()).on_output(|_| {});
    let begin = Instant::now();
    let engine =
        builder.start_timeout(LESS_THAN_THE_PAUSE).start().expect("it was this process that stood still");
    assert!(begin.elapsed() > PAUSE);
    assert_eq!(common::stop(&engine).workers.len(), 3);
    std::process::exit(0);
}

fn boot_04_what_was_started_in_vain_is_told_with_its_end() {
    // A worker that fails, and a node of this process that does when the workers are ready.
    let failing = Plan::new().group("a", ["up0"]).processes(2).group("bad", ["exits"]);
    let late = Plan::new().group("a", ["up0"]).processes(2).group("bad", ["fails_here"]).local();
    for (plan, events) in [(failing, 3 * 2), (late, 2 * 3)] {
        let notices = common::Notices::default();
        let builder = app().engine(plan).env(common::TOKEN, common::token()).on_output(|_| {});
        assert!(builder.on_worker_event(notices.listener()).start().is_err());
        let all = notices.all();
        assert_eq!(all.len(), events, "{all:?}");
        let started = all.iter().filter(|notice| notice.event == WorkerEvent::Started);
        for begun in started.clone() {
            let told = notices.events_of(begun.pid);
            assert_eq!(told.last(), Some(&WorkerEvent::Stopped { gracefully: false }), "{told:?}");
        }
        let ends = all.iter().filter(|notice| notice.event == WorkerEvent::Stopped { gracefully: false });
        let places = |notice: &handbell::WorkerNotice| (notice.group.clone(), notice.process);
        assert_eq!(ends.map(places).collect::<Vec<_>>(), started.rev().map(places).collect::<Vec<_>>());
    }
}

fn boot_04_the_others_are_ended_in_reverse_order() {
    let scratch = Scratch::new();
    let plan = Plan::new().group("g", ["up0"]).processes(8).group("bad", ["exits_when_told"]);
    let (births, lines) = births(plan);
    std::thread::scope(|scope| {
        let births = births.env(PLACE, &scratch.0);
        let lines = &lines;
        let start = scope.spawn(move || {
            assert_eq!(refused(births, lines), "the worker of group 'bad' ended at step ready: Exit(3)");
        });
        until("all are up", || lines.lock().unwrap().len() == 8);
        let mut pids: Vec<(u16, i32)> =
            lines.lock().unwrap().iter().map(|(_, process, pid, _)| (*process, *pid)).collect();
        pids.sort();
        fs::write(scratch.0.join("go"), "").unwrap();
        while !start.is_finished() {
            // Looked at from the first to the last: if one is gone, those behind it went before.
            let alive = pids.iter().map(|(_, pid)| common::is_alive(*pid));
            let after_the_gone: Vec<bool> = alive.skip_while(|alive| *alive).collect();
            assert!(!after_the_gone.contains(&true), "an earlier one was ended before a later one");
        }
    });
}

fn boot_04_a_spawn_that_fails_takes_the_others_with_it() {
    let scratch = Scratch::new();
    let program = scratch.0.join("no-program");
    // By another process: a file that this one has open for writing, even in a child that is being started
    // meanwhile, would be busy.
    let mut install = std::process::Command::new("install");
    install.args(["-m", "755", "/etc/passwd"]).arg(&program);
    assert!(install.status().expect("it is everywhere").success());
    let (births, lines) = births(Plan::new().group("a", ["up0"]).group("b", ["up1"]).command([&program]));
    assert_eq!(
        refused(births, &lines),
        format!(
            "start refused at step spawn for group 'b': command = {}: Exec format error (os error 8)",
            program.display()
        )
    );
}

// ---- what a group states of its processes ----

fn handoff_01_a_command_serves_an_engine() {
    // By a bare name, which is looked for in PATH; `env` then becomes the worker.
    let exe = exe().into_os_string();
    let command = ["env".into(), exe, "--fast".into(), "two words".into()];
    // This application has no code for the node.
    let engine = App::new().engine(Plan::new().group("dsp", ["args"]).command(command));
    let engine = engine.env(common::TOKEN, common::token()).start().unwrap();
    let args = engine.node("args").unwrap();
    assert_eq!(*engine.call(args, b"", far()).unwrap().bytes(), *b"--fast two words");
    engine.stop(Drain::within(Duration::from_secs(5)));
}

fn a_group_has_its_own_surroundings() {
    let scratch = Scratch::new();
    let plan = Plan::new()
        .group("stated", ["tells"])
        .cwd(&scratch.0)
        .env("HANDBELL_OF_ALL", "the group's")
        .env("HANDBELL_OF_GROUP", "too")
        .inherit_env("CARGO_MANIFEST_DIR")
        .limit(Resource::OpenFiles, 50)
        .limit(Resource::Core, 0)
        .group("plain", ["up0"]);
    let (births, lines) = births(plan);
    let workers = births.env("HANDBELL_OF_ALL", "everybody's").start().unwrap();
    let [stated, plain] = workers.pids()[..] else { panic!("two groups") };
    let cwd = |pid: i32| fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd(stated), scratch.0);
    assert_eq!(cwd(plain), std::env::current_dir().unwrap());
    let value = |pid: i32, name: &str| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environ = String::from_utf8_lossy(&environ).into_owned();
        environ
            .split('\0')
            .find_map(|variable| Some(variable.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    assert_eq!(value(stated, "HANDBELL_OF_ALL").as_deref(), Some("the group's"));
    assert_eq!(value(stated, "HANDBELL_OF_GROUP").as_deref(), Some("too"));
    assert_eq!(value(stated, "CARGO_MANIFEST_DIR"), std::env::var("CARGO_MANIFEST_DIR").ok());
    assert_eq!(value(plain, "HANDBELL_OF_ALL").as_deref(), Some("everybody's"));
    assert_eq!(value(plain, "HANDBELL_OF_GROUP"), None);
    assert_eq!(value(plain, "CARGO_MANIFEST_DIR"), None);
    for name in ["Max open files", "Max core file size"] {
        assert_eq!(limit_of(plain, name), own_limit(name));
    }
    assert_eq!(limit_of(stated, "Max core file size"), "0/0");
    drop(workers);
    // What its nodes saw while they were built.
    let told: Vec<String> = texts(&lines).into_iter().filter(|text| text != "up").collect();
    assert_eq!(told, [format!("cwd {}", scratch.0.display()), "open files 50/50".into()]);
}

fn a_relative_command_starts_from_the_engine_also_with_a_cwd() {
    let here = std::env::current_dir().unwrap();
    let up = here.components().skip(1).map(|_| "..").collect::<PathBuf>();
    let relative = up.join(exe().strip_prefix("/").unwrap());
    assert!(relative.is_relative());
    let plan = Plan::new().group("g", ["up0"]).command([relative]).cwd("/proc");
    let workers = births(plan).0.start().unwrap();
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", workers.pids()[0])).unwrap(), Path::new("/proc"));
}

fn a_groups_processor_wins() {
    let allowed = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
        list.unwrap().to_owned()
    };
    let set = rustix::thread::sched_getaffinity(None).expect("a thread knows its processors");
    let mut processors = (0..rustix::thread::CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor));
    let first = processors.next().expect("it runs on one");
    // With one processor only, this shows less.
    let last = processors.next_back().unwrap_or(first);
    let plan = Plan::new().group("a", ["up0"]).pin(last).processes(2).group("b", ["up1"]);
    let workers = births(plan).0.pin(first as u16).start().unwrap();
    let seen: Vec<String> = workers.pids().into_iter().map(allowed).collect();
    assert_eq!(seen, [last, last, first].map(|processor| processor.to_string()));
}

fn gate_01_what_cannot_be_had_is_named_and_nothing_is_left() {
    let plan = || Plan::new().group("a", ["up0"]).group("b", ["up1"]);
    let at = "start refused at step spawn for group 'b'";
    for (plan, said) in [
        (plan().command(["no-such-program"]), "command = no-such-program: it is in no directory of PATH"),
        (plan().cwd("/no/directory"), "cwd = /no/directory: No such file or directory (os error 2)"),
        (
            plan().limit(Resource::OpenFiles, u64::MAX - 1),
            "limit = OpenFiles 18446744073709551614: Operation not permitted (os error 1)",
        ),
    ] {
        let (births, lines) = births(plan);
        assert_eq!(refused(births, &lines), format!("{at}: {said}"));
    }
    // Programs that are no workers.
    let (quick, lines) = births(plan().command(["true"]));
    assert_eq!(refused(quick, &lines), "the worker of group 'b' ended at step mapped: Exit(0)");
    is_late(&plan().command(["sleep", "1000"]), "mapped");
}

fn main() {
    app().serve_if_worker();
    if std::env::var_os(ROLE).is_some() {
        starts_though_it_is_paused();
    }
    common::run(tests![
        boot_03_a_worker_may_print_while_it_builds,
        boot_04_a_worker_that_refuses_says_why,
        boot_03_workers_start_in_the_plans_order,
        boot_03_nodes_are_built_side_by_side,
        boot_03_eight_workers_that_wait_for_each_other_start,
        boot_03_all_workers_may_print_while_they_build,
        boot_04_what_was_started_in_vain_is_told_with_its_end,
        a_plan_of_local_groups_has_no_worker,
        boot_04_one_that_fails_takes_the_others_with_it,
        boot_04_a_worker_that_is_never_ready_takes_the_others_with_it,
        boot_04_a_pause_of_the_engine_is_not_the_workers,
        boot_04_the_others_are_ended_in_reverse_order,
        boot_04_a_spawn_that_fails_takes_the_others_with_it,
        handoff_01_a_command_serves_an_engine,
        a_group_has_its_own_surroundings,
        a_relative_command_starts_from_the_engine_also_with_a_cwd,
        a_groups_processor_wins,
        gate_01_what_cannot_be_had_is_named_and_nothing_is_left,
    ]);
}
