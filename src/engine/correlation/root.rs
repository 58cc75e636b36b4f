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
//! exchange, and two marks: the owner sleeps, the owner has gone.

use super::outcome::OutcomeCell;
use crate::base::ids::Ticket;
use crate::base::sync::{AtomicU64, Ordering};
use crate::os::futex::Word;

const PHASE: u64 = 3;
const FREE: u64 = 0;
const OPEN: u64 = 1;
const ENDING: u64 = 2;
const ENDED: u64 = 3;
const DETACHED: u64 = 1 << 2;
const ASLEEP: u64 = 1 << 3;
const GENERATION_SHIFT: u32 = 24;

/// Names a root for as long as its owner has not taken its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RootKey {
    pub index: u32,
    /// The request's number modulo the generations of a ticket.
    pub generation: u64,
}

/// What the ending thread must do after the outcome is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Aftermath {
    /// The owner sleeps on the root's wake word.
    pub asleep: bool,
    /// There is no owner: the ender takes and frees.
    pub detached: bool,
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
    /// Lane, group, whether the id is the caller's.
    pub place: AtomicU64,
    /// Generation, and how many hops of it are open.
    open_hops: AtomicU64,
    pub outcome: OutcomeCell,
    /// The owner sleeps on this.
    pub wake: Word,
}

impl Root {
    /// Free → open. Release: the fields are complete; pairs with every load of the state that goes on to them.
    pub fn open(&self, generation: u64) {
        self.open_hops.store(generation << GENERATION_SHIFT | 1, Ordering::Relaxed);
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

    pub fn is_of(&self, generation: u64) -> bool {
        self.state.load(Ordering::Acquire) >> GENERATION_SHIFT == generation
    }

    /// Open → ending, for whoever comes first. The winner writes the outcome and calls `finish`.
    pub fn try_end(&self, generation: u64) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state >> GENERATION_SHIFT != generation || state & PHASE != OPEN {
                return false;
            }
            let ending = state & !PHASE | ENDING;
            // Acquire: pairs with the owner's earlier marks. The Release comes with `finish`.
            match self.state.compare_exchange_weak(state, ending, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// One hop of this generation has ended; true if it was the last open one.
    pub fn end_hop(&self, generation: u64) -> bool {
        let mut word = self.open_hops.load(Ordering::Relaxed);
        // The root may have been freed and taken again meanwhile; then the word is of another generation.
        while word >> GENERATION_SHIFT == generation && word & !(u64::MAX << GENERATION_SHIFT) > 0 {
            match self.open_hops.compare_exchange_weak(word, word - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return word - 1 == generation << GENERATION_SHIFT,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Ending → ended. Release: publishes the outcome; pairs with the Acquire in `phase`.
    pub fn finish(&self) -> Aftermath {
        let state = self.state.fetch_add(ENDED - ENDING, Ordering::AcqRel);
        debug_assert_eq!(state & PHASE, ENDING);
        Aftermath { asleep: state & ASLEEP != 0, detached: state & DETACHED != 0 }
    }

    /// The owner leaves; true if the root has ended already, so that the owner frees it.
    pub fn detach(&self) -> bool {
        self.state.fetch_or(DETACHED, Ordering::AcqRel) & PHASE == ENDED
    }

    /// The owner is about to sleep on `wake`; false if the root has ended.
    pub fn fall_asleep(&self) -> bool {
        self.state.fetch_or(ASLEEP, Ordering::AcqRel) & PHASE != ENDED
    }

    pub fn wake_up(&self) {
        self.state.fetch_and(!ASLEEP, Ordering::AcqRel);
    }

    /// Ended → free, by whoever took the outcome.
    pub fn free(&self) {
        let state = self.state.load(Ordering::Relaxed);
        debug_assert_eq!(state & PHASE, ENDED);
        // Relaxed: the free list's push publishes it.
        self.state.store(state >> GENERATION_SHIFT << GENERATION_SHIFT | FREE, Ordering::Relaxed);
    }
}

/// One crossing of a root into a group, as the ticket of a frame names it.
#[derive(Default)]
pub(super) struct Hop {
    /// Generation, and whether the hop is open.
    word: AtomicU64,
    /// Lane (16 bits) and incarnation (48 bits).
    lane: AtomicU64,
    /// Position in the lane's request ring, + 1; 0 = not placed yet.
    position: AtomicU64,
}

/// Who a frame comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub lane: u16,
    pub incarnation: u64,
}

impl Source {
    fn to_word(self) -> u64 {
        u64::from(self.lane) | self.incarnation << 16
    }
}

const HOP_OPEN: u64 = 1;

/// How a ticket relates to the hop entry that it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HopState {
    /// Its generation was never issued for this slot.
    NeverIssued,
    /// Of an earlier user of the slot, or closed.
    Past,
    /// Open, and asked of this source.
    Open,
    /// Open, but asked of somebody else.
    Foreign,
}

impl Hop {
    pub fn open(&self, generation: u64, target: Source) {
        self.lane.store(target.to_word(), Ordering::Relaxed);
        self.position.store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `state`.
        self.word.store(generation << GENERATION_SHIFT | HOP_OPEN, Ordering::Release);
    }

    /// Closes the hop of a root that the caller is ending: nobody else opens or closes it meanwhile.
    pub fn close_of_ending(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !HOP_OPEN, Ordering::Release);
    }

    /// Closes the hop if it is still the one of `generation`; whether it did.
    ///
    /// Forbidden: a frame ends its root and closes its hop, and in between the owner has freed the root and the
    /// place has been opened anew. A close without the generation would close the new hop, and its reply would
    /// be dropped as late.
    pub fn close(&self, generation: u64) -> bool {
        let closed = generation << GENERATION_SHIFT;
        let open = closed | HOP_OPEN;
        self.word.compare_exchange(open, closed, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub fn place(&self, position: u64) {
        // Relaxed: the sender places, fences, then looks at its root; who cancels ends the root, fences, then
        // looks here.
        self.position.store(position + 1, Ordering::Relaxed);
    }

    pub fn position(&self) -> Option<u64> {
        self.position.load(Ordering::Relaxed).checked_sub(1)
    }

    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & HOP_OPEN != 0
    }

    pub fn is_asked_of(&self, source: Source) -> bool {
        self.is_open() && self.lane.load(Ordering::Relaxed) == source.to_word()
    }

    pub fn state(&self, generation: u64, source: Source) -> HopState {
        let word = self.word.load(Ordering::Acquire);
        let current = word >> GENERATION_SHIFT;
        // Generations are counted round: what is less than half a round ahead has not been issued.
        let ahead = generation.wrapping_sub(current) % Ticket::GENERATIONS;
        if ahead != 0 && ahead < Ticket::GENERATIONS / 2 {
            HopState::NeverIssued
        } else if ahead != 0 || word & HOP_OPEN == 0 {
            HopState::Past
        } else if self.lane.load(Ordering::Relaxed) == source.to_word() {
            HopState::Open
        } else {
            HopState::Foreign
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LANE: Source = Source { lane: 0, incarnation: 1 };

    #[test]
    fn reply_09_an_end_that_comes_late_leaves_the_places_next_user_alone() {
        let (root, hop) = (Root::default(), Hop::default());
        hop.open(7, LANE);
        root.open(7);
        // The owner took the reply and the place is used again before the frame's reader closes the hop.
        hop.open(8, LANE);
        root.open(8);
        assert!(!hop.close(7) && !root.end_hop(7));
        assert_eq!(hop.state(8, LANE), HopState::Open);
        assert!(hop.close(8) && root.end_hop(8));
        assert!(!hop.close(8) && !root.end_hop(8));
    }
}
