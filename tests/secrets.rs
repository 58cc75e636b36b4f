//! A secret is found nowhere but where its caller keeps it: SEC-IPC-08.
//!
//! The canary is random. This program keeps it only masked, so that whatever finds it found a copy.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handbell::testing::doorbell::{SECRET_BYTES, random};
use handbell::{EngineBuilder, NodeId, Plan, Restart};

mod common;
use common::{Notices, TOKEN, engine, far, ms, started, stop, token, until, worker_pid};

/// Set in the process that is an engine and searches itself.
const ROLE: &str = "HANDBELL_TEST_ROLE";

fn main() {
    common::app().serve_if_worker();
    if std::env::var_os(ROLE).is_some() {
        remembers_nothing();
    }
    common::run(tests![
        sec_ipc_08_the_search_finds_a_canary,
        sec_ipc_08_no_secret_is_left_in_the_memory_of_engine_and_worker,
        sec_ipc_08_no_secret_is_shown_anywhere,
    ]);
}

/// A secret, each byte of it changed by [`MASK`].
struct Masked([u8; SECRET_BYTES]);

const MASK: u8 = 0x5A;

impl Masked {
    /// Of printable bytes, so that it would be seen in a text as it is.
    fn new() -> Self {
        let mut bytes = [0; SECRET_BYTES];
        random::fill(&mut bytes).expect("random bytes");
        Self(bytes.map(|byte| (b'!' + byte % 90) ^ MASK))
    }

    /// The secret itself, in a place of its own that is wiped behind `with`.
    fn show<T>(&self, with: impl FnOnce(&[u8; SECRET_BYTES]) -> T) -> T {
        let mut shown = Box::new([0; SECRET_BYTES]);
        shown.iter_mut().zip(self.0).for_each(|(byte, masked)| *byte = black_box(masked) ^ MASK);
        let result = with(black_box(&shown));
        black_box(&mut *shown).fill(0);
        black_box(shown);
        result
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let is_here = |window: &[u8]| window.iter().zip(self.0).all(|(byte, masked)| byte ^ MASK == masked);
        bytes.windows(SECRET_BYTES).any(is_here)
    }

    /// Whether a text shows the first eight bytes as they are, as numbers, or as hexadecimal digits.
    fn is_shown_in(&self, text: &str) -> bool {
        let eight: Vec<u8> = self.0[..8].iter().map(|masked| masked ^ MASK).collect();
        let plain = String::from_utf8(eight.clone()).expect("printable");
        let numbers: Vec<String> = eight.iter().map(u8::to_string).collect();
        let digits: Vec<String> = eight.iter().map(|byte| format!("{byte:02x}")).collect();
        let reversed: String = digits.iter().rev().cloned().collect();
        let forms = [
            plain.escape_debug().to_string().to_ascii_lowercase(),
            plain.to_ascii_lowercase(),
            numbers.join(","),
            digits.concat(),
            digits.join(","),
            digits.join(",0x"),
            reversed,
        ];
        let text: String = text.split_whitespace().collect::<String>().to_ascii_lowercase();
        forms.iter().any(|form| text.contains(form))
    }

    /// The places in the memory of a process where it stands, each with what is mapped there. The buffer through
    /// which this program reads is passed over.
    fn places_in(&self, pid: u32) -> Vec<String> {
        const PAGE: usize = 4096;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
        let memory = File::open(format!("/proc/{pid}/mem")).expect("one's own child");
        let mut page = vec![0; PAGE + SECRET_BYTES];
        let own = page.as_ptr_range();
        let own = own.start.addr() as u64..own.end.addr() as u64;
        let mut places = Vec::new();
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
            let [begin, end] = [range.0, range.1].map(|at| u64::from_str_radix(at, 16).expect("an address"));
            for at in (begin..end).step_by(PAGE) {
                page.fill(0);
                let overlaps = pid == std::process::id()
                    && at < own.end
                    && own.start < at + (PAGE + SECRET_BYTES) as u64;
                let Ok(read) = memory.read_at(&mut page, at) else { continue };
                if self.is_in(&page[..read]) && !overlaps {
                    places.push(format!("{at:x} of {line}"));
                }
            }
        }
        places
    }
}

fn with_secret(builder: EngineBuilder, canary: &Masked) -> EngineBuilder {
    canary.show(|secret| builder.development_secret(secret))
}

fn sec_ipc_08_the_search_finds_a_canary() {
    let canary = Masked::new();
    let own = std::process::id();
    assert_eq!(canary.places_in(own), [""; 0]);
    canary.show(|secret| {
        assert!(canary.is_in(secret) && !canary.is_in(&secret[1..]));
        assert!(!canary.places_in(own).is_empty());
        let digits = secret.map(|byte| format!("{byte:02X}")).concat();
        let plain = String::from_utf8_lossy(secret);
        for text in [
            format!("{secret:?}"),
            format!("{secret:#?}"),
            format!("{secret:#x?}"),
            digits,
            format!("so {plain}"),
        ] {
            assert!(canary.is_shown_in(&text), "{text}");
        }
        assert!(!canary.is_shown_in("nothing of it"));
    });
}

/// Not a test: an engine that searches itself and its worker.
fn remembers_nothing() -> ! {
    let canary = Masked::new();
    let (engine, echo) = started(with_secret(engine(&["echo"]), &canary), "echo");
    assert!(engine.summary().to_string().contains("DEVELOPMENT"));
    engine.call(echo, b"", far()).unwrap();
    for (whose, pid) in [("engine", std::process::id()), ("worker", worker_pid(&engine) as u32)] {
        let places = canary.places_in(pid);
        assert!(places.is_empty(), "the secret stands in the memory of the {whose}: {places:#?}");
    }
    stop(&engine);
    std::process::exit(0);
}

