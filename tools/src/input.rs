//! The input as a stream of lines, read by a thread of its own.
//!
//! Owns: the cutting into lines, and the bound on what is held of them. Who decides lines learns through one
//! channel what comes next: lines, the end, or that a worker has died while there was nothing to do.
//!
//! A line longer than [`LINE_BYTES_MAX`] is never held: it is known as one line that is too long, and skipped
//! up to its newline.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::exit::{Exit, Problem};

/// The longest line that is handed to an engine, without its newline.
pub const LINE_BYTES_MAX: usize = 1 << 20;

const READ_BYTES: usize = 64 << 10;
/// Batches that may wait: what is read ahead is bounded.
const BATCHES: usize = 4;
/// How often the watch asks whether a dead worker has been reaped.
const REAP_LOOK: Duration = Duration::from_millis(1);

const SAMPLE: &[u8] = include_bytes!("../samples/load_limits.ndjson");

/// An open input.
pub struct Source {
    /// As it was given.
    pub name: String,
    reader: Box<dyn Read + Send>,
    /// What is known of the file, if it is one.
    pub metadata: Option<Metadata>,
}

impl Source {
    /// Opens the input called `name`: `-` for standard input, none for the bundled sample.
    pub fn open(name: Option<&str>) -> Result<Self, Problem> {
        let Some(name) = name else {
            let name = "bundled sample".to_owned();
            return Ok(Self { name, reader: Box::new(SAMPLE), metadata: None });
        };
        let open = || -> io::Result<File> {
            match name {
                "-" => Ok(io::stdin().as_fd().try_clone_to_owned()?.into()),
                path => File::open(path),
            }
        };
        let file = open().map_err(|error| read_problem(name, &error))?;
        let metadata = file.metadata().ok();
        Ok(Self { name: name.to_owned(), reader: Box::new(file), metadata })
    }

    /// What a failed read means.
    pub fn problem(name: &str, error: &io::Error) -> Problem {
        read_problem(name, error)
    }
}

fn read_problem(name: &str, error: &io::Error) -> Problem {
    Problem::field(Exit::Input, "input", name, format!("must be a file that can be read ({error})"))
}

/// What happens next.
pub enum Event {
    /// Lines came.
    Lines(Batch),
    /// There are no more.
    End,
    /// The input cannot be read further.
    Unreadable(io::Error),
    /// A worker has died, and its engine knows.
    WorkerEnded,
    /// The engines are being stopped.
    Stopped,
}

/// Some lines in a row.
#[derive(Default, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// None for a line that is too long.
    lines: Vec<Option<Range<usize>>>,
    /// Bytes of the input that it was cut from, newlines included.
    pub input_bytes: u64,
}

impl Batch {
    /// How many lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Where the line of this number is, without its newline; none if it is too long.
    ///
    /// # Panics
    ///
    /// If there is no such line.
    pub fn range(&self, line: usize) -> Option<Range<usize>> {
        self.lines[line].clone()
    }

    /// What is there.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// The lines without their newlines; none for one that is too long.
    pub fn lines(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.lines.iter().map(|line| line.clone().map(|range| &self.bytes[range]))
    }
}

/// Cuts what is read into lines.
#[derive(Default)]
struct Cutter {
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    /// Whether that line is too long already.
    too_long: bool,
}

impl Cutter {
    fn cut(&mut self, mut bytes: &[u8]) -> Batch {
        let mut batch = Batch { input_bytes: bytes.len() as u64, ..Batch::default() };
        while let Some(newline) = bytes.iter().position(|&byte| byte == b'\n') {
            self.begin(&bytes[..newline]);
            self.end_line(&mut batch);
            bytes = &bytes[newline + 1..];
        }
        self.begin(bytes);
        batch
    }

    /// A last line without a newline is a line.
    fn finish(&mut self) -> Batch {
        let mut batch = Batch::default();
        if self.too_long || !self.begun.is_empty() {
            self.end_line(&mut batch);
        }
        batch
    }

