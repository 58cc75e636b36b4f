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
//! exchange, and three marks: the owner sleeps, the owner has gone, nobody waits in a call.

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
    /// Generation, and how many of its hops are open.
    open_hops: AtomicU64,
    pub outcome: OutcomeCell,
    /// The owner sleeps on this.
    pub wake: Word,
}

impl Root {
    /// Free → open. SeqCst: stands between the registration and the look at the lane's state, and pairs with
    /// the deadlines' bounds.
    pub fn open(&self, generation: u64) {
        self.state.swap(generation << GENERATION_SHIFT | OPEN, Ordering::SeqCst);
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

    /// The first hop is open.
    pub fn open_branch(&self, generation: u64) {
        // Relaxed: published by `open`.
        self.open_hops.store(generation << GENERATION_SHIFT | 1, Ordering::Relaxed);
    }

    /// A hop has been closed; whether it was the last one. Says no for an earlier user of the place, which
    /// may have been ended and freed while its last frame was being judged.
    pub fn end_branch(&self, generation: u64) -> bool {
        let mut hops = self.open_hops.load(Ordering::Acquire);
        loop {
            if hops >> GENERATION_SHIFT != generation {
                return false;
            }
            match self.open_hops.compare_exchange_weak(hops, hops - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return hops - 1 == generation << GENERATION_SHIFT,
                Err(now) => hops = now,
            }
        }
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

    /// Closes the hop if it is still this generation's.
    pub fn close(&self, generation: u64) {
        let open = generation << GENERATION_SHIFT | HOP_OPEN;
        // Fails only if the place has a new user, whose hop it is not ours to close.
        let _ = self.word.compare_exchange(open, open & !HOP_OPEN, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub fn place(&self, position: u64) {
        // SeqCst: the sender places, then looks at its root; who cancels ends the root, then looks here.
        self.position.store(position + 1, Ordering::SeqCst);
    }

    pub fn position(&self) -> Option<u64> {
        self.position.load(Ordering::SeqCst).checked_sub(1)
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
