//! One running worker: its process, its doorbell, its bootstrap socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::output::Tail;
use crate::doorbell::{Connection, Ended, EngineSession, Rejects, Report, Session};
use crate::os::child::{self, Exit};
use crate::os::poll::readable_within;
use crate::os::{clock, socket};

/// The end of a worker whose exit status somebody else has taken.
const TAKEN: Exit = Exit::Code(-1);
/// SIGTERM and SIGCONT; the numbers are the same on every processor that this crate supports.
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;

/// What a worker had to say.
#[derive(Default)]
pub(crate) struct Heard {
    /// In the order said.
    pub reports: Vec<Report>,
    /// Why its doorbell is over, told once.
    pub ended: Option<Ended>,
}

/// The engine's end of the doorbell, as several threads use it.
#[derive(Default)]
struct Line {
    /// `None` before the birth, and once it is over.
    connection: Option<Connection<EngineSession>>,
    /// Heard, and not yet told to the engine's thread.
    heard: Heard,
    /// What the listener refused, and connections that are over.
    rejects: Rejects,
}

impl Line {
    fn turn(&mut self, now_ns: u64) {
        let Some(connection) = &mut self.connection else { return };
        let reports = &mut self.heard.reports;
        if let Err(ended) = connection.turn(now_ns, |report| reports.push(report)) {
            self.rejects.add(connection.session().rejects());
            self.heard.ended = Some(ended);
            self.connection = None;
        }
    }
}

/// A worker between READY and its reaping.
pub(crate) struct Worker {
    pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    line: Mutex<Line>,
    tail: Tail,
    /// How it ended, once its numbers may be somebody else's. Held while they are used.
    reaped: Mutex<Option<Exit>>,
}

impl Worker {
    pub(super) fn new(pid: i32, pidfd: OwnedFd, socket: OwnedFd) -> Self {
        Self { pid, pidfd, socket, line: Mutex::default(), tail: Tail::default(), reaped: Mutex::default() }
    }

    /// The handshake is done, and GO may be due.
    pub(super) fn take_over(&self, connection: Connection<EngineSession>, rejects: Rejects, now_ns: u64) {
        let mut line = self.line();
        line.rejects = rejects;
        line.connection = Some(connection);
        line.turn(now_ns);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing under this lock panics half-way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reaped(&self) -> MutexGuard<'_, Option<Exit>> {
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a signal or a debugger has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.reaped().is_none() && child::is_stopped(self.pid)
    }

    /// Whether its process has begun to end, though how it ends cannot be told yet.
    pub fn is_ending(&self) -> bool {
        self.reaped().is_none() && child::is_ending(self.pid)
    }

    /// The last lines that it printed.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Its process number, which is also that of its process group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The bootstrap socket: readable when the worker is gone.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the bootstrap socket has ended; call it when that is readable.
    pub fn has_hung_up(&self) -> bool {
        let mut buffer = [0; 64];
        !matches!(socket::receive(self.socket(), &mut buffer, 0), Ok(socket::Received::Message { .. }))
    }

    /// Calls `with` with the doorbell's descriptor, which is readable when there is something to hear.
    pub fn with_doorbell<T>(&self, with: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        self.line().connection.as_ref().map(|connection| with(connection.as_fd()))
    }

    /// Hears what has come on the doorbell, says what is due there. Call it when its descriptor is readable and at
    /// [`Worker::next_ns`]. Never blocks.
    pub fn hear(&self) -> Heard {
        let mut line = self.line();
        line.turn(clock::monotonic_ns());
        std::mem::take(&mut line.heard)
    }

    /// When something is to be said on the doorbell.
    pub fn next_ns(&self) -> Option<u64> {
        self.line().connection.as_ref().and_then(Connection::next_ns)
    }

    /// When the worker was last heard on the doorbell; 0 if its doorbell is over.
    pub fn heard_ns(&self) -> u64 {
        let mut line = self.line();
        line.connection.as_mut().and_then(|connection| connection.session().heard_ns()).unwrap_or(0)
    }

    /// Messages that have come on its doorbell, HELLO included.
    #[cfg(feature = "testing")]
    pub fn messages_heard(&self) -> u64 {
        self.line().connection.as_mut().map_or(0, |connection| connection.session().messages_heard())
    }

    /// What its doorbell has refused so far.
    pub fn rejects(&self) -> Rejects {
        let mut line = self.line();
        let mut rejects = line.rejects;
        if let Some(connection) = &mut line.connection {
            rejects.add(connection.session().rejects());
        }
        rejects
    }

    /// Asks it to end what is in flight.
    pub fn tell_to_drain(&self) {
        self.tell(EngineSession::drain);
    }

    /// Asks it to end serving.
    pub fn tell_to_stop(&self) {
        self.tell(EngineSession::stop);
    }

    fn tell(&self, errand: fn(&mut EngineSession, u64)) {
        let mut line = self.line();
        let now_ns = clock::monotonic_ns();
        // If it cannot be told, it is gone or the next step of the ladder follows.
        if let Some(connection) = &mut line.connection
            && connection.session().is_open()
        {
            errand(connection.session(), now_ns);
        }
        line.turn(now_ns);
    }

    /// SIGTERM to its group; a stopped one is continued so that it can obey.
    pub fn terminate(&self) {
        let reaped = self.reaped();
        if reaped.is_none() {
            child::signal_group(self.pid, SIGTERM);
            child::signal_group(self.pid, SIGCONT);
        }
    }

    /// SIGKILL to its group. An unreaped leader keeps the group's number its own.
    pub fn kill(&self) {
        let reaped = self.reaped();
        if reaped.is_none() {
            child::kill_group(self.pid);
        }
    }

    /// How it ended, if it has; it is not reaped by this, so that its group can still be killed.
    ///
    /// Where somebody else of this program has taken its end (a thread that waits for any child, or an ignored
    /// SIGCHLD), nobody knows how: it counts as [`TAKEN`].
    pub fn exit(&self) -> Option<Exit> {
        let mut reaped = self.reaped();
        if reaped.is_some() {
            return *reaped;
        }
        match child::exit_of(self.pidfd()) {
            Ok(exit) => exit,
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                // Its number may be somebody else's by now.
                *reaped = Some(TAKEN);
                *reaped
            }
            Err(_) => None,
        }
    }

    /// Kills it and its group, waits for its end and reaps it.
    pub fn end(&self) {
        self.kill();
        let _ = readable_within(self.pidfd(), None);
        self.reap();
    }

    /// Reaps it. Its numbers may belong to somebody else after this.
    pub fn reap(&self) {
        let mut reaped = self.reaped();
        if reaped.is_none() {
            *reaped = child::reap(self.pidfd()).ok().flatten();
        }
    }
}
