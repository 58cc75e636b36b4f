//! One waiter of the correlation table, and the word that decides how it ends.
//!
//! ```text
//!            register            first terminal, cancel, deadline, death, stop
//!   FREE ───────────────▶ OPEN ───────────────────────────────────────────────▶ ENDING ──▶ ENDED
//!    ▲                                  one compare-and-swap                 outcome written    │
//!    └──────────────────────────────────────────────────────────────────────────────────────────┘
//!                              taken by its owner, or at once if detached
//! ```
//!
//! The word also carries the generation, so that whoever speaks of an earlier user of the place fails the
//! exchange, and three marks: the owner sleeps, the owner has left a waker, the owner has gone.
//!
//! A second word says which of the root's hop entries are open, whether an answer is kept until the last of them
//! has ended, and how many threads are at work on one of them (*pins*). Forbidden: an entry is opened, or given its lane, for a root that has been freed meanwhile.
//! Who works on an entry pins, then looks whether the root is open; who frees ends the root, then waits until
//! nobody pins. All four accesses are sequentially consistent, so one of the two sees the other. Who pins and
//! then finds the root ended may be too late for the other to wait: such a pin is taken back only if the place
//! has not been opened anew meanwhile, which has wiped it out.

use super::outcome::OutcomeCell;
use crate::base::sync::{AtomicU64, Ordering, pause};
use crate::os::futex::Word;

const PHASE: u64 = 3;
const FREE: u64 = 0;
const OPEN: u64 = 1;
const ENDING: u64 = 2;
const ENDED: u64 = 3;
const DETACHED: u64 = 1 << 2;
const ASLEEP: u64 = 1 << 3;
const AWAITED: u64 = 1 << 4;
pub(super) const GENERATION_SHIFT: u32 = 24;

/// Open hop entries, one bit each.
const BRANCHES: u64 = 0xFFFF;
/// One thread at work on a hop entry; at most two for each, one that hands it on and one that empties a queue.
const PIN: u64 = 1 << 16;
const PINS: u64 = 0x7F * PIN;
/// An answer is kept.
const KEPT: u64 = 1 << 23;
/// Of the word that counts branches: beside the generation.
const COUNT: u64 = (1 << GENERATION_SHIFT) - 1;

/// Names a root for as long as its owner has not taken its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RootKey {
    pub index: u32,
    /// The request's number modulo the generations of a ticket.
    pub generation: u64,
}

/// What the end of a hop is to its root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BranchEnd {
    /// Others are open, or it had ended before.
    NotLast,
    /// None is open any more.
    Last,
    /// The same, and an answer is kept.
    LastOfAnswered,
}

/// What the ending thread must do after the outcome is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Aftermath {
    /// Of the root that ended.
    pub generation: u64,
    /// The owner sleeps on the root's wake word.
    pub asleep: bool,
    /// The owner has left a waker.
    pub awaited: bool,
    /// There is no owner: the ender takes and frees.
    pub detached: bool,
}

/// The root can have no further branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoBranch {
    /// The root has ended.
    Ended,
    /// It has had as many as it may.
    TooMany,
}

/// Where a request stands, as its owner sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Free,
    Open,
    Ending,
    Ended,
}

#[repr(align(128))]
#[derive(Default)]
pub(super) struct Root {
    state: AtomicU64,
    /// Registration number, from 1.
    pub number: AtomicU64,
    pub deadline_ns: AtomicU64,
    pub trace_id: [AtomicU64; 2],
    /// `reply_to`, run, scenario.
    pub tags: AtomicU64,
    /// Lane that counts it, whether the id is the caller's, whether it is of a run.
    pub place: AtomicU64,
    /// Generation, whether an answer is kept, pins, which hop entries are open.
    branches: AtomicU64,
    /// Generation, and how many branches the root has ever had.
    branched: AtomicU64,
    /// Grows when a hop of the root gets its lane, for an owner who looks at lanes.
    moves: AtomicU64,
    pub outcome: OutcomeCell,
    /// The owner sleeps on this.
    pub wake: Word,
}

impl Root {
    /// Free → open, with hop entry 0. Release: the fields are complete; pairs with every load of the state that
    /// goes on to them.
    pub fn open(&self, generation: u64) {
        self.branches.store(generation << GENERATION_SHIFT | 1, Ordering::Relaxed);
        self.branched.store(generation << GENERATION_SHIFT | 1, Ordering::Relaxed);
        self.state.store(generation << GENERATION_SHIFT | OPEN, Ordering::Release);
    }

