//! The `handbell` command when a worker that may have a successor is killed in the middle: RESTART-02.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

mod common;
use common::{Folder, GROUPS, decisions, handbell, run, text, watched};

const LINES: usize = 5_000;

/// The workers, in the order of their birth; a successor stands behind all others. The kernel's list may lack some
/// while others come and go, so it is read until all are there, twice.
fn workers(engine: u32) -> Vec<i32> {
    let mut before = Vec::new();
    loop {
        let now = listed(engine);
        if now.len() == GROUPS.len() && now == before {
            return now;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn listed(engine: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{engine}/task")).expect("it runs");
    let children = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
    let children: String = children.map(|children| children.unwrap_or_default()).collect();
    children.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

/// Runs the demonstration over `lines`, and kills the worker of this group twice, each time in the middle of them.
fn with_a_worker_killed(group: &str, lines: &[u8], output: &str) -> (Output, [i32; 2]) {
    let args = ["demo", "--input", "-", "--output", output, "--window", "256", "--restart", "on_failure"];
    let child = handbell(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the command starts");
    let mut stdin = child.stdin.take().expect("piped");
    let decided = || fs::read(output).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
    let until = |count: usize| {
        while decided() < count {
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let mut lines = lines.split_inclusive(|byte| *byte == b'\n');
    let mut some = || lines.by_ref().take(LINES / 5).collect::<Vec<_>>().concat();
    let mut killed = [0; 2];
    let mut born = Vec::new();
    for (round, killed) in killed.iter_mut().enumerate() {
        std::thread::scope(|scope| {
            let (stdin, bytes) = (&mut stdin, some());
            let feeds = scope.spawn(move || stdin.write_all(&bytes).expect("it reads"));
            until(round * 2 * (LINES / 5) + 100);
            let now = workers(child.id());
            // The worker of the group, or the successor that came last.
            let place = GROUPS.iter().position(|name| *name == group).expect("a group");
            *killed = match born.is_empty() {
                true => now[place],
                false => *now.iter().find(|pid| !born.contains(*pid)).expect("the successor"),
            };
            born = now;
            kill_process(Pid::from_raw(*killed).expect("a pid"), Signal::KILL).expect("it is ours");
            feeds.join().expect("it reads on");
        });
        // None of these is decided without the successor. The last line waits for its end.
        stdin.write_all(&some()).expect("it reads on");
        until((round + 1) * 2 * (LINES / 5) - 1);
    }
    stdin.write_all(&lines.collect::<Vec<_>>().concat()).expect("it reads on");
    drop(stdin);
    (child.wait_with_output().expect("it ends"), killed)
}

#[test]
fn restart_02_a_killed_worker_without_a_state_changes_nothing() {
    watched("restart_02_a_killed_worker_without_a_state_changes_nothing", || {
        let folder = Folder::new("restarts");
        let (input, output) = (folder.path("in"), folder.path("out"));
        assert!(run(&["generate", "--lines", &LINES.to_string(), "--output", &input]).status.success());
        let lines = fs::read(&input).expect("it was written");
        let expected = decisions(&input, &["--profile", "memory"]);
        for group in ["ingress", "egress"] {
            let _ = fs::remove_file(&output);
            let (ended, killed) = with_a_worker_killed(group, &lines, &output);
            assert!(ended.status.success(), "{:?} {}", ended.status, text(&ended.stderr));
            assert!(fs::read(&output).expect("decisions were written") == expected, "{group}");
            let shown = text(&ended.stdout);
            let row = shown.lines().find(|row| row.trim_start().starts_with(group) && row.contains("pid"));
            let row = row.expect("the group is shown");
            assert!(row.ends_with("(stopped: graceful), restarted 2 times"), "{row}");
            assert!(killed.iter().all(|pid| !row.contains(&format!(" {pid} "))), "{row} {killed:?}");
            assert!(shown.contains("identical   yes"), "{shown}");
        }
    });
}
