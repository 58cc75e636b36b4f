//! The monotonic clocks as plain nanoseconds.
//!
//! Owns the conversion between nanoseconds and the kernel's time structure.
//! Never reads the wall clock: every deadline in the project is monotonic, so
//! that setting the date can neither fire nor delay one.

use std::sync::OnceLock;

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

const NS_PER_S: u64 = 1_000_000_000;

/// Now on `CLOCK_MONOTONIC`, in nanoseconds since an arbitrary start.
///
/// The value is comparable between processes of one machine, and is what every
/// `until_ns` of this layer means.
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Now on `CLOCK_MONOTONIC_COARSE`, in nanoseconds: the same time line as
/// [`monotonic_ns`], cheaper to read, behind by up to [`coarse_step_ns`], and by more while a tick is late.
pub fn coarse_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::MonotonicCoarse))
}

/// The resolution of [`coarse_ns`] in nanoseconds (one scheduler tick), read
/// from the kernel once.
pub fn coarse_step_ns() -> u64 {
    static STEP: OnceLock<u64> = OnceLock::new();
    *STEP.get_or_init(|| nanoseconds(clock_getres(ClockId::MonotonicCoarse)))
}

/// A duration or monotonic instant of `ns` nanoseconds, as the kernel takes it.
pub(super) fn timespec(ns: u64) -> Timespec {
    Timespec {
        // At most 2^64 / 10^9, far below the range of a signed 64-bit second.
        tv_sec: (ns / NS_PER_S) as i64,
        tv_nsec: (ns % NS_PER_S) as _,
    }
}

/// As [`timespec`], in the form that raw system calls take.
pub(super) fn raw_timespec(ns: u64) -> libc::timespec {
    let Timespec { tv_sec, tv_nsec } = timespec(ns);
    libc::timespec { tv_sec, tv_nsec }
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec as u64 * NS_PER_S + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_passes_while_sleeping() {
        let before = monotonic_ns();
        std::thread::sleep(Duration::from_millis(5));
        let after = monotonic_ns();
        assert!(after - before >= 5_000_000);
    }

    #[test]
    fn the_coarse_clock_follows_the_fine_one_from_behind() {
        let step = coarse_step_ns();
        assert!((100_000..=100_000_000).contains(&step), "{step}");
        assert_eq!(step, coarse_step_ns());
        let coarse = coarse_ns();
        let fine = monotonic_ns();
        assert!(coarse <= fine);
        // A late tick on a busy machine may leave it several steps behind.
        assert!(fine - coarse < 2_000_000_000, "{}", fine - coarse);
    }

    #[test]
    fn timespec_and_back() {
        for ns in [0, 1, NS_PER_S - 1, NS_PER_S, 12_345_678_901, u64::MAX] {
            assert_eq!(nanoseconds(timespec(ns)), ns);
        }
    }
}
