//! How long to look before sleeping: a budget with an end.
//!
//! The first looks follow each other at once: a pause takes longer than the line that is waited for (27 ns here), and
//! between two of them it may have come for as long. Where both sides share a processor, the peer cannot run while we
//! look, so looking gives the processor away at once (a scheduling quantum costs 1,000 times a yield). Each side publishes
//! the processor it waits on, and only when that changes.

use super::lull::Lull;
use super::view::{Memory, View};
use crate::base::sync::pause;
use crate::base::waiting::Waiting;
use crate::os::{clock, cpu};

/// Looks without a pause, before the first question where the peer runs; an answer from another processor comes within
/// these.
const QUICK_LOOKS: u32 = 200;
/// Looks between two readings of the clock while pausing.
const LOOKS_PER_CLOCK: u32 = 64;
/// Looks between two readings of the clock while yielding, each look being a system call.
const YIELDS_PER_CLOCK: u32 = 4;
/// `adaptive`: looking without giving the processor away; most answers of a busy lane arrive within this.
const PAUSING_NS: u64 = 10_000;
/// `adaptive`: looking in all: about what sleeping and waking across processors costs.
const ADAPTIVE_NS: u64 = 60_000;
/// `adaptive`: bytes that a peer writes or copies in a ns where that takes long, between core complexes.
const BYTES_PER_NS: u64 = 8;
/// `spin`: the processor is offered to others this often, in case the peer waits for it.
const SPIN_YIELD_NS: u64 = 50_000;

/// Where each side publishes its processor.
#[derive(Clone, Copy)]
pub struct Processors<'a> {
    /// This process's segment, and the word's place in it.
    pub mine: (&'a View, usize),
    /// The peer's segment, and the word's place in it.
    pub theirs: (&'a View, usize),
}

impl Processors<'_> {
    /// Whether the peer last waited on the processor that this thread runs on.
    fn shared(&self) -> bool {
        let here = u64::from(cpu::current()) + 1;
        if self.mine.0.load(self.mine.1) != here {
            self.mine.0.store(self.mine.1, here);
        }
        self.theirs.0.load(self.theirs.1) == here
    }
}

/// What to do after a look that found nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Look again.
    Look,
    /// Look again; the clock has just been read.
    LookAt(u64),
    /// The budget is used up.
    Sleep,
}

/// The budget of one wait.
pub struct Spinner {
    policy: Waiting,
    /// Both sides were last seen on one processor.
    shares: bool,
    looks: u32,
    /// How much longer the peer takes because of the payload that it has at hand.
    payload_ns: u64,
    began_ns: u64,
    yielded_ns: u64,
    yielding: bool,
}

impl Spinner {
    /// A fresh budget. `shares`: what [`Spinner::shares`] said after the last wait; if so, the processor is given
    /// away at once.
    #[inline(always)]
    pub fn new(policy: Waiting, shares: bool) -> Self {
        let looks = if shares { QUICK_LOOKS } else { 0 };
        Self { policy, shares, looks, payload_ns: 0, began_ns: 0, yielded_ns: 0, yielding: shares }
    }

    /// A budget for a peer that has a payload of so many bytes at hand: falling asleep while it copies them would
    /// cost more than waiting on, and as little as it would then take no wait for it is wasted for long.
    #[inline(always)]
    pub fn beside_payload(self, bytes: u64) -> Self {
        Self { payload_ns: bytes / BYTES_PER_NS, ..self }
    }

    /// A fresh budget, behind a lull where there is a processor for each side.
    #[inline(always)]
    pub fn behind(lull: Lull, policy: Waiting, shares: bool) -> Self {
        if policy != Waiting::Block && !shares {
            lull.pass();
        }
        Self::new(policy, shares)
    }

    /// How many looks have found nothing.
    #[inline(always)]
    pub fn looks(&self) -> u32 {
        self.looks
    }

    /// Whether both sides were last seen on one processor.
    #[inline(always)]
    pub fn shares(&self) -> bool {
        self.shares
    }

    /// The same wait, from the beginning.
    pub fn renew(&mut self) {
        *self = Self { payload_ns: self.payload_ns, ..Self::new(self.policy, self.shares) };
    }

    /// After a look that found nothing: waits a little unless it was one of the first, or says that it is time to sleep.
    #[inline(always)]
    pub fn step(&mut self, processors: Processors<'_>) -> Next {
        if self.policy == Waiting::Block {
            return Next::Sleep;
        }
        self.looks += 1;
        if self.looks < QUICK_LOOKS {
            return Next::Look;
        }
        self.slow_step(processors)
    }

    #[cold]
    fn slow_step(&mut self, processors: Processors<'_>) -> Next {
        let period = if self.yielding { YIELDS_PER_CLOCK } else { LOOKS_PER_CLOCK };
        if self.yielding {
            // One of the two may have been moved; asking costs nothing beside a yield.
            let shared = std::mem::replace(&mut self.shares, processors.shared());
            if shared && !self.shares {
                self.yielding = false;
                return Next::Look;
            }
            cpu::yield_now();
        } else {
            pause();
        }
        if !(self.looks - QUICK_LOOKS).is_multiple_of(period) {
            return Next::Look;
        }
        let now_ns = clock::monotonic_ns();
        if self.began_ns == 0 {
            self.began_ns = now_ns;
            self.yielded_ns = now_ns;
        }
        let waited_ns = now_ns.saturating_sub(self.began_ns);
        self.shares = processors.shared();
        match self.policy {
            Waiting::Adaptive if waited_ns >= ADAPTIVE_NS + self.payload_ns => return Next::Sleep,
            Waiting::Adaptive => self.yielding = self.shares || waited_ns >= PAUSING_NS + self.payload_ns,
            _ => {
                self.yielding = self.shares;
                if now_ns.saturating_sub(self.yielded_ns) >= SPIN_YIELD_NS {
                    self.yielded_ns = now_ns;
                    cpu::yield_now();
                }
            }
        }
        Next::LookAt(now_ns)
    }
}
