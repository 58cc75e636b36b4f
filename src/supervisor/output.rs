//! What workers print: always drained, cut into bounded lines, handed on with the group's name.
//!
//! A worker can never be stopped by a full pipe, and what it prints never enters an error.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::base::limits::OUTPUT_LINE_BYTES;
use crate::os::clock;
use crate::os::poll::{EventFd, Poller};

/// Which stream a line came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that a worker printed.
#[derive(Clone, Copy, Debug)]
pub struct OutputLine<'a> {
    /// The worker's group.
    pub group: &'a str,
    /// The worker's process.
    pub pid: i32,
    /// Where it was printed.
    pub stream: Stream,
    /// The bytes, without the newline; longer lines are cut at 4096 bytes.
    pub text: &'a [u8],
}

/// Takes the lines; called by one thread. A panic in it is caught; blocking in it holds up all workers' output.
pub type OutputSink = Arc<dyn Fn(OutputLine<'_>) + Send + Sync>;

/// The default sink: standard error, behind the group's name.
pub(crate) fn to_stderr(line: OutputLine<'_>) {
    use std::io::Write;
    let mut text = format!("[{}] ", line.group).into_bytes();
    text.extend_from_slice(line.text);
    text.push(b'\n');
    let _ = std::io::stderr().write_all(&text);
}

/// How long output is still taken after the workers are gone; a grandchild may hold a pipe open for ever.
const LAST_WORDS_NS: u64 = 100_000_000;
const STOP: u64 = u64::MAX;

struct Pipe {
    file: File,
    group: Arc<str>,
    pid: i32,
    stream: Stream,
    line: Vec<u8>,
    /// The rest of a line that was cut is dropped.
    cut: bool,
}

/// The thread that drains the pipes of an engine's workers.
pub(crate) struct Capture {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts draining `pipes` of (group, pid, stream, descriptor).
    pub fn start(
        pipes: Vec<(Arc<str>, i32, Stream, OwnedFd)>,
        sink: Option<OutputSink>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(EventFd::new()?);
        let poller = Poller::new()?;
        poller.add(stop.as_fd().as_fd(), STOP)?;
        let mut open = Vec::new();
        for (group, pid, stream, fd) in pipes {
            poller.add(fd.as_fd(), open.len() as u64)?;
            open.push(Some(Pipe { file: fd.into(), group, pid, stream, line: Vec::new(), cut: false }));
        }
        let sink = sink.unwrap_or_else(|| Arc::new(to_stderr));
        let run = move || drain(&poller, &mut open, &sink);
        let thread = std::thread::Builder::new().name("handbell-output".into()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.ring();
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of the sink; there is nothing else to learn from it.
            let _ = thread.join();
        }
    }
}

fn drain(poller: &Poller, pipes: &mut [Option<Pipe>], sink: &OutputSink) {
    let mut tokens = Vec::new();
    let mut until_ns = None;
    while pipes.iter().any(Option::is_some) {
        if poller.wait(&mut tokens, until_ns).is_err() {
            return;
        }
        if until_ns.is_some_and(|until_ns| clock::monotonic_ns() >= until_ns) {
            break;
        }
        for &token in &tokens {
            if token == STOP {
                if until_ns.is_none() {
                    until_ns = Some(clock::monotonic_ns() + LAST_WORDS_NS);
                }
                continue;
            }
            let Some(place) = pipes.get_mut(token as usize) else { continue };
            let Some(pipe) = place else { continue };
            let mut buffer = [0; OUTPUT_LINE_BYTES];
            match pipe.file.read(&mut buffer) {
                Ok(bytes @ 1..) => pipe.take(&buffer[..bytes], sink),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => {
                    pipe.end(sink);
                    poller.remove(pipe.file.as_fd());
                    *place = None;
                }
            }
        }
        // With the stop raised its token is always there: look at the pipes alone from now on.
        if until_ns.is_some() && tokens.iter().all(|token| *token == STOP) {
            break;
        }
    }
    pipes.iter_mut().flatten().for_each(|pipe| pipe.end(sink));
}

impl Pipe {
    fn take(&mut self, bytes: &[u8], sink: &OutputSink) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            let room = OUTPUT_LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if self.line.len() == OUTPUT_LINE_BYTES && !self.cut {
                self.cut = true;
                self.hand_on(sink);
            }
            if ended {
                if !self.cut {
                    self.hand_on(sink);
                }
                self.line.clear();
                self.cut = false;
            }
        }
    }

    fn end(&mut self, sink: &OutputSink) {
        if !self.line.is_empty() && !self.cut {
            self.hand_on(sink);
        }
        self.line.clear();
    }

    fn hand_on(&self, sink: &OutputSink) {
        let line = OutputLine { group: &self.group, pid: self.pid, stream: self.stream, text: &self.line };
        // A sink that panics loses its line and nothing else.
        let _ = catch_unwind(AssertUnwindSafe(|| sink(line)));
    }
}
