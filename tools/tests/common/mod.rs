//! What the tests of the `handbell` command share: running it, a folder, and a word about a hang.
#![allow(dead_code)] // each program uses a part of it

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

pub const HANDBELL: &str = env!("CARGO_BIN_EXE_handbell");
pub const SAMPLE: &[u8] = include_bytes!("../../samples/load_limits.ndjson");
/// In the plan's order, which is that of their workers' birth.
pub const GROUPS: [&str; 3] = ["ingress", "policy", "egress"];

/// A deadline that only a hang reaches.
pub const FAR: [&str; 2] = ["--deadline-ms", "3600000"];

thread_local! {
    /// Tells the watchdog of this thread's test that it has come a step further.
    static STEP: RefCell<Option<Sender<()>>> = const { RefCell::new(None) };
}

/// Runs a test, and ends the whole program with a word about it if a step of it hangs.
pub fn watched(name: &'static str, test: impl FnOnce()) {
    let (step, steps) = channel::<()>();
    std::thread::spawn(move || {
        loop {
            match steps.recv_timeout(Duration::from_secs(300)) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => hangs(name),
            }
        }
    });
    STEP.set(Some(step));
    test();
    STEP.take();
}

fn hangs(name: &str) -> ! {
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

/// A folder of one test's own, gone with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the folder can be made");
        Self(path)
    }

    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("the file can be written");
        path
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("the path is text").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn handbell(args: &[&str]) -> Command {
    STEP.with_borrow(|step| {
        if let Some(step) = step {
            // The watchdog listens until the test has ended.
            let _ = step.send(());
        }
    });
    let mut command = Command::new(HANDBELL);
    command.args(args).stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Output {
    handbell(args).output().expect("the command starts")
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// The decisions on `input`, on standard output.
#[track_caller]
pub fn decisions(input: &str, more: &[&str]) -> Vec<u8> {
    let output = run(&[&["demo", "--input", input, "--output", "-"], &FAR[..], more].concat());
    assert!(output.status.success(), "{:?} {}", output.status, text(&output.stderr));
    output.stdout
}
