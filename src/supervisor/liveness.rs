//! Whether a worker lives, is paused, or hangs: what its silence and its work mean. Pure: readings come in as
//! arguments, and findings go out.
//!
//! Death itself is the kernel's word and not looked for here. Silence is what the doorbell has not said: it makes
//! a worker *suspect*, and after `heartbeat_timeout` it costs its life, unless it is stopped by a signal or a
//! debugger, or this process was itself not running. A request that goes on past its deadline is no fault of
//! the worker's until `hung_after` has passed without a node call.

use crate::base::failure::KilledFor;
use crate::base::limits::STALL_NS;

/// Silence that is worth an event.
const SUSPECT_NS: u64 = 2_000_000_000;
/// How often to look.
pub(crate) const LOOK_NS: u64 = 500_000_000;

/// What is allowed, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub heartbeat_timeout_ns: u64,
    pub hung_after_ns: u64,
}

/// What a worker says that it executes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Work {
    /// The request's place in its ring.
    pub position: u64,
    /// The request's deadline, 0 = none.
    pub deadline_ns: u64,
    /// Node calls so far.
    pub progress: u64,
}

/// What a look has found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// It has been silent for two seconds.
    Suspect,
    /// It has been stopped, by a signal or a debugger. Nothing is expected of it until it goes on.
    Paused,
    /// It speaks again.
    Recovered,
    /// It is to be killed.
    Kill(KilledFor),
}

/// What is known of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Liveness {
    patience: Patience,
    looked_ns: u64,
    /// Silence before this counts for nothing.
    forgiven_ns: u64,
    is_suspect: bool,
    is_paused: bool,
    /// The work seen at the last look, and when it was first seen so.
    work: Option<(Work, u64)>,
}

impl Liveness {
    /// Of a worker that is ready.
    pub fn new(patience: Patience, now_ns: u64) -> Self {
        Self {
            patience,
            looked_ns: now_ns,
            forgiven_ns: now_ns,
            is_suspect: false,
            is_paused: false,
            work: None,
        }
    }

    /// When to look next.
    pub fn next_ns(&self) -> u64 {
        self.looked_ns + LOOK_NS
    }

    /// Lets a look pass: there is nothing to find out now.
    pub fn skip(&mut self, now_ns: u64) {
        self.looked_ns = now_ns;
    }

    /// Looks. `heard_ns` is when the worker was last heard; `is_stopped` asks the kernel, and is asked only when it
    /// matters.
    pub fn look(
        &mut self,
        now_ns: u64,
        heard_ns: u64,
        work: Option<Work>,
        is_stopped: impl FnOnce() -> bool,
    ) -> Option<Finding> {
        if now_ns.saturating_sub(self.looked_ns) > LOOK_NS + STALL_NS {
            self.forgive(now_ns);
        }
        self.looked_ns = now_ns;
        let silence_ns = now_ns.saturating_sub(heard_ns.max(self.forgiven_ns));
        if silence_ns < SUSPECT_NS && !self.is_paused {
            let recovered = std::mem::take(&mut self.is_suspect);
            let hung = self.is_hung(now_ns, work);
            return match (hung && !is_stopped(), recovered) {
                (true, _) => Some(Finding::Kill(KilledFor::Hung)),
                (false, true) => Some(Finding::Recovered),
                (false, false) => None,
            };
        }
        if is_stopped() {
            self.forgive(now_ns);
            return (!std::mem::replace(&mut self.is_paused, true)).then_some(Finding::Paused);
        }
        if std::mem::take(&mut self.is_paused) {
            // It goes on: its silence begins now.
            self.forgive(now_ns);
            self.is_suspect = false;
            return Some(Finding::Recovered);
        }
        if silence_ns >= self.patience.heartbeat_timeout_ns {
            let silence_ms = u32::try_from(silence_ns / 1_000_000).unwrap_or(u32::MAX);
            return Some(Finding::Kill(KilledFor::HeartbeatLost { silence_ms }));
        }
        (!std::mem::replace(&mut self.is_suspect, true)).then_some(Finding::Suspect)
    }

    /// Time in which something could not be done by the worker, or not be seen by us, counts for nothing.
    fn forgive(&mut self, now_ns: u64) {
        self.forgiven_ns = now_ns;
        self.work = None;
    }

