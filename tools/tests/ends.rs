//! How the `handbell` command ends when something is wrong, run as a user runs it.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

mod common;
use common::{FAR, Folder, GROUPS, HANDBELL, SAMPLE, decisions, handbell, run, text, watched};

/// Ended with this code, said exactly one line that holds all of these words, and nothing else.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.ends_with('\n') && stderr.lines().count() == 1, "{stderr}");
    assert!(!stderr.contains("panicked") && words.iter().all(|word| stderr.contains(word)), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

#[test]
fn gate_03_arguments() {
    watched("gate_03_arguments", || {
        refused(&run(&["demo", "--window", "0"]), 2, &["--window", "'0'", "1..=4096"]);
        refused(&run(&["demo", "--window", "4097"]), 2, &["--window", "'4097'", "1..=4096"]);
        refused(&run(&["demo", "--ingress-processes", "0"]), 2, &["--ingress-processes", "'0'", "1..=64"]);
        refused(&run(&["demo", "--ingress-processes", "65"]), 2, &["--ingress-processes", "1..=64"]);
        refused(&run(&["demo", "--waiting", "long"]), 2, &["--waiting", "'long'", "adaptive"]);
        refused(&run(&["demo", "--deadline-ms", "0"]), 2, &["--deadline-ms", "'0'", "1..="]);
        refused(&run(&["demo", "--profile", "moon"]), 2, &["--profile", "'moon'", "process_supervisor"]);
        refused(&run(&["demo", "--rules", "none"]), 2, &["--rules", "'none'", "experiment"]);
        refused(&run(&["demo", "--loud"]), 2, &["--loud"]);
        refused(&run(&["generate"]), 2, &["--lines"]);
        for args in [&["--help"][..], &["demo", "--help"]] {
            let help = run(args);
            assert!(help.status.success() && text(&help.stdout).contains("10  the two profiles"));
        }
    });
}

#[test]
fn gate_03_input_and_output() {
    watched("gate_03_input_and_output", || {
        let folder = Folder::new("files");
        let missing = folder.path("missing");
        refused(&run(&["demo", "--input", &missing]), 3, &["input = ", &missing, "must be a file"]);
        let directory = folder.path("");
        refused(&run(&["demo", "--input", &directory]), 3, &["input = ", &directory]);
        refused(&run(&["demo", "--output", &directory]), 4, &["output = ", &directory]);
        let nowhere = folder.path("missing/out");
        refused(&run(&["demo", "--output", &nowhere]), 4, &["output = ", &nowhere]);
        refused(&run(&["demo", "--output", "/dev/full"]), 4, &["output = /dev/full"]);
        refused(&run(&["generate", "--lines", "9", "--output", "/dev/full"]), 4, &["output = /dev/full"]);
        // A missing input costs no output, and an output never its own input.
        let kept = folder.file("kept", SAMPLE);
        refused(&run(&["demo", "--input", &missing, "--output", &kept]), 3, &["input = "]);
        refused(&run(&["demo", "--input", &kept, "--output", &kept]), 4, &["must not be the input"]);
        assert!(fs::read(&kept).expect("it is there") == SAMPLE);
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o000)).expect("it is ours");
        if fs::read(&kept).is_err() {
            refused(&run(&["demo", "--input", &kept]), 3, &["input = ", &kept]);
            refused(&run(&["demo", "--output", &kept]), 4, &["output = ", &kept]);
        }
    });
}

#[test]
fn gate_03_a_closed_pipe() {
    watched("gate_03_a_closed_pipe", || {
        for args in [&["demo"][..], &["demo", "--output", "-"], &["generate", "--lines", "9"], &["--help"]] {
            let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
            drop(reader);
            let output = handbell(args).stdout(writer).stderr(Stdio::piped()).output();
            refused(&output.expect("it starts"), 4, &["output = -", "pipe"]);
        }
    });
}