    fn begin(&mut self, part: &[u8]) {
        // One more for a carriage return, which is no part of the line.
        let ends_with_cr = part.last().or(self.begun.last()) == Some(&b'\r');
        if self.begun.len() + part.len() > LINE_BYTES_MAX + usize::from(ends_with_cr) {
            self.too_long = true;
        }
        if self.too_long {
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(part);
        }
    }

    fn end_line(&mut self, batch: &mut Batch) {
        let start = batch.bytes.len();
        batch.bytes.append(&mut self.begun);
        batch.lines.push((!std::mem::take(&mut self.too_long)).then_some(start..batch.bytes.len()));
    }
}

/// Starts reading `source` and watching the workers; others may tell of events too.
pub fn follow(source: Source, workers: &[i32]) -> io::Result<(SyncSender<Event>, Receiver<Event>)> {
    let (sender, events) = sync_channel(BATCHES);
    let others = sender.clone();
    if !workers.is_empty() {
        let (workers, sender) = (workers.to_vec(), sender.clone());
        let watch = move || watch(&workers, &sender);
        std::thread::Builder::new().name("demo-watch".into()).spawn(watch)?;
    }
    let mut reader = source.reader;
    let read = move || {
        let last = match read_all(&mut reader, &sender) {
            Ok(()) => Event::End,
            Err(error) => Event::Unreadable(error),
        };
        // Nobody listens any more when the run has failed.
        let _ = sender.send(last);
    };
    std::thread::Builder::new().name("demo-input".into()).spawn(read)?;
    Ok((others, events))
}

fn read_all(reader: &mut dyn Read, sender: &SyncSender<Event>) -> io::Result<()> {
    let mut cutter = Cutter::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let batch = match reader.read(&mut buffer) {
            Ok(0) => {
                let _ = sender.send(Event::Lines(cutter.finish()));
                return Ok(());
            }
            Ok(bytes) => cutter.cut(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if sender.send(Event::Lines(batch)).is_err() {
            return Ok(());
        }
    }
}

/// Tells of each worker that ends; without it, a death would show only with the next line.
fn watch(workers: &[i32], sender: &SyncSender<Event>) {
    let mut open = Vec::new();
    for pid in workers.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(worker) => open.push(worker),
            Err(rustix::io::Errno::SRCH) => drop(sender.send(Event::WorkerEnded)),
            // Its death shows with the next line.
            Err(_) => {}
        }
    }
    while !open.is_empty() {
        let mut fds: Vec<PollFd<'_>> = open.iter().map(|worker| PollFd::new(worker, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let Some(ended) = fds.iter().position(|fd| !fd.revents().is_empty()) else { continue };
        let ended = open.swap_remove(ended);
        wait_until_reaped(&ended);
        if sender.send(Event::WorkerEnded).is_err() {
            return;
        }
    }
}

/// An engine reaps a worker once it sends nothing more to it.
fn wait_until_reaped(worker: &OwnedFd) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::PidFd(worker.as_fd()), options).is_ok() {
        std::thread::sleep(REAP_LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(parts: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let mut cutter = Cutter::default();
        let mut batches: Vec<Batch> = parts.iter().map(|part| cutter.cut(part)).collect();
        batches.push(cutter.finish());
        batches.iter().flat_map(Batch::lines).map(|line| line.map(<[u8]>::to_vec)).collect()
    }

    fn texts(parts: &[&[u8]]) -> Vec<String> {
        let text = |line: Option<Vec<u8>>| String::from_utf8(line.expect("short")).expect("text");
        cut(parts).into_iter().map(text).collect()
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        assert_eq!(texts(&[b"a\n\nb\r\nc"]), ["a", "", "b\r", "c"]);
        assert_eq!(texts(&[b"a", b"\n", b"\nb\r", b"\nc"]), ["a", "", "b\r", "c"]);
        assert_eq!(texts(&[b"a\n"]), ["a"]);
        assert_eq!(texts(&[b"\n"]), [""]);
        assert!(texts(&[b""]).is_empty());
    }

    #[test]
    fn a_line_is_too_long_beyond_the_limit_only() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        let lines = cut(&[&longest, b"\n", &longest, b"y", b"\nz\n", &longest, b"y"]);
        assert_eq!(lines, [Some(longest), None, Some(b"z".to_vec()), None]);
    }
}
