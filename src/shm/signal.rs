//! Sleeping until a position is committed, and waking whoever sleeps for it.
//!
//! Two words: `sleeping` in the sleeper's segment says which position it waits for; `wake` in the
//! publisher's segment is what it sleeps on. Both sides write, then look:
//!
//! ```text
//! sleeper                                  publisher
//! w = wake                                 commit(p)
//! sleeping = p + 1                         ── fence ──
//! ── fence ──                              if sleeping == p + 1 { wake += 1; futex wake }
//! look(p) still empty → sleep while wake == w
//! ```
//!
//! Forbidden: the sleeper sees `p` empty *and* the publisher does not see `sleeping == p + 1`.
//! The two full fences forbid it: in their total order one comes first, and the other side's load after its
//! own fence sees what was stored before it. `wake` only grows, so a wake between the look and the sleep
//! makes the futex return at once. `shm/model.rs` checks both with loom, futex included.
//!
//! The sleeper waits on a word of its own rather than on the slot's commit word, because the position it
//! waits for may be moved while it sleeps: another thread of its process that has read further announces
//! the next position on its behalf ([`Signal::announce`]), and the sleeper need not be woken for that.

use super::view::Memory;

/// Offsets of the two words.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// In the sleeper's segment.
    pub sleeping_at: usize,
    /// In the publisher's segment.
    pub wake_at: usize,
}

impl Signal {
    /// Sleeper: the value to sleep on. Take it before announcing.
    pub fn prepare(&self, theirs: &impl Memory) -> u32 {
        theirs.futex_load(self.wake_at)
    }

    /// Sleeper: says that `position` is waited for. Look at the slot once more after this, then sleep.
    pub fn announce(&self, mine: &impl Memory, position: u64) {
        mine.store(self.sleeping_at, position + 1);
        // Between this store and the look at the slot; see the forbidden interleaving above.
        mine.fence_full();
    }

    /// Sleeper: nobody waits any more.
    pub fn withdraw(&self, mine: &impl Memory) {
        // Unordered: at worst the publisher wakes somebody who is awake already.
        mine.store(self.sleeping_at, 0);
    }

    /// Publisher, after the commit of `position`: wakes who sleeps for it. Returns whether somebody did.
    #[inline(always)]
    pub fn wake(&self, mine: &impl Memory, theirs: &impl Memory, position: u64) -> bool {
        // Between the commit and the look at `sleeping`; see the forbidden interleaving above.
        mine.fence_behind_commit();
        let asleep = theirs.load(self.sleeping_at) == position + 1;
        if asleep {
            mine.futex_wake(self.wake_at);
        }
        asleep
    }
}