/// What a shell makes of this script; `$0` is the command.
fn sh(script: &str, folder: &Folder) -> Output {
    handbell(&[]);
    let output = Command::new("sh").args(["-c", script, HANDBELL]).current_dir(folder.path("")).output();
    output.expect("sh starts")
}

#[test]
fn gate_03_standard_streams_that_cannot_be_written() {
    watched("gate_03_standard_streams_that_cannot_be_written", || {
        let folder = Folder::new("streams");
        for args in ["demo --profile memory", "demo --output -", "generate --lines 9", "--help"] {
            // Opened for reading.
            refused(
                &sh(&format!("\"$0\" {args} </dev/null 1</dev/null"), &folder),
                4,
                &["output = -", "descriptor"],
            );
            // Without a place at all what is told there is as if in /dev/null, and nothing else is.
            let closed = sh(&format!("\"$0\" {args} </dev/null >&-"), &folder);
            assert!(closed.status.success() && closed.stdout.is_empty());
        }
        for args in ["demo --profile memory --json", "demo --profile memory --output -"] {
            let silent = sh(&format!("\"$0\" {args} </dev/null 2</dev/null"), &folder);
            assert_eq!(silent.status.code(), Some(4), "{args}");
        }
    });
}

#[test]
fn gate_03_a_file_that_may_not_grow() {
    watched("gate_03_a_file_that_may_not_grow", || {
        let folder = Folder::new("grow");
        let told = |script: &str, code, words: &[&str]| refused(&sh(script, &folder), code, words);
        let too_large = |field| [field, "File too large"];
        told("ulimit -f 8; \"$0\" demo --profile memory --output out", 4, &too_large("output = out"));
        told("ulimit -f 8; \"$0\" demo --profile memory --output - >out", 4, &too_large("output = -"));
        told("ulimit -f 1; \"$0\" demo --profile memory >summary", 4, &too_large("output = -"));
        told("ulimit -f 8; \"$0\" generate --lines 2000 --output in", 4, &too_large("output = in"));
        // Shared memory is a file as well.
        told("ulimit -f 8; \"$0\" demo --profile process_supervisor", 5, &too_large("start refused"));
        // A worker has what the command was started with.
        let mut fed = Fed::start(&["--window", "1"]);
        until_there_are(&fed, GROUPS.len());
        for worker in fed.workers() {
            assert!(!is_in(worker, "SigCgt:", Signal::XFSZ));
            assert_eq!(is_in(worker, "SigIgn:", Signal::XFSZ), is_ignored(Signal::XFSZ));
        }
        drop(fed.stdin.take());
        assert!(fed.end().0.success());
    });
}

#[test]
fn gate_03_a_refused_start() {
    watched("gate_03_a_refused_start", || {
        let script = "ulimit -n 12; exec \"$0\" demo --profile process_supervisor";
        let output = Command::new("sh").args(["-c", script, HANDBELL]).output().expect("sh starts");
        refused(&output, 5, &["start refused", "12"]);
    });
}

/// A demo that is fed through a pipe and decides line by line.
struct Fed {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Fed {
    fn start(more: &[&str]) -> Self {
        Self::start_within(FAR, more)
    }

    fn start_within(deadline: [&str; 2], more: &[&str]) -> Self {
        let args = [&["demo", "--input", "-", "--output", "-"], &deadline[..], more].concat();
        let mut command = handbell(&args);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the command starts");
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("the input is open");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("the demo reads");
    }

    /// Reads replies to the fed lines: what is decided is written while the demo waits for more.
    fn replies(&mut self, count: usize) -> Vec<u8> {
        self.try_replies(count).expect("a reply comes")
    }

    fn try_replies(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        let stdout = self.child.stdout.as_mut().expect("captured");
        let (mut replies, mut byte) = (Vec::new(), [0]);
        while replies.iter().filter(|byte| **byte == b'\n').count() < count {
            stdout.read_exact(&mut byte)?;
            replies.push(byte[0]);
        }
        Ok(replies)
    }

