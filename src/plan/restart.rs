//! What follows when a worker dies.

use std::time::Duration;

use crate::base::clock::ns;

/// Whether a group's worker that died gets a successor, how often, and how soon.
///
/// ```
/// use handbell::Restart;
/// use std::time::Duration;
///
/// // Five times within any minute, after 100 ms, 200 ms, 400 ms and so on, at most 10 s.
/// let restart = Restart::on_failure(5)
///     .within(Duration::from_secs(60))
///     .delay(Duration::from_millis(100), Duration::from_secs(10));
/// # let _ = restart;
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// 0: never.
    pub(crate) restarts: usize,
    pub(crate) period: Duration,
    pub(crate) first_delay: Duration,
    pub(crate) longest_delay: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self::never()
    }
}

impl Restart {
    /// Never: requests to a dead worker fail at once.
    pub fn never() -> Self {
        let (first_delay, longest_delay) = (Duration::from_millis(100), Duration::from_secs(10));
        Self { restarts: 0, period: Duration::from_secs(60), first_delay, longest_delay }
    }

    /// After each death, but no more than so many times (1 to 1,000) within a period; a worker that dies once more
    /// than that has failed for good. Default period: a minute.
    pub fn on_failure(restarts: usize) -> Self {
        Self { restarts, ..Self::never() }
    }

    /// The period: 1 ms to one day.
    pub fn within(self, period: Duration) -> Self {
        Self { period, ..self }
    }

    /// How long to wait before a restart: `first`, and twice as long for each further one within the period, at
    /// most `longest` (up to one day). Default: 100 ms, at most 10 s.
    pub fn delay(self, first: Duration, longest: Duration) -> Self {
        Self { first_delay: first, longest_delay: longest, ..self }
    }
}

/// The restarts of one process so far. Pure: readings of the clock come in.
#[derive(Clone, Debug)]
pub(crate) struct Lives {
    policy: Restart,
    /// When the latest ones began, the oldest first.
    restarts_ns: Vec<u64>,
}

impl Lives {
    pub fn new(policy: Restart) -> Self {
        Self { policy, restarts_ns: Vec::new() }
    }

    /// Whether there are to be restarts at all.
    pub fn has_policy(&self) -> bool {
        self.policy.restarts > 0
    }

    /// When the successor of a worker that has died now is to be started; `None` if there is to be none.
    pub fn after_death(&mut self, now_ns: u64) -> Option<u64> {
        let period_ns = ns(self.policy.period);
        self.restarts_ns.retain(|restart_ns| now_ns.saturating_sub(*restart_ns) < period_ns);
        if self.restarts_ns.len() >= self.policy.restarts {
            return None;
        }
        let doublings = self.restarts_ns.len().min(40) as u32;
        let delay_ns = ns(self.policy.first_delay).saturating_mul(1 << doublings);
        let start_ns = now_ns.saturating_add(delay_ns.min(ns(self.policy.longest_delay)));
        self.restarts_ns.push(start_ns);
        Some(start_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn restart_01_at_most_so_many_in_a_period_and_later_each_time() {
        let policy = Restart::on_failure(3)
            .within(Duration::from_secs(1))
            .delay(Duration::from_millis(10), Duration::from_millis(35));
        let mut lives = Lives::new(policy);
        assert_eq!(lives.after_death(0), Some(10 * MS));
        assert_eq!(lives.after_death(20 * MS), Some(40 * MS));
        assert_eq!(lives.after_death(50 * MS), Some(85 * MS));
        assert_eq!(lives.after_death(100 * MS), None);
        // The first two are a second old.
        assert_eq!(lives.after_death(1040 * MS), Some(1060 * MS));
        assert_eq!(Lives::new(Restart::never()).after_death(0), None);
    }
}
