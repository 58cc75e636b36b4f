//! Deadlines. Time is an argument everywhere; reading the clock is `os/clock.rs`.

use std::time::Duration;

/// When a request gives up, on the monotonic clock.
///
/// At `now >= deadline` the request ends with category `timeout`; the worker is not interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Deadline {
    /// The request waits for as long as its worker lives.
    #[default]
    Never,
    /// This long after the request is handed in.
    After(Duration),
    /// At this reading of `CLOCK_MONOTONIC`, in nanoseconds (0 counts as already passed).
    AtNs(u64),
}

impl Deadline {
    /// A deadline this long after the request is handed in.
    pub fn after(duration: Duration) -> Self {
        Self::After(duration)
    }

    /// The reading at which the request ends; 0 stands for none, as on the wire.
    pub(crate) fn resolve(self, now_ns: impl FnOnce() -> u64) -> u64 {
        match self {
            Self::Never => 0,
            Self::After(duration) => now_ns().saturating_add(ns(duration)).max(1),
            Self::AtNs(at_ns) => at_ns.max(1),
        }
    }
}

/// A duration in ns; too long a one is the longest.
pub(crate) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a resolved deadline (0 = none) has passed.
#[inline]
pub(crate) fn has_passed(deadline_ns: u64, now_ns: u64) -> bool {
    deadline_ns != 0 && now_ns >= deadline_ns
}

/// The earlier of two resolved deadlines, 0 = none.
pub(crate) fn earlier(a_ns: u64, b_ns: u64) -> u64 {
    match (a_ns, b_ns) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_without_overflow() {
        assert_eq!(Deadline::Never.resolve(|| 5), 0);
        assert_eq!(Deadline::after(Duration::from_nanos(3)).resolve(|| 5), 8);
        assert_eq!(Deadline::after(Duration::MAX).resolve(|| 5), u64::MAX);
        assert_eq!(Deadline::AtNs(0).resolve(|| 5), 1);
    }

    #[test]
    fn passes_at_equality_and_never_without_one() {
        assert!(has_passed(7, 7));
        assert!(!has_passed(8, 7));
        assert!(!has_passed(0, u64::MAX));
        assert_eq!(earlier(0, 4), 4);
        assert_eq!(earlier(3, 4), 3);
    }
}
