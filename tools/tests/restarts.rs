//! The `handbell` command when a worker that may have a successor is killed in the middle: RESTART-02.

use std::fs;
use std::io::Write;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

mod common;
use common::{FAR, Folder, GROUPS, decisions, handbell, run, text, watched};

/// Whole lines of input, made for this.
fn lines(count: usize, folder: &Folder) -> Vec<u8> {
    let input = folder.path("in");
    assert!(run(&["generate", "--lines", &count.to_string(), "--output", &input]).status.success());
    fs::read(&input).expect("it was written")
}

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

/// The demonstration, with successors for those who may have them.
fn demo(output: &str, more: &[&str]) -> Child {
    let args = ["demo", "--input", "-", "--output", output, "--restart", "on_failure"];
    let args = [&args[..], &FAR, more].concat();
    let child = handbell(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    child.expect("the command starts")
}

/// Waits until so many lines have been decided.
fn until_decided(child: &mut Child, output: &str, count: usize) {
    while fs::read(output).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() < count {
        assert!(child.try_wait().expect("it is ours").is_none(), "it runs until its input ends");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs the demonstration over `lines`, and kills the worker of this group twice, each time so long after it has been
/// given a fifth of them.
fn with_a_worker_killed(
    group: &str,
    more: &[&str],
    after: Duration,
    lines: &[u8],
    output: &str,
) -> (Output, [i32; 2]) {
    let mut child = demo(output, more);
    let mut stdin = child.stdin.take().expect("piped");
    let part = lines.iter().filter(|byte| **byte == b'\n').count() / 5;
    let mut lines = lines.split_inclusive(|byte| *byte == b'\n');
    let mut some = || lines.by_ref().take(part).collect::<Vec<_>>().concat();
    let place = GROUPS.iter().position(|name| *name == group).expect("a group");
    let mut born = Vec::new();
    stdin.write_all(&some()).expect("it reads");
    let killed = [1, 2].map(|round| {
        // What is decided is written while it waits for more; the last line waits for its end.
        until_decided(&mut child, output, round * part - 1);
        let now = workers(child.id());
        // The worker of the group, or its successor.
        let killed = match born.is_empty() {
            true => now[place],
            false => *now.iter().find(|pid| !born.contains(*pid)).expect("the successor"),
        };
        born = now;
        let bytes = some();
        std::thread::scope(|scope| {
            let stdin = &mut stdin;
            scope.spawn(move || stdin.write_all(&bytes).expect("it reads on"));
            std::thread::sleep(after);
            kill_process(Pid::from_raw(killed).expect("a pid"), Signal::KILL).expect("it is ours");
        });
        killed
    });
    until_decided(&mut child, output, 3 * part - 1);
    stdin.write_all(&lines.collect::<Vec<_>>().concat()).expect("it reads on");
    drop(stdin);
    (child.wait_with_output().expect("it ends"), killed)
}

/// Kills a worker twice: the bytes are those of a run without a death. What the command says of it.
fn changes_nothing(group: &str, more: &[&str], after: Duration, lines: &[u8], folder: &Folder) -> String {
    let (expected, output) = (decisions(&folder.path("in"), &["--profile", "memory"]), folder.path("out"));
    let _ = fs::remove_file(&output);
    let (ended, killed) = with_a_worker_killed(group, more, after, lines, &output);
    assert!(ended.status.success(), "{:?} {}", ended.status, text(&ended.stderr));
    assert!(fs::read(&output).expect("decisions were written") == expected, "{group}");
    let shown = text(&ended.stdout).to_owned();
    let row = shown.lines().find(|row| row.trim_start().starts_with(group) && row.contains("pid"));
    let row = row.expect("the group is shown");
    assert!(row.ends_with("(stopped: graceful), restarted 2 times"), "{row}");
    assert!(killed.iter().all(|pid| !row.contains(&format!(" {pid} "))), "{row} {killed:?}");
    assert!(shown.contains("identical   yes"), "{shown}");
    let [again, before] = ["taken_back", "replayed_output_drop"].map(|name| counted(&shown, name));
    let said = format!(
        "reruns   {again} given to successors, {before} outputs that had gone on before not repeated"
    );
    assert!(shown.contains(&said), "{shown}");
    shown
}

/// What the first profile, that has processes, counted.
fn counted(shown: &str, name: &str) -> u64 {
    let row =
        shown.lines().find(|row| row.split_whitespace().next() == Some(name)).expect("a row of the ledger");
    let count = row.split_whitespace().nth(1).expect("a count");
    count.replace(',', "").parse().expect("a number")
}

#[test]
fn restart_02_a_killed_worker_without_a_state_changes_nothing() {
    watched("restart_02_a_killed_worker_without_a_state_changes_nothing", || {
        let folder = Folder::new("restarts");
        let (lines, more) = (lines(10_000, &folder), ["--window", "256"]);
        for group in ["ingress", "egress"] {
            // Nobody knows how fast the machine is.
            let after = |attempt: u64| Duration::from_millis(5 + 7 * attempt);
            let shown = (0..20).map(|attempt| changes_nothing(group, &more, after(attempt), &lines, &folder));
            let mut in_the_middle = shown.filter(|shown| counted(shown, "taken_back") > 0);
            assert!(in_the_middle.next().is_some(), "one of forty deaths was in the middle of something");
        }
    });
}

#[test]
fn restart_02_a_parser_killed_between_its_three_outputs_repeats_none() {
    watched("restart_02_a_parser_killed_between_its_three_outputs_repeats_none", || {
        let folder = Folder::new("parts");
        let (lines, more) = (lines(500, &folder), ["--split-ms", "4"]);
        // Nearly all its time it has sent one of three; at another moment it is a death like any.
        let after = Duration::from_millis(100);
        let shown = (0..10).map(|_| changes_nothing("ingress", &more, after, &lines, &folder));
        let mut between = shown.filter(|shown| counted(shown, "replayed_output_drop") > 0);
        let shown = between.next().expect("one of twenty deaths was between two outputs");
        // Of each death one line, of which the policy had had one part.
        assert!(counted(&shown, "replayed_output_drop") <= 2, "{shown}");
        assert_eq!(
            counted(&shown, "forwarded"),
            4 * counted(&shown, "registered"),
            "each part once: {shown}"
        );
    });
}

#[test]
fn restart_02_a_killed_policy_ends_the_run_with_the_message() {
    watched("restart_02_a_killed_policy_ends_the_run_with_the_message", || {
        let folder = Folder::new("policy");
        let (lines, output) = (lines(20_000, &folder), folder.path("out"));
        let expected = decisions(&folder.path("in"), &["--profile", "memory"]);
        for more in [&["--window", "256"][..], &["--split-ms", "0"]] {
            let _ = fs::remove_file(&output);
            let mut child = demo(&output, more);
            let mut stdin = child.stdin.take().expect("piped");
            let ended = std::thread::scope(|scope| {
                // Until nobody reads any more.
                let feeds = scope.spawn(|| while stdin.write_all(&lines).is_ok() {});
                until_decided(&mut child, &output, 1000);
                let policy = workers(child.id())[GROUPS.iter().position(|name| *name == "policy").unwrap()];
                kill_process(Pid::from_raw(policy).expect("a pid"), Signal::KILL).expect("it is ours");
                let ended = child.wait_with_output().expect("it ends");
                feeds.join().expect("it ends");
                ended
            });
            assert_eq!(text(&ended.stderr), "remote handoff transport failed for group 'policy'\n");
            assert!(ended.status.code() == Some(6) && ended.stdout.is_empty(), "{ended:?}");
            let decided = fs::read(&output).expect("decisions were written");
            let common = decided.len().min(expected.len());
            assert!(decided.ends_with(b"\n") && decided[..common] == expected[..common], "{more:?}");
        }
    });
}
