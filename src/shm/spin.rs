//! How long to look before sleeping: a budget with an end.
//!
//! Looking costs a pause of some ns. Where both sides share a processor, the peer cannot run while we look,
//! so looking gives the processor away at once (a scheduling quantum costs 1,000 times a yield). Each side
//! publishes the processor it waits on, and only when that changes.

use super::view::{Memory, View};
use crate::base::sync::pause;
use crate::base::waiting::Waiting;
use crate::os::{clock, cpu};

/// Looks before the first question where the peer runs.
const QUICK_LOOKS: u32 = 48;
/// Looks between two readings of the clock while pausing.
const LOOKS_PER_CLOCK: u32 = 64;
/// Looks between two readings of the clock while yielding, each look being a system call.
const YIELDS_PER_CLOCK: u32 = 4;
/// `adaptive`: looking without giving the processor away; most answers of a busy lane arrive within this.
const PAUSING_NS: u64 = 10_000;
/// `adaptive`: looking in all: about what sleeping and waking across processors costs.
const ADAPTIVE_NS: u64 = 60_000;
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
    looks: u32,
    began_ns: u64,
    yielded_ns: u64,
    yielding: bool,
}

impl Spinner {
    /// A fresh budget.
    #[inline(always)]
    pub fn new(policy: Waiting) -> Self {
        Self { policy, looks: 0, began_ns: 0, yielded_ns: 0, yielding: false }
    }

    /// Waits a little, or says that it is time to sleep.
    #[inline(always)]
    pub fn step(&mut self, processors: Processors<'_>) -> Next {
        if self.policy == Waiting::Block {
            return Next::Sleep;
        }
        self.looks += 1;
        if self.looks < QUICK_LOOKS {
            pause();
            return Next::Look;
        }
        self.slow_step(processors)
    }

    #[cold]
    fn slow_step(&mut self, processors: Processors<'_>) -> Next {
        let period = if self.yielding { YIELDS_PER_CLOCK } else { LOOKS_PER_CLOCK };
        if !(self.looks - QUICK_LOOKS).is_multiple_of(period) {
            if self.yielding {
                cpu::yield_now()
            } else {
                pause()
            }
            return Next::Look;
        }
        let now_ns = clock::monotonic_ns();
        if self.began_ns == 0 {
            self.began_ns = now_ns;
            self.yielded_ns = now_ns;
        }
        let waited_ns = now_ns.saturating_sub(self.began_ns);
        let same_processor = processors.shared();
        match self.policy {
            Waiting::Adaptive if waited_ns >= ADAPTIVE_NS => return Next::Sleep,
            Waiting::Adaptive => self.yielding = same_processor || waited_ns >= PAUSING_NS,
            _ => {
                self.yielding = same_processor;
                if now_ns.saturating_sub(self.yielded_ns) >= SPIN_YIELD_NS {
                    self.yielded_ns = now_ns;
                    cpu::yield_now();
                }
            }
        }
        Next::LookAt(now_ns)
    }
}
