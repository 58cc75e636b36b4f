//! Sleeping on and waking 32-bit words.
//!
//! Owns the futex system calls and the word that is private to this process.
//! Never interprets a word's value and never spins: how long to try before
//! sleeping is for the caller to decide.
//!
//! Every wait may return early. Callers re-check their condition in a loop, so
//! an interrupted or refused wait is reported as a wake-up.
#![allow(unsafe_code)]

use std::num::NonZeroU32;
use std::sync::OnceLock;
#[cfg(feature = "testing")]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{Flags, wait_bitset, wake};

use super::clock;

/// The same number on every architecture; named here because not every C
/// library of the supported systems has it.
const SYS_FUTEX_WAITV: libc::c_long = 449;
const WAITV_32_BIT: u32 = 2;
const WAITV_PRIVATE: u32 = 128;
/// Words that one wait takes.
const MOST_WORDS: usize = 128;

/// As `FUTEX_WAIT` would: any waker matches.
const ANY_BIT: NonZeroU32 = NonZeroU32::MAX;
/// The kernel takes the number of sleepers to wake as a signed integer.
const ALL: u32 = i32::MAX as u32;
/// How long a wait that the kernel refuses lasts, so that the caller's loop
/// neither hangs nor burns a processor.
const REFUSED: Duration = Duration::from_millis(1);

/// Why a wait returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woke {
    /// Somebody woke the word, or the wait ended for no reason (a signal).
    Woken,
    /// The word did not hold the expected value: there was no sleep.
    Changed,
    /// The deadline passed.
    TimedOut,
}

/// Sleeps of this process that nobody ended.
#[cfg(feature = "testing")]
static SLEPT_OUT: AtomicU64 = AtomicU64::new(0);

/// How many sleeps that were noted have lasted until their limit.
#[cfg(feature = "testing")]
pub fn slept_out() -> u64 {
    SLEPT_OUT.load(Ordering::Relaxed)
}

/// Notes how a sleep has ended that somebody should have ended: a lost wake only costs time, and tests are to see it.
pub fn note_sleep(woke: Woke) {
    #[cfg(feature = "testing")]
    if woke == Woke::TimedOut {
        SLEPT_OUT.fetch_add(1, Ordering::Relaxed);
    }
    // Without tests nobody asks.
    let _ = woke;
}

/// A futex word that only threads of this process use, which spares the kernel
/// the look-up of the page behind it.
#[derive(Debug)]
pub struct Word(AtomicU32);

impl Default for Word {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Word {
    /// A word that holds `value`.
    pub const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    /// The current value, acquiring what was released by [`Word::bump`].
    pub fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Adds one, wrapping, releasing what the caller wrote before. Wakes
    /// nobody: follow with [`Word::wake_all`].
    pub fn bump(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Sleeps while the word holds `expected`, at most until `until_ns`
    /// (absolute monotonic nanoseconds; `None` for ever).
    pub fn wait(&self, expected: u32, until_ns: Option<u64>) -> Woke {
        wait(&self.0, Flags::PRIVATE, expected, until_ns)
    }

    /// Wakes every thread that sleeps on the word.
    pub fn wake_all(&self) {
        // Here and below: the address is valid, so the call cannot fail.
        let _ = wake(&self.0, Flags::PRIVATE, ALL);
    }
}

/// Sleeps while `word`, in memory shared between processes, holds `expected`,
/// at most until `until_ns` (absolute monotonic nanoseconds; `None` for ever).
///
/// A mapping that is readable only is enough.
pub fn wait_shared(word: &AtomicU32, expected: u32, until_ns: Option<u64>) -> Woke {
    wait(word, Flags::empty(), expected, until_ns)
}

/// Wakes every sleeper of every process on `word`. A mapping that is readable
/// only is enough, as the kernel does not touch the value.
pub fn wake_shared(word: &AtomicU32) {
    let _ = wake(word, Flags::empty(), ALL);
}

/// Whether [`wait_any`] can be used: the kernel has `futex_waitv` (5.16) and
/// no system call filter hides it. Probed once.
pub fn waitv_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        // A wait that must report a changed word: it shows that the call works,
        // where an intentionally invalid one would only show that it exists.
        let word = AtomicU32::new(1);
        waitv(&[Waiter::new(&word, 0, WAITV_PRIVATE)], Some(0)) == Err(Errno::AGAIN)
    })
}

