//! Something that is said again and again until it is answered.

use crate::base::limits::DOORBELL_REPEAT_NS;

/// What became of it so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Errand {
    /// Nobody wants it said.
    #[default]
    Unasked,
    /// To be said at this time, and again one period later.
    Open { due_ns: u64 },
    /// Answered: not said any more.
    Answered,
}

impl Errand {
    /// Wants it said from now on. Asking twice changes nothing.
    pub fn ask(&mut self, now_ns: u64) {
        if *self == Self::Unasked {
            *self = Self::Open { due_ns: now_ns };
        }
    }

    /// Whether it is to be said now; it is due again one period later.
    pub fn take(&mut self, now_ns: u64) -> bool {
        let Self::Open { due_ns } = *self else { return false };
        if now_ns < due_ns {
            return false;
        }
        // From now, not from when it was due: after a pause it is said once, not once for each period.
        *self = Self::Open { due_ns: now_ns.saturating_add(DOORBELL_REPEAT_NS) };
        true
    }

    /// What was asked has been answered, or there is no use in saying it any more.
    pub fn settle(&mut self) {
        if self.is_asked() {
            *self = Self::Answered;
        }
    }

    /// Whether anybody ever wanted it said.
    pub fn is_asked(self) -> bool {
        self != Self::Unasked
    }

    /// When it is to be said.
    pub fn due_ns(self) -> Option<u64> {
        match self {
            Self::Open { due_ns } => Some(due_ns),
            Self::Unasked | Self::Answered => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_period_until_it_is_answered() {
        let mut errand = Errand::default();
        errand.settle();
        assert!(!errand.take(5) && !errand.is_asked());
        errand.ask(10);
        errand.ask(99);
        assert_eq!(errand.due_ns(), Some(10));
        assert!(!errand.take(9) && errand.take(10) && !errand.take(10));
        assert!(!errand.take(9 + DOORBELL_REPEAT_NS) && errand.take(10 + DOORBELL_REPEAT_NS));
        let after_a_pause = 10 + 50 * DOORBELL_REPEAT_NS;
        assert!(errand.take(after_a_pause) && !errand.take(after_a_pause));
        errand.settle();
        errand.ask(0);
        assert!(!errand.take(u64::MAX) && errand.is_asked() && errand.due_ns().is_none());
    }
}