fn sec_ipc_08_no_secret_is_left_in_the_memory_of_engine_and_worker() {
    let mut searches = Command::new("/proc/self/exe");
    searches.env(ROLE, "search").env(TOKEN, token()).stdin(Stdio::null());
    assert!(searches.status().expect("this program starts").success());
}

/// What a process shows of itself to others.
fn face_of(pid: i32) -> String {
    ["cmdline", "environ", "maps", "comm", "status", "stat", "limits"]
        .map(|file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default())
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned() + "\n")
        .chain(tasks(pid))
        .collect()
}

fn tasks(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    // What its descriptors are called.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    names.chain(open.map(|open| format!("{:?}\n", fs::read_link(open.path())))).collect()
}

fn files_in(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// An error with all its sources.
fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(|error| format!("{error} {error:?} {error:#?}\n")).collect()
}

fn sec_ipc_08_no_secret_is_shown_anywhere() {
    let (canary, traced) = (Masked::new(), common::traced::record());
    let folders = [std::env::temp_dir(), "/dev/shm".into(), std::env::current_dir().expect("there is one")];
    let files = folders.each_ref().map(|folder| files_in(folder));
    let printed = Arc::new(Mutex::new(String::new()));
    let notices = Notices::default();
    let builder = |nodes: &[&str], command: bool| {
        let plan = Plan::new().group("g", nodes.iter().copied());
        let plan = if command { plan.command(["false"]) } else { plan };
        let printed = Arc::clone(&printed);
        let sink = move |line: handbell::OutputLine<'_>| {
            *printed.lock().unwrap() += &(String::from_utf8_lossy(line.text) + "\n");
        };
        let builder = common::app().engine(plan).env(TOKEN, token()).on_output(sink);
        with_secret(builder.on_worker_event(notices.listener()), &canary)
    };
    let mut all = String::new();
    // Starts that fail at every step.
    all += &shown(&builder(&["echo"], true).start().unwrap_err());
    all += &shown(&builder(&["unbuildable"], false).start().unwrap_err());
    all += &shown(&builder(&["exit_in_factory"], false).start().unwrap_err());
    let late = builder(&["stuck_in_factory"], false).start_timeout(Duration::from_millis(300));
    all += &shown(&late.start().unwrap_err());
    all += &shown(&builder(&["echo"], false).slots(3).start().unwrap_err());
    all += &shown(&builder(&["echo"], false).memory_limit(1).start().unwrap_err());
    // A life in which everything goes wrong.
    let nodes = ["echo", "env_names", "panic", "fail", "print", "until_cancelled", "abort"];
    let (engine, echo) = started(builder(&nodes, false), "echo");
    let node = |name: &str| -> NodeId { engine.node(name).expect("the plan has it") };
    all += &face_of(worker_pid(&engine));
    all += &face_of(std::process::id() as i32);
    all += &String::from_utf8_lossy(&engine.call(node("env_names"), b"", far()).unwrap().bytes());
    all += &format!("{:?}", engine.call(echo, b"x", far()));
    engine.call(node("print"), b"something", far()).unwrap();
    for (name, deadline) in [("panic", far()), ("fail", far()), ("until_cancelled", ms(20)), ("abort", far())]
    {
        all += &shown(&engine.call(node(name), b"", deadline).unwrap_err());
    }
    let crashed = |event: &handbell::WorkerEvent| matches!(event, handbell::WorkerEvent::Crashed(_));
    until("the death is told", || notices.events().iter().any(crashed));
    all += &shown(&engine.call(echo, b"", far()).unwrap_err());
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| panic!("wanted {engine:?}")));
    all += panicked.unwrap_err().downcast_ref::<String>().expect("a text");
    all += &format!("{engine:#?} {} {:?}", engine.summary(), engine.doorbell_rejects());
    all += &format!("{:?} {:?} {:?}", engine.counters(), engine.audit(), engine.events());
    all += &format!("{:?}", stop(&engine));
    // A successor that is refused, by a program that is gone.
    let program = std::env::temp_dir().join(format!("{}-program", token()));
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).expect("a place for a program");
    let restart = Restart::on_failure(1).delay(Duration::from_millis(1), Duration::from_millis(1));
    let plan = Plan::new().group("g", ["echo"]).command([&program]).restart(restart);
    let builder = common::app().engine(plan).env(TOKEN, token()).on_worker_event(notices.listener());
    let (engine, echo) = started(with_secret(builder, &canary), "echo");
    std::fs::remove_file(&program).expect("it was there");
    common::kill(worker_pid(&engine), rustix::process::Signal::KILL);
    until("it is given up", || notices.has(&handbell::WorkerEvent::GivenUp));
    all += &shown(&engine.call(echo, b"", far()).unwrap_err());
    stop(&engine);
    all += &format!("{:?}", notices.all());
    all += &printed.lock().unwrap();
    all += &traced.lock().unwrap().join("\n");
    assert!(all.contains("development") || all.contains("DEVELOPMENT"), "it does say so much");
    let words = ["something", "HANDBELL_WORKER", "StartRefused", "handoff_failure"];
    assert!(words.iter().all(|word| all.contains(word)), "what is searched is there");
    assert!(!canary.is_shown_in(&all), "shown");
    // Other programs write there, too: only what is new is looked at.
    for (folder, before) in folders.iter().zip(files) {
        for path in files_in(folder).difference(&before) {
            // Whoever reads from somebody's pipe waits for a writer.
            let Some(Ok(bytes)) = path.is_file().then(|| fs::read(path)) else { continue };
            assert!(!canary.is_in(&bytes), "written to {path:?}");
        }
    }
}
