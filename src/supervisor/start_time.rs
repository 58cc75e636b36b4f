//! How long a start may take. All births of a start share one; time in which this process itself did not run counts
//! for none of them. Pure: readings of the clock come in as arguments.

use std::cell::Cell;

use crate::base::limits::STALL_NS;

/// A start looks at the clock at least this often, in milliseconds.
pub(super) const LOOK_MS: u32 = 100;
const LOOK_NS: u64 = LOOK_MS as u64 * 1_000_000;

/// The time of a start. Whoever asks looks at the clock, and so finds what has been missed since the last look.
pub(super) struct StartTime {
    until_ns: Cell<u64>,
    looked_ns: Cell<u64>,
    missed_ns: Cell<u64>,
}

impl StartTime {
    /// Of a start that begins now.
    pub fn new(now_ns: u64, timeout_ns: u64) -> Self {
        let until_ns = now_ns.saturating_add(timeout_ns).into();
        Self { until_ns, looked_ns: now_ns.into(), missed_ns: 0.into() }
    }

    /// Looks at the clock: how much this process has missed of the time since the start began.
    pub fn missed_ns(&self, now_ns: u64) -> u64 {
        let since_ns = now_ns.saturating_sub(self.looked_ns.replace(now_ns));
        if since_ns > LOOK_NS + STALL_NS {
            // But for the time between two looks: however slow the machine is, a start has an end.
            let missed_ns = since_ns - LOOK_NS;
            self.missed_ns.set(self.missed_ns.get() + missed_ns);
            self.until_ns.set(self.until_ns.get().saturating_add(missed_ns));
        }
        self.missed_ns.get()
    }

    /// When it is over, if nothing is missed from now on.
    pub fn until_ns(&self, now_ns: u64) -> u64 {
        self.missed_ns(now_ns);
        self.until_ns.get()
    }

    /// Whether it is over.
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.until_ns(now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// Looks each tenth of a second from `from_ns` on; when it is over.
    fn end(time: &StartTime, from_ns: u64) -> u64 {
        (0..).map(|look| from_ns + look * LOOK_NS).find(|now_ns| time.is_over(*now_ns)).unwrap()
    }

    #[test]
    fn boot_04_without_a_pause_it_is_over_when_it_was_stated() {
        let time = StartTime::new(7 * S, 3 * S);
        assert_eq!(end(&time, 7 * S), 10 * S);
        assert!(!StartTime::new(7 * S, u64::MAX).is_over(u64::MAX - 1));
        // A look that is late by a second is one of a busy machine.
        let time = StartTime::new(0, 3 * S);
        assert_eq!(time.missed_ns(LOOK_NS + STALL_NS), 0);
        assert_eq!(end(&time, 2 * S), 3 * S);
    }

    #[test]
    fn boot_04_pauses_of_our_own_take_nothing_from_a_start() {
        let time = StartTime::new(0, 3 * S);
        assert_eq!(time.until_ns(S), 3 * S);
        // Five seconds, and as much again: found by whatever is asked first.
        assert!(!time.is_over(6 * S));
        assert_eq!(time.until_ns(11 * S), 3 * S + 2 * (5 * S - LOOK_NS));
        assert_eq!(time.missed_ns(11 * S), 2 * (5 * S - LOOK_NS));
        assert_eq!(end(&time, 11 * S), 3 * S + 2 * (5 * S - LOOK_NS));
    }

    #[test]
    fn boot_04_a_start_that_is_always_late_has_an_end() {
        let time = StartTime::new(0, 3 * S);
        let looks = (1..).find(|look| time.is_over(look * 10 * S));
        assert_eq!(looks, Some(30));
    }
}