/// [`wait_any`] of one shared word.
pub fn wait_either(
    shared: &AtomicU32,
    shared_expected: u32,
    private: &Word,
    private_expected: u32,
    until_ns: Option<u64>,
) -> Woke {
    wait_any([(shared, shared_expected)], private, private_expected, until_ns)
}

/// Sleeps while all words hold their expected values, at most until
/// `until_ns` (absolute monotonic nanoseconds; `None` for ever).
///
/// Only to be called if [`waitv_supported`]; if the kernel refuses
/// nevertheless, this returns [`Woke::Woken`] after at most a millisecond, so
/// that the caller degrades to polling.
pub fn wait_any<'a>(
    shared: impl IntoIterator<Item = (&'a AtomicU32, u32)>,
    private: &Word,
    private_expected: u32,
    until_ns: Option<u64>,
) -> Woke {
    let shared = shared.into_iter().map(|(word, expected)| Waiter::new(word, expected, 0));
    let own = Waiter::new(&private.0, private_expected, WAITV_PRIVATE);
    // The kernel takes 128 at most; a sleep costs more than the list.
    let waiters: Vec<Waiter> = shared.take(MOST_WORDS - 1).chain([own]).collect();
    woke(waitv(&waiters, until_ns), until_ns)
}

/// One element of the list that `futex_waitv` takes.
#[repr(C)]
struct Waiter {
    expected: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

impl Waiter {
    fn new(word: &AtomicU32, expected: u32, flags: u32) -> Self {
        Self {
            expected: expected.into(),
            address: word.as_ptr() as u64,
            flags: flags | WAITV_32_BIT,
            reserved: 0,
        }
    }
}

fn waitv(waiters: &[Waiter], until_ns: Option<u64>) -> Result<(), Errno> {
    let until = until_ns.map(clock::raw_timespec);
    let until = until.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let (list, count, clock) = (waiters.as_ptr(), waiters.len(), libc::CLOCK_MONOTONIC);
    // SAFETY: list and deadline are live for the call and laid out as the
    // kernel defines them; it only compares the words, which it checks itself.
    let result = unsafe { libc::syscall(SYS_FUTEX_WAITV, list, count, 0, until, clock) };
    if result >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS))
}

fn wait(word: &AtomicU32, flags: Flags, expected: u32, until_ns: Option<u64>) -> Woke {
    let until = until_ns.map(clock::timespec);
    let result = wait_bitset(word, flags, expected, until.as_ref(), ANY_BIT);
    woke(result, until_ns)
}