    /// The workers, in the order of their birth.
    fn workers(&self) -> Vec<Pid> {
        // One that has ended has none.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten();
        let children = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
        let children: String = children.map(|children| children.unwrap_or_default()).collect();
        let pid = |pid: &str| Pid::from_raw(pid.parse().expect("a pid")).expect("a pid");
        children.split_whitespace().map(pid).collect()
    }

    /// The worker of a group, where each has one.
    fn worker(&self, group: &str) -> Pid {
        let workers = self.workers();
        assert_eq!(workers.len(), GROUPS.len(), "{workers:?}");
        workers[GROUPS.iter().position(|name| *name == group).expect("a group")]
    }

    /// Ends with the transport failure of this group, without another reply.
    #[track_caller]
    fn ends_by_transport(mut self, group: &str) {
        let workers = self.workers();
        let stdin = self.stdin.take();
        let (status, rest, stderr) = self.end();
        drop(stdin);
        assert_eq!(stderr, format!("remote handoff transport failed for group '{group}'\n"));
        assert!(status.code() == Some(6) && rest.is_empty());
        // Ended and reaped by the command itself, not left to whoever takes orphans over.
        let left = workers.iter().filter_map(|pid| state_of(*pid)).collect::<Vec<_>>();
        assert!(left.is_empty(), "{left:?}");
    }

