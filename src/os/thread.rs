//! Threads whose end is awaited for a time only: one that is in code of the user's may never come back.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A thread of the engine's. Dropping it leaves the thread alone.
pub struct Helper {
    thread: JoinHandle<()>,
    /// Nothing is ever said here: it ends with the thread, also by a panic.
    end: Receiver<()>,
}

impl Helper {
    /// Starts it.
    ///
    /// # Errors
    /// What the system reports.
    pub fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (lives, end) = channel();
        let run = move || {
            let _lives = lives;
            run();
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { thread, end })
    }

    /// Waits for its end, at most so long; whether it came. A thread that does not end goes on by itself.
    pub fn join_within(self, limit: Duration) -> bool {
        let is_over = self.end.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected);
        if is_over {
            // One that panicked has said so on standard error; there is nothing left to undo.
            let _ = self.thread.join();
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(3600);

    #[test]
    fn an_end_is_awaited_and_no_longer_than_stated() {
        assert!(Helper::start("ends", || ()).unwrap().join_within(LATE));
        let panics = || std::panic::resume_unwind(Box::new("wanted"));
        assert!(Helper::start("panics", panics).unwrap().join_within(LATE));
        let (go_on, waits) = channel::<()>();
        let stuck = Helper::start("stuck", move || waits.recv().unwrap_or_default()).unwrap();
        assert!(!stuck.join_within(Duration::from_millis(1)));
        drop(go_on);
    }
}