    /// Whether the same work has stood still for `hung_after` behind its deadline.
    fn is_hung(&mut self, now_ns: u64, work: Option<Work>) -> bool {
        let Some(work) = work else {
            self.work = None;
            return false;
        };
        let since_ns = match self.work {
            Some((seen, since_ns)) if seen == work => since_ns,
            _ => now_ns,
        };
        self.work = Some((work, since_ns));
        let hung_after_ns = self.patience.hung_after_ns;
        work.deadline_ns != 0
            && now_ns >= work.deadline_ns.saturating_add(hung_after_ns)
            // Seen standing still, but for the last look: what began behind its deadline has its time too.
            && now_ns.saturating_sub(since_ns) + LOOK_NS >= hung_after_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const PATIENCE: Patience = Patience { heartbeat_timeout_ns: 10 * S, hung_after_ns: 3 * S };

    /// Looks each half second from `from_ns` on, and tells what was found when.
    fn looks(
        liveness: &mut Liveness,
        from_ns: u64,
        to_ns: u64,
        heard_ns: impl Fn(u64) -> u64,
        work: Option<Work>,
        is_stopped: impl Fn(u64) -> bool,
    ) -> Vec<(u64, Finding)> {
        let mut found = Vec::new();
        for now_ns in (from_ns..=to_ns).step_by(LOOK_NS as usize) {
            let finding = liveness.look(now_ns, heard_ns(now_ns), work, || is_stopped(now_ns));
            found.extend(finding.map(|finding| (now_ns, finding)));
        }
        found
    }

    #[test]
    fn silence_makes_suspect_and_then_costs_the_life() {
        let mut liveness = Liveness::new(PATIENCE, 0);
        let found = looks(&mut liveness, 0, 10 * S, |_| 0, None, |_| false);
        let lost = Finding::Kill(KilledFor::HeartbeatLost { silence_ms: 10_000 });
        assert_eq!(found, [(2 * S, Finding::Suspect), (10 * S, lost)]);
    }

    #[test]
    fn who_speaks_again_recovers() {
        let mut liveness = Liveness::new(PATIENCE, 0);
        let found = looks(&mut liveness, 0, 30 * S, |now| if now < 9 * S { 0 } else { now }, None, |_| false);
        assert_eq!(found, [(2 * S, Finding::Suspect), (9 * S, Finding::Recovered)]);
    }

    #[test]
    fn a_stopped_worker_is_not_dead_and_has_all_its_time_when_it_goes_on() {
        let mut liveness = Liveness::new(PATIENCE, 0);
        let found = looks(&mut liveness, 0, 69 * S, |_| 0, None, |now| now < 60 * S);
        assert_eq!(found[0], (2 * S, Finding::Paused));
        assert_eq!(found[1], (60 * S, Finding::Recovered));
        assert_eq!(found[2], (62 * S, Finding::Suspect));
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn stop_ipc_05_a_pause_of_our_own_blames_nobody() {
        let mut liveness = Liveness::new(PATIENCE, 0);
        assert_eq!(liveness.look(S / 2, 0, None, || false), None);
        let work = Some(Work { position: 0, deadline_ns: 1, progress: 1 });
        // An hour later nothing has been heard, because nobody listened.
        assert_eq!(liveness.look(3600 * S, 0, work, || false), None);
        let found = looks(&mut liveness, 3601 * S, 3609 * S, |_| 3600 * S, None, |_| false);
        assert_eq!(found, [(3602 * S, Finding::Suspect)]);
    }

    #[test]
    fn hung_01_only_who_stands_still_behind_a_deadline_hangs() {
        let work = |deadline_ns| Some(Work { position: 7, deadline_ns, progress: 1 });
        let heard = |now| now;
        let hung = |from_s: u64| [(from_s * S, Finding::Kill(KilledFor::Hung))];
        let mut liveness = Liveness::new(PATIENCE, 0);
        assert_eq!(looks(&mut liveness, 0, 8 * S, heard, work(5 * S), |_| false), hung(8));
        let mut liveness = Liveness::new(PATIENCE, 0);
        assert_eq!(looks(&mut liveness, 0, 100 * S, heard, work(0), |_| false), [], "without a deadline");
        let mut liveness = Liveness::new(PATIENCE, 0);
        assert_eq!(looks(&mut liveness, 0, 20 * S, heard, work(5 * S), |_| true), [], "stopped, not hung");
        let mut liveness = Liveness::new(PATIENCE, 0);
        for look in 0..100 {
            let work = Some(Work { position: 7, deadline_ns: S, progress: look / 4 });
            assert_eq!(liveness.look(look * LOOK_NS, look * LOOK_NS, work, || false), None, "busy, not hung");
        }
    }
}