    fn end(self) -> (ExitStatus, Vec<u8>, String) {
        let output = self.child.wait_with_output().expect("it ends");
        (output.status, output.stdout, text(&output.stderr).to_owned())
    }
}

/// Waits until the process is gone, or dead and not yet reaped by who has taken it over.
fn gone(pid: Pid) {
    while state_of(pid).is_some_and(|state| !matches!(state, 'Z' | 'X')) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter of a process, if there is one.
fn state_of(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether this process, and so whatever it starts, ignores the signal.
fn is_ignored(signal: Signal) -> bool {
    is_in(rustix::process::getpid(), "SigIgn:", signal)
}

/// Whether the signal is in this mask of a process; false if that is gone.
fn is_in(pid: Pid, mask: &str, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap_or("0");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a mask");
    mask >> (signal.as_raw() - 1) & 1 != 0
}

/// Waits until so many workers have begun to serve: READY is behind what they do with signals.
fn until_there_are(fed: &Fed, count: usize) {
    let serves = |pid: &Pid| {
        let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
        tasks.is_ok_and(|tasks| tasks.count() > 1)
    };
    while fed.workers().iter().filter(|pid| serves(pid)).count() < count {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn first_lines(count: usize) -> Vec<u8> {
    SAMPLE.split_inclusive(|byte| *byte == b'\n').take(count).collect::<Vec<_>>().concat()
}

#[test]
fn handoff_e_02_a_killed_worker() {
    watched("handoff_e_02_a_killed_worker", || {
        // The policy has a state, and no successor whatever the others have.
        let manners = [&[][..], &["--restart", "on_failure"], &["--window", "1", "--json"]];
        for (group, more) in GROUPS.into_iter().zip(manners) {
            let mut fed = Fed::start(more);
            fed.feed(&first_lines(100));
            assert_eq!(text(&fed.replies(100)).lines().count(), 100);
            // Killed while nothing is in flight and the input stays open: said at once, not at the next line.
            kill_process(fed.worker(group), Signal::KILL).expect("it is ours");
            fed.ends_by_transport(group);
        }
    });
}

#[test]
fn placement_03_the_others_go_on_without_a_killed_worker() {
    watched("placement_03_the_others_go_on_without_a_killed_worker", || {
        let folder = Folder::new("others");
        let expected = decisions(&folder.file("in", SAMPLE), &["--profile", "memory"]);
        let mut fed = Fed::start(&["--ingress-processes", "3"]);
        let mut lines = SAMPLE.split_inclusive(|byte| *byte == b'\n');
        let mut some = |count| lines.by_ref().take(count).collect::<Vec<_>>().concat();
        let mut replies = Vec::new();
        fed.feed(&some(100));
        replies.extend(fed.replies(100));
        let ingress = fed.workers()[..3].to_vec();
        for killed in &ingress[..2] {
            kill_process(*killed, Signal::KILL).expect("it is ours");
            // Reaped, and so known to be dead: what comes now goes to the others.
            while Path::new(&format!("/proc/{}", killed.as_raw_nonzero())).exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            fed.feed(&some(100));
            replies.extend(fed.replies(100));
        }
        assert!(expected.starts_with(&replies) && text(&replies).lines().count() == 300);
        kill_process(ingress[2], Signal::KILL).expect("it is ours");
        fed.ends_by_transport("ingress");
    });
}

#[test]
fn handoff_e_02_a_worker_killed_under_load() {
    watched("handoff_e_02_a_worker_killed_under_load", || {
        let folder = Folder::new("killed");
        let (input, output) = (folder.path("in"), folder.path("out"));
        assert!(run(&["generate", "--lines", "20000", "--output", &input]).status.success());
        let lines = fs::read(&input).expect("it was written");
        let expected = decisions(&input, &["--profile", "memory"]);
        for group in GROUPS {
            let _ = fs::remove_file(&output);
            let args = [&["demo", "--input", "-", "--output", &output, "--window", "512"], &FAR[..]].concat();
            let child = handbell(&args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let mut child = child.expect("the command starts");
            let mut stdin = child.stdin.take().expect("piped");
            let mut fed = Fed { child, stdin: None };
            let lines = lines.clone();
            let feeder = std::thread::spawn(move || {
                // Over and over, until nobody reads any more.
                while stdin.write_all(&lines).is_ok() && stdin.write_all(b"\n").is_ok() {}
            });
            while fs::metadata(&output).map_or(0, |file| file.len()) < 100_000 {
                assert!(
                    fed.child.try_wait().expect("it is ours").is_none(),
                    "it runs until it is told to end"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            kill_process(fed.worker(group), Signal::KILL).expect("it is ours");
            fed.ends_by_transport(group);
            feeder.join().expect("the feeder ends");
            // What was decided before is there, whole and in order.
            let written = fs::read(&output).expect("decisions were written");
            assert!(written.ends_with(b"}\n"));
            let common = written.len().min(expected.len());
            assert!(written[..common] == expected[..common]);
        }
    });
}

#[test]
fn handoff_e_01_a_worker_that_stands_still() {
    watched("handoff_e_01_a_worker_that_stands_still", || {
        for group in GROUPS {
            // A slow machine gets more time.
            let mut deadlines = (0..).map(|tries| 300 * 3u32.pow(tries));
            deadlines.find(|deadline_ms| stands_still(group, *deadline_ms));
        }
    });
}

/// Whether the deadline was met where the worker stands still, and nowhere else.
fn stands_still(group: &str, deadline_ms: u32) -> bool {
    let mut fed = Fed::start_within(["--deadline-ms", &deadline_ms.to_string()], &[]);
    fed.feed(&first_lines(10));
    let is_in_time = fed.try_replies(10).is_ok();
    let workers = if is_in_time { fed.workers() } else { Vec::new() };
    if is_in_time {
        let pid = fed.worker(group);
        kill_process(pid, Signal::STOP).expect("it is ours");
        while state_of(pid) != Some('T') {
            std::thread::sleep(Duration::from_millis(1));
        }
        fed.feed(&first_lines(5));
    }
    let stdin = fed.stdin.take();
    let (status, rest, stderr) = fed.end();
    drop(stdin);
    assert!(stderr.starts_with("remote handoff timed out for group '"), "{stderr}");
    assert_eq!(status.code(), Some(7));
    workers.into_iter().for_each(gone);
    let is_there = is_in_time && stderr == format!("remote handoff timed out for group '{group}'\n");
    assert!(!is_there || rest.is_empty());
    is_there
}

#[test]
fn stop_ipc_04_a_killed_or_interrupted_demo_leaves_no_worker() {
    watched("stop_ipc_04_a_killed_or_interrupted_demo_leaves_no_worker", || {
        // A shell lets what it starts in the background ignore Ctrl-C, and so does what is started from there.
        let interrupt = (!is_ignored(Signal::INT)).then_some(Signal::INT);
        for signal in [Signal::TERM, Signal::KILL].into_iter().chain(interrupt) {
            let mut fed = Fed::start(&["--ingress-processes", "2"]);
            fed.feed(&first_lines(3));
            fed.replies(3);
            let workers = fed.workers();
            assert_eq!(workers.len(), 4);
            kill_process(Pid::from_child(&fed.child), signal).expect("it is ours");
            let stdin = fed.stdin.take();
            let (status, ..) = fed.end();
            drop(stdin);
            assert!(!status.success());
            workers.into_iter().for_each(gone);
        }
    });
}

// ---- a stop ----

/// Signals that ask the demo to stop. A shell lets what it starts in the background ignore Ctrl-C, and so does what is
/// started from there.
fn orders() -> impl Iterator<Item = Signal> {
    [Signal::TERM, Signal::INT].into_iter().filter(|signal| !is_ignored(*signal))
}

#[test]
fn stop_ipc_01_an_interrupted_demo_decides_what_is_in_flight() {
    watched("stop_ipc_01_an_interrupted_demo_decides_what_is_in_flight", || {
        let expected = decisions(&Folder::new("stopped").file("in", SAMPLE), &["--profile", "memory"]);
        for (signal, more) in orders().zip([&["--ingress-processes", "2"][..], &["--profile", "memory"]]) {
            let mut fed = Fed::start(more);
            fed.feed(&first_lines(100));
            let replies = fed.replies(100);
            let workers = fed.workers();
            kill_process(Pid::from_child(&fed.child), signal).expect("it is ours");
            let stdin = fed.stdin.take();
            let (status, rest, stderr) = fed.end();
            drop(stdin);
            let name = if signal == Signal::INT { "SIGINT" } else { "SIGTERM" };
            assert_eq!(stderr, format!("stopped by {name} before the run was over\n"));
            assert_eq!(status.code(), Some(9));
            assert!(expected.starts_with(&replies) && rest.is_empty());
            workers.into_iter().for_each(gone);
        }
    });
}

#[test]
fn stop_ipc_04_a_signal_in_the_first_moments_leaves_nothing() {
    watched("stop_ipc_04_a_signal_in_the_first_moments_leaves_nothing", || {
        for signal in orders() {
            for after_ms in 0..12 {
                let mut fed = Fed::start(&["--ingress-processes", "2"]);
                let pid = Pid::from_child(&fed.child);
                // Before that nothing has been started.
                while !is_in(pid, "SigCgt:", signal) {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(after_ms));
                kill_process(pid, signal).expect("it is ours");
                let mut workers = HashSet::new();
                while fed.child.try_wait().expect("it is ours").is_none() {
                    workers.extend(fed.workers().iter().map(|pid| pid.as_raw_nonzero()));
                }
                let (status, rest, stderr) = fed.end();
                let name = if signal == Signal::INT { "SIGINT" } else { "SIGTERM" };
                assert_eq!(stderr, format!("stopped by {name} before the run was over\n"), "{after_ms}");
                assert!(status.code() == Some(9) && rest.is_empty(), "{after_ms}");
                workers.into_iter().filter_map(|pid| Pid::from_raw(pid.get())).for_each(gone);
            }
        }
    });
}

#[test]
fn stop_ipc_01_a_signal_ends_a_start_that_does_not() {
    watched("stop_ipc_01_a_signal_ends_a_start_that_does_not", || {
        let folder = Folder::new("fifo");
        let input = folder.path("in");
        assert!(Command::new("mkfifo").arg(&input).status().expect("mkfifo starts").success());
        for signal in orders() {
            // Nobody writes there.
            let mut demo = handbell(&["demo", "--input", &input, "--drain-ms", "100"]);
            let demo =
                demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
            let pid = Pid::from_child(&demo);
            while !is_in(pid, "SigCgt:", signal) {
                std::thread::yield_now();
            }
            kill_process(pid, signal).expect("it is ours");
            refused(
                &demo.wait_with_output().expect("it ends"),
                9,
                &["stopped by SIG", "before the run was over"],
            );
        }
    });
}

#[test]
fn handoff_e_06_a_stop_cuts_off_what_stands_still() {
    watched("handoff_e_06_a_stop_cuts_off_what_stands_still", || {
        for group in GROUPS {
            // A slow machine gets more time to hand the lines in.
            let mut pauses = (0..).map(|tries| Duration::from_millis(50 * 3u64.pow(tries)));
            pauses.find(|pause| is_cut_off(group, *pause));
        }
    });
}

/// Whether lines were in flight when the stop came, and so were cut off where the worker stands still.
fn is_cut_off(group: &str, pause: Duration) -> bool {
    let mut fed = Fed::start(&["--drain-ms", "100"]);
    fed.feed(&first_lines(10));
    fed.replies(10);
    let workers = fed.workers();
    kill_process(fed.worker(group), Signal::STOP).expect("it is ours");
    fed.feed(&first_lines(5));
    std::thread::sleep(pause);
    kill_process(Pid::from_child(&fed.child), Signal::TERM).expect("it is ours");
    let stdin = fed.stdin.take();
    let (status, rest, stderr) = fed.end();
    drop(stdin);
    assert!(status.code() == Some(9) && rest.is_empty(), "{stderr}");
    workers.into_iter().for_each(gone);
    let is_in_order = stderr == "stopped by SIGTERM before the run was over\n";
    assert!(is_in_order || stderr == format!("remote handoff shut down for group '{group}'\n"), "{stderr}");
    !is_in_order
}

#[test]
fn stop_ipc_04_the_second_signal_waits_for_nobody() {
    watched("stop_ipc_04_the_second_signal_waits_for_nobody", || {
        let mut fed = Fed::start(&["--drain-ms", "3600000"]);
        fed.feed(&first_lines(10));
        fed.replies(10);
        let workers = fed.workers();
        kill_process(fed.worker("policy"), Signal::STOP).expect("it is ours");
        fed.feed(&first_lines(5));
        // Two that come in the same moment are one.
        while fed.child.try_wait().expect("it is ours").is_none() {
            kill_process(Pid::from_child(&fed.child), Signal::TERM).expect("it is ours");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (status, rest, stderr) = fed.end();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{stderr}");
        assert!(rest.is_empty());
        workers.into_iter().for_each(gone);
    });
}

// ---- a node that fails ----

#[test]
fn handoff_e_04_a_node_that_fails() {
    watched("handoff_e_04_a_node_that_fails", || {
        let folder = Folder::new("fails");
        let output = folder.path("out");
        let expected = decisions(&folder.file("in", SAMPLE), &["--profile", "memory"]);
        for more in [&[][..], &["--profile", "memory"], &["--window", "512", "--json"]] {
            let args = [&["demo", "--output", &output, "--max-ids", "64"], more].concat();
            let refusal = run(&args);
            refused(&refusal, 8, &["remote handoff failed for group 'policy'\n"]);
            let decided = fs::read(&output).expect("decisions were written");
            // Up to the line whose id is one too many; a repeated id needs no place.
            assert!(decided.len() < expected.len() && expected.starts_with(&decided));
            let ids = text(&decided).lines().map(|line| line.split('"').nth(3)).collect::<HashSet<_>>();
            assert!(ids.len() >= 64, "{}", ids.len());
        }
        // The sample has fewer.
        let bounded = decisions(&folder.path("in"), &["--max-ids", "2048"]);
        assert!(bounded == expected);
        refused(&run(&["demo", "--max-ids", "63"]), 2, &["--max-ids", "'63'", "power of two"]);
    });
}