    pub fn phase(&self) -> Phase {
        // Acquire: pairs with `finish`; an ended root's outcome is visible.
        match self.state.load(Ordering::Acquire) & PHASE {
            FREE => Phase::Free,
            OPEN => Phase::Open,
            ENDING => Phase::Ending,
            _ => Phase::Ended,
        }
    }

    /// The generation if the root is open now.
    pub fn open_generation(&self) -> Option<u64> {
        let state = self.state.load(Ordering::SeqCst);
        (state & PHASE == OPEN).then_some(state >> GENERATION_SHIFT)
    }

    /// The generation of the latest user.
    pub fn generation(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> GENERATION_SHIFT
    }

    /// Open → ending, for whoever comes first. The winner writes the outcome and calls `finish`.
    pub fn try_end(&self, generation: u64) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state >> GENERATION_SHIFT != generation || state & PHASE != OPEN {
                return false;
            }
            let ending = state & !PHASE | ENDING;
            // Acquire: pairs with the owner's earlier marks. The Release comes with `finish`. SeqCst: see the pins.
            match self.state.compare_exchange_weak(state, ending, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Open → free, by the owner, who has marked nothing; [`Root::wait_for_pins`] follows before the place is used
    /// again.
    #[inline(always)]
    pub fn end_unmarked(&self, generation: u64) -> bool {
        let free = generation << GENERATION_SHIFT | FREE;
        // SeqCst: see the pins.
        self.state.compare_exchange(free | OPEN, free, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    // ---- hop entries ----

    /// Which hop entries are open: one bit each.
    pub fn open_branches(&self, generation: u64) -> u64 {
        let word = self.branches.load(Ordering::Acquire);
        if word >> GENERATION_SHIFT == generation { word & BRANCHES } else { 0 }
    }

    /// The hop in this entry has ended. Acquire and Release: whoever ends the last one sees every answer that was
    /// kept before another ended.
    pub fn end_branch(&self, generation: u64, entry: u32) -> BranchEnd {
        let mut word = self.branches.load(Ordering::Relaxed);
        // The root may have been freed and taken again meanwhile; then the word is of another generation.
        while word >> GENERATION_SHIFT == generation && word & 1 << entry != 0 {
            let left = word & !(1 << entry);
            match self.branches.compare_exchange_weak(word, left, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if left & BRANCHES != 0 => return BranchEnd::NotLast,
                Ok(_) if left & KEPT != 0 => return BranchEnd::LastOfAnswered,
                Ok(_) => return BranchEnd::Last,
                Err(now) => word = now,
            }
        }
        BranchEnd::NotLast
    }

    /// Whether the hop in this entry is the only open one of the root, and no answer is kept.
    pub fn is_alone(&self, generation: u64, entry: u32) -> bool {
        let word = self.branches.load(Ordering::Acquire);
        word >> GENERATION_SHIFT == generation && word & (BRANCHES | KEPT) == 1 << entry
    }

    /// Notes that an answer is kept. By whoever has yet to end the hop that it came by.
    pub fn keep(&self, generation: u64) {
        let mut word = self.branches.load(Ordering::Relaxed);
        while word >> GENERATION_SHIFT == generation && word & KEPT == 0 {
            let kept = word | KEPT;
            // Relaxed: the end of that hop publishes it.
            match self.branches.compare_exchange_weak(word, kept, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Opens another of the first `limit` entries, gives `closing` back in the same step, and pins. What takes no
    /// place of another is one more branch; a root has `limit` of them in its life, and the first from its
    /// registration on.
    pub fn begin_branch(&self, generation: u64, closing: Option<u32>, limit: u32) -> Result<u32, NoBranch> {
        // The usual case of an ended root, before an entry is taken that nobody would give back. What ends between
        // here and the second look keeps it: the owner who takes the root does not ask which are open.
        if self.open_generation() != Some(generation) {
            return Err(NoBranch::Ended);
        }
        if closing.is_none() {
            self.count_branch(generation, limit)?;
        }
        let mut word = self.branches.load(Ordering::Relaxed);
        loop {
            if word >> GENERATION_SHIFT != generation {
                return Err(NoBranch::Ended);
            }
            let kept = closing.map_or(word, |entry| word & !(1 << entry));
            let entry = (kept & BRANCHES).trailing_ones();
            assert!(entry < limit, "no more branches are open than have been counted");
            debug_assert!(word & PINS != PINS, "two pins for each entry at most");
            let taken = (kept | 1 << entry) + PIN;
            match self.branches.compare_exchange_weak(word, taken, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break self.look_again(generation).map(|()| entry),
                Err(now) => word = now,
            }
        }
    }

    /// Counts one more branch. How many are open in the same moment depends on who is faster; how many there have
    /// been does not.
    fn count_branch(&self, generation: u64, limit: u32) -> Result<(), NoBranch> {
        let mut word = self.branched.load(Ordering::Relaxed);
        loop {
            if word >> GENERATION_SHIFT != generation {
                return Err(NoBranch::Ended);
            }
            if word & COUNT >= u64::from(limit) {
                return Err(NoBranch::TooMany);
            }
            // Relaxed: it counts, and orders nothing.
            match self.branched.compare_exchange_weak(word, word + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Keeps an open root from being freed until [`Root::unpin`]; false if it is not open.
    pub fn pin(&self, generation: u64) -> bool {
        let mut word = self.branches.load(Ordering::Relaxed);
        while word >> GENERATION_SHIFT == generation {
            debug_assert!(word & PINS != PINS, "two pins for each entry at most");
            match self.branches.compare_exchange_weak(word, word + PIN, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return self.look_again(generation).is_ok(),
                Err(now) => word = now,
            }
        }
        false
    }

    /// Whether the root is open, for who has just pinned it; if not, the pin is taken back.
    fn look_again(&self, generation: u64) -> Result<(), NoBranch> {
        if self.open_generation() == Some(generation) {
            return Ok(());
        }
        self.take_back_pin(generation);
        Err(NoBranch::Ended)
    }

    /// Takes a pin of a root back that was not open, unless the place has been opened anew.
    fn take_back_pin(&self, generation: u64) {
        let mut word = self.branches.load(Ordering::Relaxed);
        while word >> GENERATION_SHIFT == generation {
            debug_assert!(word & PINS != 0);
            match self.branches.compare_exchange_weak(word, word - PIN, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Of a root that was open when it was pinned, and so has not been freed since. Release: what was done with
    /// the entry happens before the place's next use; pairs with `free`.
    pub fn unpin(&self) {
        let word = self.branches.fetch_sub(PIN, Ordering::Release);
        debug_assert!(word & PINS != 0);
    }

    /// A hop of the root has got its lane; true if the owner sleeps and must be told.
    pub fn moved(&self) -> bool {
        self.moves.fetch_add(1, Ordering::SeqCst);
        self.state.load(Ordering::SeqCst) & ASLEEP != 0
    }

    /// How often hops of the root have got a lane.
    #[inline(always)]
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// Ending → ended. Release: publishes the outcome; pairs with the Acquire in `phase`.
    pub fn finish(&self) -> Aftermath {
        let state = self.state.fetch_add(ENDED - ENDING, Ordering::AcqRel);
        debug_assert_eq!(state & PHASE, ENDING);
        Aftermath {
            generation: state >> GENERATION_SHIFT,
            asleep: state & ASLEEP != 0,
            awaited: state & AWAITED != 0,
            detached: state & DETACHED != 0,
        }
    }

    /// The owner leaves; true if the root has ended already, so that the owner frees it.
    pub fn detach(&self) -> bool {
        self.state.fetch_or(DETACHED, Ordering::AcqRel) & PHASE == ENDED
    }

    /// The owner is about to sleep on `wake`; false if the root has ended. SeqCst: pairs with `moved`.
    pub fn fall_asleep(&self) -> bool {
        self.state.fetch_or(ASLEEP, Ordering::SeqCst) & PHASE != ENDED
    }

    /// The owner has left a waker; false if the root has ended.
    pub fn await_end(&self) -> bool {
        self.state.fetch_or(AWAITED, Ordering::AcqRel) & PHASE != ENDED
    }

    pub fn wake_up(&self) {
        self.state.fetch_and(!ASLEEP, Ordering::AcqRel);
    }

    /// Waits until nobody is at work on a hop entry any more: for who has ended the root and frees it.
    #[inline(always)]
    pub fn wait_for_pins(&self) {
        while self.branches.load(Ordering::SeqCst) & PINS != 0 {
            // Somebody is handing a branch on; it does not wait for anything.
            pause();
        }
    }

    /// Ended → free, by whoever took the outcome.
    pub fn free(&self) {
        self.wait_for_pins();
        let state = self.state.load(Ordering::Relaxed);
        debug_assert_eq!(state & PHASE, ENDED);
        // Relaxed: the free list's push publishes it.
        self.state.store(state >> GENERATION_SHIFT << GENERATION_SHIFT | FREE, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn reply_09_an_end_that_comes_late_leaves_the_places_next_user_alone() {
        let root = Root::default();
        root.open(7);
        assert_eq!(root.begin_branch(7, None, 2), Ok(1));
        root.unpin();
        // The owner took the reply, and the place is used again before the frames' readers close the hops.
        root.open(8);
        assert_eq!([0, 1].map(|entry| root.end_branch(7, entry)), [BranchEnd::NotLast; 2]);
        assert_eq!(root.begin_branch(7, None, 2), Err(NoBranch::Ended));
        assert!(!root.pin(7));
        root.keep(7);
        assert_eq!([(); 2].map(|()| root.end_branch(8, 0)), [BranchEnd::Last, BranchEnd::NotLast]);
    }

    #[test]
    fn reply_09_a_pin_that_comes_late_leaves_the_places_next_user_alone() {
        let root = Root::default();
        root.open(7);
        assert!(root.pin(7));
        // As if the root had ended, been freed and opened anew between the pin and the look.
        root.open(8);
        assert_eq!(root.look_again(7), Err(NoBranch::Ended));
        assert_eq!(root.branches.load(Ordering::Relaxed), 8 << GENERATION_SHIFT | 1);
        // Opened anew not yet: the pin must go, or nobody could free the place.
        assert!(root.pin(8) && root.try_end(8));
        assert_eq!(root.look_again(8), Err(NoBranch::Ended));
        assert_eq!(root.branches.load(Ordering::Relaxed), 8 << GENERATION_SHIFT | 1);
    }

    #[test]
    fn a_branch_takes_the_place_of_the_one_that_it_follows() {
        let root = Root::default();
        root.open(1);
        assert_eq!(root.begin_branch(1, Some(0), 1), Ok(0), "the last branch is never missing in between");
        root.unpin();
        assert_eq!(root.begin_branch(1, None, 1), Err(NoBranch::TooMany));
        assert_eq!(root.begin_branch(1, Some(0), 2), Ok(0));
        root.unpin();
        assert_eq!(root.open_branches(1), 1);
        assert_eq!(root.end_branch(1, 0), BranchEnd::Last);
        assert!(root.try_end(1));
        assert_eq!(root.begin_branch(1, None, 2), Err(NoBranch::Ended));
        assert!(!root.pin(1));
    }
    #[test]
    fn a_branch_that_has_ended_still_counts() {
        let root = Root::default();
        root.open(1);
        for branch in 1..4 {
            assert_eq!(root.begin_branch(1, None, 4), Ok(1), "branch {branch} has the free entry");
            root.unpin();
            assert_eq!(root.end_branch(1, 1), BranchEnd::NotLast);
            assert_eq!(root.begin_branch(1, Some(0), 4), Ok(0), "going on costs nothing");
            root.unpin();
        }
        assert_eq!(root.begin_branch(1, None, 4), Err(NoBranch::TooMany));
        root.open(2);
        assert_eq!(root.begin_branch(1, None, 4), Err(NoBranch::Ended));
        assert_eq!(root.begin_branch(2, None, 4), Ok(1), "the place's next user counts for itself");
    }
    #[test]
    fn order_01_a_kept_answer_waits_for_the_last_branch() {
        let root = Root::default();
        root.open(1);
        assert!(root.is_alone(1, 0) && !root.is_alone(2, 0));
        assert_eq!(root.begin_branch(1, None, 2), Ok(1));
        root.unpin();
        assert!(!root.is_alone(1, 0));
        root.keep(1);
        assert_eq!(root.end_branch(1, 0), BranchEnd::NotLast);
        assert!(!root.is_alone(1, 1), "an answer is kept");
        assert_eq!(root.begin_branch(1, Some(1), 2), Ok(0), "branches go on beside it");
        root.unpin();
        assert_eq!(root.end_branch(1, 0), BranchEnd::LastOfAnswered);
        root.open(2);
        assert!(root.is_alone(2, 0));
    }
}
