//! One running worker: its process and its bootstrap socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::os::child::{self, Exit};
use crate::os::socket::{self, Received};
use crate::wire::bootstrap::Message;

/// SIGTERM and SIGCONT; the numbers are the same on every processor that this crate supports.
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;

/// What the bootstrap socket had to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// Nothing that matters.
    Nothing,
    /// It has ended: the worker is dying, or closed it.
    End,
}

/// A worker between READY and its reaping.
pub(crate) struct Worker {
    pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    /// Whether its numbers may be somebody else's by now. Held while they are used.
    reaped: Mutex<bool>,
}

impl Worker {
    pub(super) fn new(pid: i32, pidfd: OwnedFd, socket: OwnedFd) -> Self {
        Self { pid, pidfd, socket, reaped: Mutex::new(false) }
    }

    fn reaped(&self) -> MutexGuard<'_, bool> {
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process number, which is also that of its process group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when the worker says something, or is gone.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes one message off the socket; call it when that is readable.
    pub fn hear(&self) -> Heard {
        let mut buffer = [0; 64];
        match socket::receive(self.socket(), &mut buffer, 0) {
            Ok(Received::Message { .. }) => Heard::Nothing,
            Ok(Received::End) | Err(_) => Heard::End,
        }
    }

    /// Asks it to end serving.
    pub fn tell_to_stop(&self) {
        // If it cannot be told, it is gone or the next step of the ladder follows.
        let _ = socket::send(self.socket(), &Message::Stop.encode(), &[]);
    }

    /// SIGTERM to its group; a stopped one is continued so that it can obey.
    pub fn terminate(&self) {
        let reaped = self.reaped();
        if !*reaped {
            child::signal_group(self.pid, SIGTERM);
            child::signal_group(self.pid, SIGCONT);
        }
    }

    /// SIGKILL to its group. An unreaped leader keeps the group's number its own.
    pub fn kill(&self) {
        let reaped = self.reaped();
        if !*reaped {
            child::kill_group(self.pid);
        }
    }

    /// How it ended, if it has; it stays unreaped, so that its group can still be killed.
    pub fn exit(&self) -> Option<Exit> {
        child::exit_of(self.pidfd()).ok().flatten()
    }

    /// Reaps it. Its numbers may belong to somebody else after this.
    pub fn reap(&self) {
        let mut reaped = self.reaped();
        *reaped |= child::reap(self.pidfd()).is_ok_and(|exit| exit.is_some());
    }
}