fn woke(result: Result<(), Errno>, until_ns: Option<u64>) -> Woke {
    match result {
        Ok(()) | Err(Errno::INTR) => Woke::Woken,
        Err(Errno::AGAIN) => Woke::Changed,
        Err(Errno::TIMEDOUT) => Woke::TimedOut,
        Err(_) => {
            let left = until_ns.unwrap_or(u64::MAX).saturating_sub(clock::monotonic_ns());
            std::thread::sleep(REFUSED.min(Duration::from_nanos(left)));
            Woke::Woken
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::Mapping;
    use super::super::memfd;
    use super::*;
    use std::os::fd::AsFd;
    use std::thread;

    const SOON: u64 = 20_000_000;
    const LATE: u64 = 20_000_000_000;

    fn within(ns: u64) -> Option<u64> {
        Some(clock::monotonic_ns() + ns)
    }

    /// The word at the start of a mapping.
    fn word_in(mapping: &Mapping) -> &AtomicU32 {
        // SAFETY: the mapping is page-aligned, long enough, borrowed for as
        // long as the word, and only accessed atomically; read-only ones are
        // only loaded from.
        unsafe { AtomicU32::from_ptr(mapping.base().as_ptr().cast()) }
    }

    #[test]
    fn an_unexpected_value_does_not_sleep() {
        let word = Word::new(7);
        assert_eq!(word.wait(6, None), Woke::Changed);
        assert_eq!(wait_shared(&AtomicU32::new(1), 2, None), Woke::Changed);
        word.bump();
        assert_eq!(word.load(), 8);
    }

    #[test]
    fn a_deadline_is_kept_and_a_past_one_does_not_hang() {
        let word = Word::new(0);
        let until = clock::monotonic_ns() + SOON;
        assert_eq!(word.wait(0, Some(until)), Woke::TimedOut);
        assert!(clock::monotonic_ns() >= until);
        assert_eq!(word.wait(0, Some(0)), Woke::TimedOut);
    }

    #[test]
    fn a_private_word_wakes_all_its_sleepers() {
        let word = Word::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while word.load() == 0 {
                        assert_ne!(word.wait(0, within(LATE)), Woke::TimedOut);
                    }
                });
            }
            thread::sleep(Duration::from_millis(5));
            word.bump();
            word.wake_all();
        });
    }

    #[test]
    fn a_read_only_mapping_can_sleep_and_wake() {
        let fd = memfd::create("futex", 4096).unwrap();
        let writer = Mapping::writable(fd.as_fd(), 4096).unwrap();
        let reader = Mapping::read_only(fd.as_fd(), 4096).unwrap();
        let (writer, reader) = (word_in(&writer), word_in(&reader));
        thread::scope(|scope| {
            scope.spawn(|| {
                while reader.load(Ordering::Acquire) == 0 {
                    assert_ne!(wait_shared(reader, 0, within(LATE)), Woke::TimedOut);
                }
            });
            thread::sleep(Duration::from_millis(5));
            writer.store(1, Ordering::Release);
            wake_shared(writer);
        });
        // The value stays as it is, so nothing but the wake-up ends the sleep.
        let sleep = || wait_shared(writer, 1, within(LATE));
        assert_eq!(ended(sleep, || wake_shared(reader)), Woke::Woken);
    }

    /// What `sleep` returns in another thread while `wake` is called here.
    fn ended(sleep: impl FnOnce() -> Woke + Send, wake: impl Fn()) -> Woke {
        thread::scope(|scope| {
            let sleeper = scope.spawn(sleep);
            while !sleeper.is_finished() {
                wake();
                thread::sleep(Duration::from_millis(1));
            }
            sleeper.join().unwrap()
        })
    }

    #[test]
    fn either_word_ends_the_wait() {
        if !waitv_supported() {
            return;
        }
        let fd = memfd::create("either", 4096).unwrap();
        let mapping = Mapping::read_only(fd.as_fd(), 4096).unwrap();
        let (shared, private) = (word_in(&mapping), Word::new(5));
        assert_eq!(wait_either(shared, 1, &private, 5, None), Woke::Changed);
        assert_eq!(wait_either(shared, 0, &private, 4, None), Woke::Changed);
        let until = clock::monotonic_ns() + SOON;
        let late = wait_either(shared, 0, &private, 5, Some(until));
        assert_eq!(late, Woke::TimedOut);
        assert!(clock::monotonic_ns() >= until);
        let sleep = || wait_either(shared, 0, &private, 5, within(LATE));
        assert_eq!(ended(sleep, || wake_shared(shared)), Woke::Woken);
        assert_eq!(ended(sleep, || private.wake_all()), Woke::Woken);
    }

    #[test]
    fn a_refused_wait_sleeps_a_little_and_counts_as_woken() {
        let before = clock::monotonic_ns();
        assert_eq!(woke(Err(Errno::NOSYS), None), Woke::Woken);
        assert!(clock::monotonic_ns() - before >= 1_000_000);
        assert_eq!(woke(Err(Errno::PERM), Some(0)), Woke::Woken);
        assert_eq!(woke(Err(Errno::INTR), None), Woke::Woken);
    }
}
