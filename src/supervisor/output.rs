//! What workers print: always drained, cut into bounded lines, handed on with the group's name.
//!
//! A worker can never be stopped by a full pipe, and what it prints never enters an error.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::contain::contain;
use crate::base::limits::{OUTPUT_LINE_BYTES, TAIL_LINES};
use crate::os::owner::Owner;
use crate::os::poll::{EventFd, Poller};
use crate::os::thread::Helper;

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
    /// Which of the group's processes it is, from 0 on.
    pub process: u16,
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
fn to_stderr(line: OutputLine<'_>) {
    use std::io::Write;
    let mut text = format!("[{}] ", line.group).into_bytes();
    text.extend_from_slice(line.text);
    text.push(b'\n');
    let _ = std::io::stderr().write_all(&text);
}

/// How often each pipe is still looked at after the workers are gone: far more than it takes to empty them. A
/// grandchild may hold one open, and write for ever.
const LAST_TURNS: u32 = 1024;
const STOP: u64 = u64::MAX;
/// How long the sink may take for them, where nothing else is stated.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Whose words a pipe carries, and who takes them.
#[derive(Clone)]
pub(super) struct Speaker {
    pub group: Arc<str>,
    pub process: u16,
    pub pid: i32,
    /// `None`: [`to_stderr`].
    pub sink: Option<OutputSink>,
    pub tail: Tail,
}

/// The last lines that a worker printed.
#[derive(Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<Box<[u8]>>>>);

impl Tail {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Box<[u8]>>> {
        // Nothing under this lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut lines = self.lock();
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.into());
    }

    /// The lines, the oldest first.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        self.lock().iter().map(|line| line.to_vec()).collect()
    }
}

struct Pipe {
    file: File,
    stream: Stream,
    speaker: Speaker,
    line: Vec<u8>,
    /// The rest of a line that was cut is dropped.
    cut: bool,
}

/// The thread that drains the pipes of an engine's workers.
pub(crate) struct Capture {
    shared: Arc<Shared>,
    thread: Option<Helper>,
}

/// What the thread and those who give it pipes share.
struct Shared {
    poller: Poller,
    stop: EventFd,
    added: Mutex<Added>,
}

#[derive(Default)]
struct Added {
    /// Pipes that the thread has not taken over yet, by the tokens under which they are watched.
    pipes: Vec<(u64, Pipe)>,
    next_token: u64,
}

impl Shared {
    fn added(&self) -> MutexGuard<'_, Added> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    /// Starts the thread, which calls the sinks; there is nothing to drain yet.
    pub fn start(owner: Owner) -> std::io::Result<Self> {
        let shared =
            Shared { poller: Poller::new()?, stop: EventFd::new()?, added: Mutex::new(Added::default()) };
        shared.poller.add(shared.stop.as_fd().as_fd(), STOP)?;
        let shared = Arc::new(shared);
        let run = {
            let shared = Arc::clone(&shared);
            move || {
                owner.adopt();
                drain(&shared);
            }
        };
        let thread = Helper::start("handbell-output", run)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Drains one more pipe from now on, until its end.
    pub(super) fn add(&self, speaker: &Speaker, stream: Stream, fd: OwnedFd) -> std::io::Result<()> {
        // The lock is held over both steps: a thread that is woken by a token which it does not know waits
        // here until the pipe is there.
        let mut added = self.shared.added();
        let token = added.next_token;
        self.shared.poller.add(fd.as_fd(), token)?;
        added.next_token += 1;
        let pipe = Pipe { file: fd.into(), stream, speaker: speaker.clone(), line: Vec::new(), cut: false };
        added.pipes.push((token, pipe));
        Ok(())
    }
}

impl Capture {
    /// Hands on what is there, and ends; a sink that takes longer than `limit` goes on by itself.
    pub fn end_within(mut self, limit: Duration) {
        self.end(limit);
    }

    fn end(&mut self, limit: Duration) {
        self.shared.stop.ring();
        if let Some(thread) = self.thread.take() {
            thread.join_within(limit);
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end(LAST_WORDS);
    }
}

fn drain(shared: &Shared) {
    let mut pipes: HashMap<u64, Pipe> = HashMap::new();
    let mut tokens = Vec::new();
    let mut turns_left = None;
    while turns_left != Some(0) && (turns_left.is_none() || !pipes.is_empty()) {
        if shared.poller.wait(&mut tokens, None).is_err() {
            return;
        }
        pipes.extend(shared.added().pipes.drain(..));
        turns_left = turns_left.map(|left| left - 1);
        for &token in &tokens {
            if token == STOP {
                turns_left.get_or_insert(LAST_TURNS);
                continue;
            }
            let Some(pipe) = pipes.get_mut(&token) else { continue };
            let mut buffer = [0; OUTPUT_LINE_BYTES];
            match pipe.file.read(&mut buffer) {
                Ok(bytes @ 1..) => pipe.take(&buffer[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => {
                    pipe.end();
                    shared.poller.remove(pipe.file.as_fd());
                    pipes.remove(&token);
                }
            }
        }
        // With the stop raised its token is always there: look at the pipes alone from now on.
        if turns_left.is_some() && tokens.iter().all(|token| *token == STOP) {
            break;
        }
    }
    pipes.values_mut().for_each(Pipe::end);
}

impl Pipe {
    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            let room = OUTPUT_LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if self.line.len() == OUTPUT_LINE_BYTES && !self.cut {
                self.cut = true;
                self.hand_on();
            }
            if ended {
                if !self.cut {
                    self.hand_on();
                }
                self.line.clear();
                self.cut = false;
            }
        }
    }

    fn end(&mut self) {
        if !self.line.is_empty() && !self.cut {
            self.hand_on();
        }
        self.line.clear();
    }

    fn hand_on(&self) {
        let Speaker { group, process, pid, sink, tail } = &self.speaker;
        tail.push(&self.line);
        let line = OutputLine { group, process: *process, pid: *pid, stream: self.stream, text: &self.line };
        // A sink that panics loses its line and nothing else.
        contain(|| match sink {
            Some(sink) => sink(line),
            None => to_stderr(line),
        });
    }
}
