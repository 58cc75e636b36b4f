//! Running a program's tests: a watchdog that ends a hang with a dump, and a look for what was left behind.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};

/// A program of which no test begins or ends for so long hangs; in seconds.
const LIMIT_S: u64 = 300;
/// For longer runs than the usual one: another limit, in seconds.
const LIMIT: &str = "HANDBELL_TEST_LIMIT_S";

/// Tests that have begun, and tests that have ended.
static STEPS: AtomicU64 = AtomicU64::new(0);
static DOING: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());

fn doings() -> MutexGuard<'static, BTreeMap<u64, String>> {
    DOING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names what this thread does, for the dump, until it is dropped.
pub fn doing(what: &str) -> Doing {
    let mut doings = doings();
    let number = doings.keys().next_back().map_or(0, |last| last + 1);
    doings.insert(number, what.to_owned());
    Doing(number)
}

pub struct Doing(u64);

impl Drop for Doing {
    fn drop(&mut self) {
        doings().remove(&self.0);
    }
}

/// Runs the tests, looks for what is left, and ends the program.
pub fn run(tests: Vec<(&'static str, fn())>) -> ! {
    let arguments = Arguments::from_args();
    thread::Builder::new().name("watchdog".into()).spawn(watchdog).expect("a thread starts");
    // Panics that a test wants from a node of this process are not worth a line.
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload_as_str().is_some_and(|text| text.starts_with("wanted")) {
            show(info);
        }
    }));
    let before = Traces::look();
    let trial = |(name, test): (&'static str, fn())| {
        Trial::test(name, move || {
            let _doing = doing(name);
            STEPS.fetch_add(1, Ordering::Relaxed);
            test();
            STEPS.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    };
    let conclusion = libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect());
    if !arguments.list {
        let left = before.what_is_left();
        if !left.is_empty() {
            eprintln!("left behind after all tests: {left:#?}");
            std::process::exit(102);
        }
    }
    conclusion.exit()
}

fn watchdog() {
    let limit = Duration::from_secs(super::number_from(LIMIT, LIMIT_S));
    let mut seen = (0, Instant::now());
    while seen.1.elapsed() < limit {
        thread::sleep(Duration::from_millis(100));
        let steps = STEPS.load(Ordering::Relaxed);
        if steps != seen.0 {
            seen = (steps, Instant::now());
        }
    }
    let mut dump = format!("the program hangs; doing: {:#?}\n", doings().values().collect::<Vec<_>>());
    for task in entries("/proc/self/task") {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/self/task/{task}/{file}")).unwrap_or_default();
        dump +=
            &format!("thread {task} {} {} {}\n", read("comm").trim(), read("wchan"), read("syscall").trim());
    }
    for (pid, stat) in children() {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        dump += &format!("child {pid} {} {stat}\n", read("wchan"));
        for task in entries(&format!("/proc/{pid}/task")) {
            dump += &format!("  thread {task} {}\n", read(&format!("task/{task}/syscall")).trim());
        }
    }
    eprintln!("{dump}");
    std::process::abort();
}

/// How many descriptors this process has open.
pub fn descriptors() -> usize {
    entries("/proc/self/fd").len()
}

fn entries(path: &str) -> Vec<String> {
    let names = fs::read_dir(path).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// State letter and parent of a process.
fn stat(pid: &str) -> Option<(char, i32, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?, stat.clone()))
}

/// The state letter of a process, if there is one.
pub fn state_of(pid: i32) -> Option<char> {
    stat(&pid.to_string()).map(|(state, ..)| state)
}

/// Children of this process with their state, zombies included.
pub fn children() -> Vec<(String, String)> {
    let own = std::process::id() as i32;
    let all = entries("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    all.filter_map(|pid| stat(&pid).filter(|(_, parent, _)| *parent == own).map(|(.., stat)| (pid, stat)))
        .collect()
}

/// Processes that carry this token, but for zombies: workers and what they started.
pub fn marked(token: &str) -> Vec<String> {
    let token = format!("{}={token}", super::TOKEN);
    let has_token = |pid: &String| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == token.as_bytes())
    };
    entries("/proc")
        .into_iter()
        .filter(|pid| has_token(pid) && state_of(pid.parse().unwrap_or(0)) != Some('Z'))
        .collect()
}

/// What a program can leave behind.
struct Traces {
    descriptors: Vec<String>,
    shared_memory: Vec<String>,
}

impl Traces {
    fn look() -> Self {
        let link = |name: &String| fs::read_link(format!("/proc/self/fd/{name}")).ok();
        let open = entries("/proc/self/fd")
            .into_iter()
            .filter_map(|name| Some(format!("{name} {:?}", link(&name)?)));
        let mut descriptors: Vec<String> = open.filter(|open| !open.contains("/proc/")).collect();
        descriptors.sort();
        // Other programs have theirs there, too.
        let mut shared_memory = entries("/dev/shm");
        shared_memory.retain(|name| name.contains("handbell"));
        shared_memory.sort();
        Self { descriptors, shared_memory }
    }

    /// What is there now and was not then. Processes are given time to go: a killed group dies a moment after
    /// its leader has been reaped.
    fn what_is_left(&self) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let left = self.left_now();
            if left.is_empty() || begin.elapsed() > Duration::from_secs(60) {
                return left;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn left_now(&self) -> Vec<String> {
        let mut left: Vec<String> = children().into_iter().map(|(_, stat)| format!("child {stat}")).collect();
        left.extend(marked(&super::token()).into_iter().map(|pid| format!("process {pid}")));
        let now = Self::look();
        if now.descriptors.len() > self.descriptors.len() {
            let new = now.descriptors.iter().filter(|open| !self.descriptors.contains(open));
            left.extend(new.map(|open| format!("descriptor {open}")));
        }
        let shared_memory = now.shared_memory.iter().filter(|name| !self.shared_memory.contains(name));
        left.extend(shared_memory.map(|name| format!("/dev/shm/{name}")));
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        left.extend(
            maps.lines().filter(|line| line.contains("memfd:handbell")).map(|line| format!("mapping {line}")),
        );
        for task in entries("/proc/self/task") {
            let name = fs::read_to_string(format!("/proc/self/task/{task}/comm")).unwrap_or_default();
            // The spawner lives as long as the program.
            if name.starts_with("handbell-") && !name.starts_with("handbell-spawn") {
                left.push(format!("thread {}", name.trim()));
            }
        }
        left
    }
}
