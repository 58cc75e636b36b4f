//! Whom the kernel may have killed for want of memory: what the growth of its count means for a worker that a SIGKILL
//! has ended. Pure: readings of count and clock come in as arguments.
//!
//! The count is of a whole control group: the engine, its workers, and whoever else is in there. It grows before the
//! victim dies. So each growth explains one death, of a worker whose end is seen soon after it; what it does not explain
//! by then was somebody else's end.

/// How long after a growth was seen it may still explain a death: giving back much memory takes a process its time.
const EXPLAINS_NS: u64 = 5_000_000_000;

/// The kernel's count of such kills, and what of it is not explained.
#[derive(Clone, Debug, Default)]
pub(crate) struct Toll {
    /// What was read last.
    count: Option<u64>,
    /// Kills that no worker's death has explained.
    open: u64,
    /// When the latest of them was seen.
    grew_ns: u64,
}

impl Toll {
    /// The count as it is when nobody has been killed yet.
    pub fn from(count: Option<u64>) -> Self {
        Self { count, ..Self::default() }
    }

    /// The count has been read. `None`: the kernel does not say.
    pub fn note(&mut self, count: Option<u64>, now_ns: u64) {
        if now_ns.saturating_sub(self.grew_ns) > EXPLAINS_NS {
            self.open = 0;
        }
        if let (Some(before), Some(count)) = (self.count, count)
            && count > before
        {
            self.open += count - before;
            self.grew_ns = now_ns;
        }
        self.count = count.or(self.count);
    }

    /// A worker has been killed by a signal that nobody here sent, and the count has been read behind that: whether
    /// it was the kernel, as far as the count tells.
    pub fn claim(&mut self) -> bool {
        let is_explained = self.open > 0;
        self.open -= u64::from(is_explained);
        is_explained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// Looks each half second at counts that do not change, from `from_ns` on.
    fn quiet(toll: &mut Toll, count: u64, from_ns: u64, to_ns: u64) {
        (from_ns..=to_ns).step_by(S as usize / 2).for_each(|now_ns| toll.note(Some(count), now_ns));
    }

    #[test]
    fn a_growth_explains_the_death_that_is_seen_with_it() {
        let mut toll = Toll::from(Some(7));
        quiet(&mut toll, 7, 0, 100 * S);
        assert!(!toll.claim(), "somebody's SIGKILL");
        toll.note(Some(8), 101 * S);
        assert!(toll.claim());
        assert!(!toll.claim(), "one kill, one death");
        toll.note(Some(10), 102 * S);
        assert!(toll.claim() && toll.claim() && !toll.claim(), "two of each");
    }

    #[test]
    fn a_look_between_the_kill_and_its_end_loses_nothing() {
        let mut toll = Toll::from(Some(0));
        quiet(&mut toll, 1, S, 4 * S);
        assert!(toll.claim(), "it took a while to die");
    }

    #[test]
    fn the_end_of_somebody_else_explains_nothing_later() {
        let mut toll = Toll::from(Some(0));
        toll.note(Some(3), S);
        quiet(&mut toll, 3, S, 60 * S);
        assert!(!toll.claim());
        toll.note(Some(4), 61 * S);
        assert!(toll.claim() && !toll.claim(), "nor do the three that were before");
    }

    #[test]
    fn a_kernel_that_does_not_say_blames_nobody() {
        let mut toll = Toll::from(None);
        toll.note(None, S);
        assert!(!toll.claim());
        // What had been counted before it said so is nobody's.
        toll.note(Some(100), 2 * S);
        assert!(!toll.claim());
        toll.note(None, 3 * S);
        toll.note(Some(101), 4 * S);
        assert!(toll.claim());
    }
}
