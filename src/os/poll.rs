//! Waiting for descriptors to become readable.
//!
//! Owns an epoll and the eventfds that interrupt it. Never reads what became
//! readable and never owns a watched descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::clock;

/// How many descriptors one wait reports; the kernel hands out the rest at the
/// following waits, in turn.
const BATCH: usize = 64;
type Events = [libc::epoll_event; BATCH];
const NO_EVENTS: Events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
/// The same number on every architecture.
const SYS_EPOLL_PWAIT2: libc::c_long = 441;

/// Whether the kernel refused the nanosecond wait (it came with 5.11).
static MILLISECONDS_ONLY: AtomicBool = AtomicBool::new(false);

/// One epoll: a set of descriptors, each with a number chosen by the caller.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Creates an empty set.
    ///
    /// # Errors
    /// Whatever `epoll_create1` reports (no descriptor left).
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches `fd` for reading; `token` is reported for as long as it is
    /// readable or its other end is gone.
    ///
    /// Watching ends with [`Poller::remove`], or when the last copy of the
    /// descriptor is closed: a copy held by another process keeps it watched.
    ///
    /// # Errors
    /// `AlreadyExists` if `fd` is watched already; `PermissionDenied` if it is
    /// of a kind that cannot be watched; else what `epoll_ctl` reports.
    pub fn add(&self, fd: BorrowedFd, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Stops watching `fd`; nothing happens if it is not watched.
    pub fn remove(&self, fd: BorrowedFd) {
        // The only failures say that it is not in the set, which is the goal.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Clears `tokens`, waits until some descriptor is readable or `until_ns`
    /// (absolute monotonic nanoseconds; `None` for ever) has passed, and fills
    /// in the tokens of those that are.
    ///
    /// `tokens` is empty after the deadline, and may be empty before it (a
    /// signal).
    ///
    /// # Errors
    /// Whatever `epoll_wait` reports besides an interruption.
    pub fn wait(&self, tokens: &mut Vec<u64>, until_ns: Option<u64>) -> io::Result<()> {
        tokens.clear();
        let mut events = NO_EVENTS;
        let left_ns = until_ns.map(|until| until.saturating_sub(clock::monotonic_ns()));
        match self.wait_for(&mut events, left_ns) {
            Ok(count) => tokens.extend(events[..count].iter().map(|event| event.u64)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn wait_for(&self, events: &mut Events, left_ns: Option<u64>) -> io::Result<usize> {
        if !MILLISECONDS_ONLY.load(Ordering::Relaxed) {
            match self.wait_nanoseconds(events, left_ns) {
                // Absent, or hidden by a system call filter.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    MILLISECONDS_ONLY.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.wait_milliseconds(events, left_ns)
    }

    fn wait_nanoseconds(&self, events: &mut Events, left_ns: Option<u64>) -> io::Result<usize> {
        let left = left_ns.map(clock::raw_timespec);
        // SAFETY: the kernel writes at most BATCH events, reads the timeout if
        // it is not null, and is given no signal mask.
        let count = unsafe {
            libc::syscall(
                SYS_EPOLL_PWAIT2,
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                BATCH as libc::c_int,
                left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn wait_milliseconds(&self, events: &mut Events, left_ns: Option<u64>) -> io::Result<usize> {
        let left_ms = left_ns.map_or(-1, |ns| {
            // A wait of more than 24 days ends early, with nothing to report.
            i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let (epoll, most) = (self.epoll.as_raw_fd(), BATCH as libc::c_int);
        // SAFETY: the kernel writes at most BATCH events.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), most, left_ms) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

/// Readable while one of the watched descriptors is: a set can stand in another.
impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A descriptor that becomes readable when it is rung: it ends a wait of
/// another thread or process.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// Creates one that has not been rung, close-on-exec.
    ///
    /// # Errors
    /// Whatever `eventfd` reports (no descriptor left).
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Takes over a descriptor that another process created with
    /// [`EventFd::new`]. It is made non-blocking, in case it is not: neither
    /// side may be able to stall the other.
    pub fn from_fd(fd: OwnedFd) -> Self {
        if let Ok(flags) = fcntl_getfl(&fd) {
            let _ = fcntl_setfl(&fd, flags | OFlags::NONBLOCK);
        }
        Self { fd }
    }

    /// Makes the descriptor readable; never blocks. A full counter is readable
    /// already, so a failure is of no consequence.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable until it is rung again; never blocks.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until `fd` is readable, for at most `timeout_ms` milliseconds (`None`
/// for ever), and says whether it is. A closed other end counts as readable,
/// as a read would not block.
///
/// # Errors
/// Whatever `poll` reports besides an interruption (which is retried).
pub fn readable_within(fd: BorrowedFd, timeout_ms: Option<u32>) -> io::Result<bool> {
    let until = timeout_ms.map(|ms| clock::monotonic_ns() + u64::from(ms) * 1_000_000);
    loop {
        let left = until.map(|until| until.saturating_sub(clock::monotonic_ns())).map(clock::timespec);
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;
    use std::collections::BTreeSet;

    const LATE: u64 = 20_000_000_000;

    fn within(ns: u64) -> Option<u64> {
        Some(clock::monotonic_ns() + ns)
    }

    #[test]
    fn a_rung_event_is_reported_until_it_is_cleared() {
        let poller = Poller::new().unwrap();
        let event = EventFd::new().unwrap();
        poller.add(event.as_fd(), u64::MAX).unwrap();
        assert!(poller.add(event.as_fd(), 2).is_err());
        let mut tokens = vec![9];
        poller.wait(&mut tokens, Some(0)).unwrap();
        assert!(tokens.is_empty());
        event.ring();
        event.ring();
        for _ in 0..2 {
            poller.wait(&mut tokens, within(LATE)).unwrap();
            assert_eq!(tokens, [u64::MAX]);
        }
        event.clear();
        event.clear();
        poller.wait(&mut tokens, Some(0)).unwrap();
        assert!(tokens.is_empty());
        event.ring();
        poller.remove(event.as_fd());
        poller.remove(event.as_fd());
        poller.wait(&mut tokens, Some(0)).unwrap();
        assert!(tokens.is_empty());
    }

    #[test]
    fn a_set_in_a_set_is_readable_while_something_in_it_is() {
        let (inner, outer) = (Poller::new().unwrap(), Poller::new().unwrap());
        outer.add(inner.as_fd(), 5).unwrap();
        let event = EventFd::new().unwrap();
        inner.add(event.as_fd(), 1).unwrap();
        let mut tokens = Vec::new();
        outer.wait(&mut tokens, Some(0)).unwrap();
        assert!(tokens.is_empty());
        event.ring();
        outer.wait(&mut tokens, within(LATE)).unwrap();
        assert_eq!(tokens, [5]);
        event.clear();
        outer.wait(&mut tokens, Some(0)).unwrap();
        assert!(tokens.is_empty());
    }

    #[test]
    fn a_full_or_blocking_event_does_not_block() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let event = EventFd::from_fd(fd);
        event.clear();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.ring();
        assert!(readable_within(event.as_fd(), Some(0)).unwrap());
        event.clear();
        assert!(!readable_within(event.as_fd(), Some(0)).unwrap());
    }

    #[test]
    fn both_kinds_of_wait_keep_the_deadline() {
        let poller = Poller::new().unwrap();
        let before = clock::monotonic_ns();
        let count = poller.wait_milliseconds(&mut { NO_EVENTS }, Some(4_000_001));
        assert_eq!(count.unwrap(), 0);
        assert!(clock::monotonic_ns() - before >= 4_000_001);
        let until = clock::monotonic_ns() + 10_000_000;
        poller.wait(&mut Vec::new(), Some(until)).unwrap();
        assert!(clock::monotonic_ns() >= until);
    }

    #[test]
    fn more_than_one_batch_is_reported_in_turn() {
        let poller = Poller::new().unwrap();
        let events: Vec<EventFd> = (0..100).map(|_| EventFd::new().unwrap()).collect();
        for (token, event) in events.iter().enumerate() {
            poller.add(event.as_fd(), token as u64).unwrap();
            event.ring();
        }
        let (mut seen, mut tokens) = (BTreeSet::new(), Vec::new());
        for _ in 0..2 {
            poller.wait(&mut tokens, within(LATE)).unwrap();
            assert_eq!(tokens.len(), BATCH);
            seen.extend(tokens.iter().copied());
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn another_thread_ends_the_wait() {
        let poller = Poller::new().unwrap();
        let event = EventFd::new().unwrap();
        poller.add(event.as_fd(), 3).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                event.ring();
            });
            let mut tokens = Vec::new();
            while tokens.is_empty() {
                poller.wait(&mut tokens, None).unwrap();
            }
            assert_eq!(tokens, [3]);
        });
    }

    #[test]
    fn a_closed_writer_counts_as_readable() {
        let (reader, writer) = pipe().unwrap();
        let before = clock::monotonic_ns();
        assert!(!readable_within(reader.as_fd(), Some(10)).unwrap());
        assert!(clock::monotonic_ns() - before >= 10_000_000);
        drop(writer);
        assert!(readable_within(reader.as_fd(), None).unwrap());
    }
}
