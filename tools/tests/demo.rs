//! The `handbell` command, run as a user runs it: what it decides, and how it ends when something is wrong.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const HANDBELL: &str = env!("CARGO_BIN_EXE_handbell");
const SAMPLE: &[u8] = include_bytes!("../samples/load_limits.ndjson");
const TRANSPORT: &str = "remote handoff transport failed for group 'load-limits'\n";
const PROFILES: [&str; 2] = ["memory", "process_supervisor"];

/// Runs a test, and ends the whole program with a word about it if that hangs.
fn watched(name: &'static str, test: impl FnOnce()) {
    let (done, ended) = channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
            // Not `eprintln!`: what that prints is kept for the end of the test, which never comes.
            let mut dump = std::io::stderr();
            let _ = writeln!(dump, "{name} hangs; processes:");
            for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
                let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                if status.starts_with("Name:\thandbell") {
                    let wchan = fs::read_to_string(entry.path().join("wchan")).unwrap_or_default();
                    let _ = writeln!(dump, "{} in {wchan}\n{status}", entry.path().display());
                }
            }
            std::process::abort();
        }
    });
    test();
    drop(done);
}

/// A folder of one test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the folder can be made");
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("the file can be written");
        path
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("the path is text").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn handbell(args: &[&str]) -> Command {
    let mut command = Command::new(HANDBELL);
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    handbell(args).output().expect("the command starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Ended with this code, said exactly one line that holds all of these words, and nothing else.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.ends_with('\n') && stderr.lines().count() == 1, "{stderr}");
    assert!(!stderr.contains("panicked") && words.iter().all(|word| stderr.contains(word)), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// The decisions on `input`, on standard output.
#[track_caller]
fn decisions(input: &str, more: &[&str]) -> Vec<u8> {
    let output = run(&[&["demo", "--input", input, "--output", "-"], more].concat());
    assert!(output.status.success(), "{:?} {}", output.status, text(&output.stderr));
    output.stdout
}

/// Every profile, rule and window gives the same bytes, one reply per line; returns those with reasons.
#[track_caller]
fn identical(input: &str, lines: usize) -> Vec<u8> {
    let mut with_reasons = Vec::new();
    for rules in ["baseline", "experiment"] {
        let expected = decisions(input, &["--profile", "memory", "--rules", rules, "--window", "1"]);
        assert_eq!(expected.iter().filter(|byte| **byte == b'\n').count(), lines);
        assert!(expected.is_empty() || expected.ends_with(b"}\n"));
        for window in ["1", "16", "512"] {
            let both = ["--rules", rules, "--window", window];
            for profile in PROFILES {
                let one = [&both[..], &["--profile", profile]].concat();
                assert!(decisions(input, &one) == expected, "{profile} {rules} {window}");
            }
            assert!(decisions(input, &both) == expected, "both {rules} {window}");
        }
        with_reasons = decisions(input, &["--rules", rules, "--reasons"]);
        assert_eq!(with_reasons.iter().filter(|byte| **byte == b'\n').count(), lines);
    }
    with_reasons
}

fn json_summary(stderr: &[u8]) -> serde_json::Value {
    assert_eq!(text(stderr).lines().count(), 1, "{}", text(stderr));
    serde_json::from_slice(stderr).expect("one JSON object")
}

// ---- what it decides ----

#[test]
fn parity_01_the_sample() {
    watched("parity_01_the_sample", || {
        let folder = Folder::new("sample");
        let with_reasons = identical(&folder.file("in", SAMPLE), 1200);
        for reason in ["PRIME_DAILY_GLOBAL_LIMIT", "WEEKLY_AMOUNT_LIMIT", "ID_DUPLICATE_REPLAY"] {
            assert!(text(&with_reasons).contains(reason), "{reason}");
        }
        let bundled = run(&["demo", "--output", "-", "--rules", "experiment", "--reasons"]);
        assert!(bundled.stdout == with_reasons, "the bundled sample is the file");
    });
}

const MALFORMED: &[u8] = b"\n   \nnull\n[1]\n{\n{}\n\"text\"\n12\n\xff\xfe\n\xef\xbb\xbf{}\n{\"id\":\"\xff\"}\n{\"id\":1}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":3,\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\" 7 \",\"customer_id\":\"x\"}\n{\"id\":\"a\\nb\\u0000\\\"\",\"customer_id\":\"\\u001f\"}\n\
    {\"id\":\"\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1234567890123456789\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-02-30T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:60Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"-3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"3.0\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"1000000000000000.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n";

#[test]
fn parity_01_malformed_lines_of_every_kind() {
    watched("parity_01_malformed_lines_of_every_kind", || {
        let folder = Folder::new("malformed");
        let replies = identical(&folder.file("in", MALFORMED), 24);
        let replies: Vec<&str> = text(&replies).lines().collect();
        let reason = |line: usize| replies[line].split("\"reason\":").nth(1).unwrap_or("accepted");
        assert!((0..15).all(|line| reason(line) == "\"INPUT_PARSE_ERROR\"}"), "{replies:#?}");
        assert!((15..17).all(|line| reason(line) == "\"INVALID_ID_FORMAT\"}"), "{replies:#?}");
        assert!((17..20).all(|line| reason(line) == "\"INVALID_TIMESTAMP\"}"), "{replies:#?}");
        assert!((20..23).all(|line| reason(line) == "\"INVALID_AMOUNT_FORMAT\"}"), "{replies:#?}");
        // None of the malformed lines claimed the id or counted as an attempt.
        assert_eq!(replies[23], r#"{"id":"1","customer_id":"2","accepted":true}"#);
        assert!(replies[13].starts_with(r#"{"id":"7","customer_id":"x","#), "{}", replies[13]);
    });
}

#[test]
fn parity_01_ends_of_lines_and_of_files() {
    watched("parity_01_ends_of_lines_and_of_files", || {
        let folder = Folder::new("ends");
        assert!(identical(&folder.file("empty", b""), 0).is_empty());
        let newline = decisions(&folder.file("newline", SAMPLE), &[]);
        let with_end = [SAMPLE, b"\n"].concat();
        assert!(decisions(&folder.file("end", &with_end), &[]) == newline, "a final newline is no line");
        let plain = text_without_returns(SAMPLE);
        let plain_replies = identical(&folder.file("plain", &plain), 1200);
        let returns: Vec<u8> =
            plain.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]).to_vec();
        assert!(identical(&folder.file("returns", &returns), 1200) == plain_replies, "CRLF");
    });
}

fn text_without_returns(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect::<Vec<_>>().join(&b"\n"[..])
}

#[test]
fn parity_01_random_bytes() {
    watched("parity_01_random_bytes", || {
        let folder = Folder::new("random");
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..100_000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        let newlines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let lines = newlines + usize::from(!bytes.ends_with(b"\n"));
        identical(&folder.file("in", &bytes), lines);
    });
}

#[test]
fn parity_01_generated_lines() {
    watched("parity_01_generated_lines", || {
        let folder = Folder::new("generated");
        let input = folder.path("in");
        let made = run(&["generate", "--lines", "20000", "--seed", "11", "--output", &input]);
        assert!(made.status.success() && made.stdout.is_empty() && made.stderr.is_empty());
        let again = run(&["generate", "--lines", "20000", "--seed", "11"]);
        assert!(again.stdout == fs::read(&input).expect("it was written"), "the same bytes again");
        identical(&input, 20_000);
    });
}

#[test]
fn lines_that_are_long_and_too_long_get_one_reply_each() {
    watched("lines_that_are_long_and_too_long_get_one_reply_each", || {
        const LIMIT: usize = 4 << 20;
        let folder = Folder::new("long");
        let around = br#"{"id":"","customer_id":"2"}"#.len();
        let mut input = Vec::new();
        for id_bytes in [70_000, LIMIT - around, LIMIT - around + 1, 300_000, 5 * LIMIT] {
            let id = "7".repeat(id_bytes);
            input.extend_from_slice(format!("{{\"id\":\"{id}\",\"customer_id\":\"2\"}}\n").as_bytes());
        }
        // Escapes stay as long as they are.
        let escapes = "\\u0001".repeat(LIMIT / 6 - around);
        for _ in 0..20 {
            input.extend_from_slice(format!("{{\"id\":\"{escapes}\"}}\n").as_bytes());
        }
        let input = folder.file("in", &input);
        let replies = decisions(&input, &["--reasons", "--window", "512"]);
        for profile in PROFILES {
            let one = ["--reasons", "--window", "3", "--profile", profile];
            assert!(decisions(&input, &one) == replies, "{profile}");
        }
        let replies: Vec<&str> = text(&replies).lines().collect();
        assert_eq!(replies.len(), 25);
        let unread = r#"{"id":"","customer_id":"","accepted":false,"reason":"INPUT_PARSE_ERROR"}"#;
        assert_eq!([replies[2], replies[4]], [unread; 2]);
        assert!(replies[1].len() > LIMIT && replies[0].len() > 70_000 && replies[5].len() > LIMIT - 1000);
    });
}

// ---- what it prints ----

#[test]
fn the_summary_goes_where_decisions_do_not() {
    watched("the_summary_goes_where_decisions_do_not", || {
        let folder = Folder::new("summary");
        let plain = run(&["demo"]);
        assert!(plain.status.success() && plain.stderr.is_empty(), "{}", text(&plain.stderr));
        let shown = text(&plain.stdout);
        for words in
            ["parse → gate → features → evaluate → update → format", "worker pid", "p99.9", "lines/s"]
        {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        for words in ["balance", "registered", "accepted    682", "declined    518", "identical   yes"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }

        let output = folder.path("out");
        let to_file = run(&["demo", "--output", &output]);
        assert!(to_file.status.success() && text(&to_file.stdout).contains("identical   yes"));
        let to_stdout = run(&["demo", "--output", "-"]);
        assert!(to_stdout.stdout == fs::read(&output).expect("decisions were written"));
        assert!(text(&to_stdout.stderr).contains("identical   yes"));
        assert!(text(&to_stdout.stdout).lines().all(|line| line.starts_with("{\"id\":")));
    });
}

#[test]
fn the_json_summary_is_one_object() {
    watched("the_json_summary_is_one_object", || {
        let both = run(&["demo", "--json"]);
        assert!(both.status.success() && both.stdout.is_empty());
        let summary = json_summary(&both.stderr);
        assert_eq!(summary["lines"], 1200);
        assert_eq!(summary["identical"], true);
        assert_eq!(summary["accepted"], 682);
        let profiles = summary["profiles"].as_array().expect("a list");
        assert_eq!(profiles.len(), 2);
        for profile in profiles {
            assert_eq!(profile["counters"]["registered"], 1200);
            assert_eq!(profile["balances"], true);
            assert_eq!(profile["in_flight"], 0);
            assert_eq!(profile["handoff"]["count"], 1200);
        }
        assert_ne!(profiles[0]["worker_pids"][0], summary["engine_pid"]);
        let one = run(&["demo", "--json", "--profile", "memory", "--output", "-", "--input", "/dev/null"]);
        let summary = json_summary(&one.stderr);
        assert!(one.stdout.is_empty() && summary["identical"].is_null() && summary["lines"] == 0);
    });
}

// ---- how it ends ----

#[test]
fn gate_03_arguments() {
    watched("gate_03_arguments", || {
        refused(&run(&["demo", "--window", "0"]), 2, &["--window", "'0'", "1..=4096"]);
        refused(&run(&["demo", "--window", "4097"]), 2, &["--window", "'4097'", "1..=4096"]);
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
        let args = [&["demo", "--input", "-", "--output", "-"], more].concat();
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
        let stdout = self.child.stdout.as_mut().expect("captured");
        let (mut replies, mut byte) = (Vec::new(), [0]);
        while replies.iter().filter(|byte| **byte == b'\n').count() < count {
            stdout.read_exact(&mut byte).expect("a reply comes");
            replies.push(byte[0]);
        }
        replies
    }

    fn worker(&self) -> Pid {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let children = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
        let children: String = children.map(|children| children.unwrap_or_default()).collect();
        let pids: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
        let &[pid] = &pids[..] else { panic!("one worker, not {pids:?}") };
        Pid::from_raw(pid).expect("a pid")
    }

    fn end(self) -> (ExitStatus, Vec<u8>, String) {
        let output = self.child.wait_with_output().expect("it ends");
        (output.status, output.stdout, text(&output.stderr).to_owned())
    }
}

/// Waits until the process is gone, or dead and not yet reaped by who has taken it over.
fn gone(pid: Pid) {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    while let Ok(stat) = fs::read_to_string(&path) {
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this process, and so whatever it starts, ignores the signal.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("it can be read");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("it is told");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a mask");
    mask >> (signal.as_raw() - 1) & 1 != 0
}

fn first_lines(count: usize) -> Vec<u8> {
    SAMPLE.split_inclusive(|byte| *byte == b'\n').take(count).collect::<Vec<_>>().concat()
}

#[test]
fn handoff_e_02_a_killed_worker() {
    watched("handoff_e_02_a_killed_worker", || {
        for more in [&[][..], &["--profile", "process_supervisor"], &["--window", "1", "--json"]] {
            let mut fed = Fed::start(more);
            fed.feed(&first_lines(100));
            let replies = fed.replies(100);
            let worker = fed.worker();
            // Killed while nothing is in flight and the input stays open: said at once, not at the next line.
            kill_process(worker, Signal::KILL).expect("it is ours");
            let stdin = fed.stdin.take();
            let (status, rest, stderr) = fed.end();
            drop(stdin);
            assert_eq!((status.code(), stderr.as_str()), (Some(6), TRANSPORT));
            assert!(rest.is_empty() && text(&replies).lines().count() == 100);
            gone(worker);
        }
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
        let args = ["demo", "--input", "-", "--output", &output, "--window", "512"];
        let child = handbell(&args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the command starts");
        let mut stdin = child.stdin.take().expect("piped");
        let mut fed = Fed { child, stdin: None };
        let feeder = std::thread::spawn(move || {
            // Over and over, until nobody reads any more.
            while stdin.write_all(&lines).is_ok() && stdin.write_all(b"\n").is_ok() {}
        });
        while fs::metadata(&output).map_or(0, |file| file.len()) < 100_000 {
            assert!(fed.child.try_wait().expect("it is ours").is_none(), "it runs until it is told to end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let worker = fed.worker();
        kill_process(worker, Signal::KILL).expect("it is ours");
        let (status, _, stderr) = fed.end();
        assert_eq!((status.code(), stderr.as_str()), (Some(6), TRANSPORT));
        feeder.join().expect("the feeder ends");
        gone(worker);
        // What was decided before is there, whole and in order.
        let written = fs::read(&output).expect("decisions were written");
        assert!(written.ends_with(b"}\n"));
        let common = written.len().min(expected.len());
        assert!(written[..common] == expected[..common]);
    });
}

#[test]
fn handoff_e_01_a_worker_that_stands_still() {
    watched("handoff_e_01_a_worker_that_stands_still", || {
        let mut fed = Fed::start(&["--deadline-ms", "300"]);
        fed.feed(&first_lines(10));
        fed.replies(10);
        let worker = fed.worker();
        kill_process(worker, Signal::STOP).expect("it is ours");
        fed.feed(&first_lines(5));
        let stdin = fed.stdin.take();
        let (status, rest, stderr) = fed.end();
        drop(stdin);
        assert_eq!(stderr, "remote handoff timed out for group 'load-limits'\n");
        assert!(status.code() == Some(7) && rest.is_empty());
        gone(worker);
    });
}

#[test]
fn stop_ipc_04_a_killed_or_interrupted_demo_leaves_no_worker() {
    watched("stop_ipc_04_a_killed_or_interrupted_demo_leaves_no_worker", || {
        // A shell lets what it starts in the background ignore Ctrl-C, and so does what is started from there.
        let interrupt = (!is_ignored(Signal::INT)).then_some(Signal::INT);
        for signal in [Signal::TERM, Signal::KILL].into_iter().chain(interrupt) {
            let mut fed = Fed::start(&[]);
            fed.feed(&first_lines(3));
            fed.replies(3);
            let worker = fed.worker();
            kill_process(Pid::from_child(&fed.child), signal).expect("it is ours");
            let stdin = fed.stdin.take();
            let (status, ..) = fed.end();
            drop(stdin);
            assert!(!status.success());
            gone(worker);
        }
    });
}
