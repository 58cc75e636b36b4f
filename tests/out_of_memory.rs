//! HANDOFF-E-02: a worker that the kernel kills for want of memory says so, and harms nobody else.
//!
//! The engine and its workers run in a small memory control group of their own, below the one that this program is in.
//! Where none can be made, the test prints so, and sees only that nobody else's SIGKILL is taken for the kernel's.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use handbell::{Category, Cause, Plan, WorkerEvent};
use rustix::process::Signal;

mod common;
use common::{Notices, app, balanced, failure, far, kill, stop, transport, until};

/// What the group of its own may use.
const LIMIT: usize = 96 << 20;
/// What the node takes before it gives up: a group that is none must not cost the machine its memory.
const MOST: usize = 2 * LIMIT;
const PIECE: usize = 1 << 20;

/// In the environment of the process with the engine: the group that it shall go into, or nothing.
const GROUP: &str = "HANDBELL_TEST_MEMORY_GROUP";

fn main() {
    let app = app().node("hog", |_, output| {
        let taken: Vec<Vec<u8>> = (0..MOST / PIECE).map(|_| black_box(vec![1; PIECE])).collect();
        Ok(output.reply(&taken.len().to_le_bytes())?)
    });
    app.clone().serve_if_worker();
    if let Some(group) = std::env::var_os(GROUP) {
        return in_the_group(app, Path::new(&group));
    }
    common::run(crate::tests![handoff_e_02_who_is_killed_for_want_of_memory_says_so]);
}

/// A memory control group, until it is dropped.
struct Group(PathBuf);

impl Group {
    /// Below the group of this process.
    fn new() -> Result<Self, String> {
        let own = own_group().ok_or("none is mounted")?;
        forget_former(&own);
        let path = own.join(common::token());
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let group = Self(path);
        // Of the first kind, of the second; without swap, where there is any.
        let sets = |file: &str, bytes: usize| fs::write(group.0.join(file), bytes.to_string()).is_ok();
        if !sets("memory.limit_in_bytes", LIMIT) && !sets("memory.max", LIMIT) {
            return Err(format!("{} takes no limit", group.0.display()));
        }
        let _ = sets("memory.memsw.limit_in_bytes", LIMIT) || sets("memory.swap.max", 0);
        Ok(group)
    }

    /// How many of its processes the kernel has killed.
    fn kills(&self) -> u64 {
        let files = ["memory.oom_control", "memory.events"].map(|file| fs::read_to_string(self.0.join(file)));
        let lines: Vec<String> = files.into_iter().flatten().collect();
        let mut counts =
            lines.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("oom_kill "));
        counts.next().expect("it counts them").trim().parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After a failure some may be left; they are all of this test.
        let left = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        left.lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| kill(pid, Signal::KILL));
        until("the group is empty and gone", || fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

/// Removes the groups of programs like this that were killed before they could.
fn forget_former(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("test-program-")?.parse().ok());
        if pid.is_some_and(|pid| !common::is_alive(pid)) {
            // Whoever is still in it keeps it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The directory of this process's memory control group.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path_of = |is_it: fn(&str) -> bool| {
        let lines = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        lines
            .filter(|fields| is_it(fields[1]))
            .map(|fields| fields[2].trim_start_matches('/').to_owned())
            .next()
    };
    let first = path_of(|names| names.split(',').any(|name| name == "memory"));
    let second = path_of(str::is_empty);
    let places = [
        first.map(|path| Path::new("/sys/fs/cgroup/memory").join(path)),
        second.map(|path| Path::new("/sys/fs/cgroup").join(path)),
    ];
    let has_limits = |place: &PathBuf| place.join("cgroup.procs").exists() && !place.join("devices").exists();
    places.into_iter().flatten().find(has_limits)
}

fn handoff_e_02_who_is_killed_for_want_of_memory_says_so() {
    let group = Group::new();
    let path = group.as_ref().map_or(Path::new(""), |group| &group.0);
    if let Err(why) = &group {
        println!("NOT SEEN: a kill for want of memory; no memory control group can be made here: {why}");
    }
    let program = std::env::current_exe().expect("this program");
    let ended = Command::new(program).env(GROUP, path).env(common::TOKEN, common::token()).status();
    assert!(ended.expect("it starts").success());
    if let Ok(group) = &group {
        assert_eq!(group.kills(), 1, "nobody else");
    }
}

/// In the process with the engine.
fn in_the_group(app: handbell::App, group: &Path) {
    let is_in_one = !group.as_os_str().is_empty();
    if is_in_one {
        fs::write(group.join("cgroup.procs"), "0").expect("it may go there");
    }
    let notices = Notices::default();
    let plan = Plan::new().group("greedy", ["hog"]).group("modest", ["echo"]).group("idle", ["stuck"]);
    let engine = app.engine(plan).env(common::TOKEN, common::token()).on_worker_event(notices.listener());
    let engine = engine.start().expect("there is room for it");
    let [hog, echo, stuck] = ["hog", "echo", "stuck"].map(|name| engine.node(name).expect("the plan has it"));
    let pids = engine.summary().worker_pids.clone();
    let lives = || assert_eq!(*engine.call(echo, b"here", far()).expect("it answers").bytes(), *b"here");
    lives();
    if is_in_one {
        let began = engine.request(hog).deadline(far()).dispatch(b"").unwrap();
        let behind = engine.request(hog).deadline(far()).dispatch(b"").unwrap();
        let began = failure(began.wait().unwrap_err(), Category::Transport);
        assert_eq!((began.cause(), began.started()), (Cause::OutOfMemory, true));
        let behind = failure(behind.wait().unwrap_err(), Category::Transport);
        assert_eq!((behind.cause(), behind.started()), (Cause::OutOfMemory, false));
        assert_eq!(behind.group(), "greedy");
        until("it is told", || {
            notices.events_of(pids[0]).contains(&WorkerEvent::Crashed(Cause::OutOfMemory))
        });
        lives();
        assert_eq!(transport(engine.call(hog, b"", far()).unwrap_err()), Cause::OutOfMemory);
    }
    // One such kill explains one death, and who is killed by somebody else was not killed by the kernel.
    let pending = engine.request(stuck).deadline(far()).dispatch(b"").unwrap();
    kill(pids[2], Signal::KILL);
    assert_eq!(transport(pending.wait().unwrap_err()), Cause::Signal(9));
    lives();
    assert!(common::is_alive(pids[1]));
    balanced(&engine);
    stop(&engine);
}
