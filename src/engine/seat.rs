//! One worker process of a group, over all its lives: each life has a lane of its own, with new segments, keys and
//! counters. Nothing of a dead one is used again, but what was asked of it can still be told apart: lanes stay
//! where they are until the engine ends.

use std::sync::{Arc, OnceLock};

use super::correlation::Source;
use super::forward::Forwards;
use super::link::Link;
use crate::base::ids::GroupId;
use crate::base::limits::LIVES;
use crate::base::sync::{AtomicU32, Ordering};
use crate::lane::EngineEnd;
use crate::plan::restart::Restart;

/// A process of a group.
pub(super) struct Seat {
    /// Its number in the plan.
    pub lane: u16,
    pub group: GroupId,
    /// Life `n` has incarnation `n + 1`.
    lives: Box<[OnceLock<Box<Link>>]>,
    /// How many there have been.
    count: AtomicU32,
    /// Frames of other groups that wait for room, or for a successor.
    forwards: Arc<Forwards>,
}

impl Seat {
    /// With its first life.
    pub fn new(lane: u16, group: GroupId, restart: Restart, end: EngineEnd) -> Self {
        let may_restart = restart.restarts > 0;
        let lives = (0..if may_restart { LIVES } else { 1 }).map(|_| OnceLock::new()).collect();
        let seat = Self { lane, group, lives, count: AtomicU32::new(0), forwards: Arc::default() };
        seat.begin_life(end, may_restart);
        seat
    }

    /// The incarnation of the next life; `None` if there can be none.
    pub fn next_incarnation(&self) -> Option<u64> {
        let count = self.count.load(Ordering::Acquire) as usize;
        (count < self.lives.len()).then_some(count as u64 + 1)
    }

    /// Begins the next life over the lane of a worker that is ready. Called by one thread.
    pub fn begin_life(&self, end: EngineEnd, may_restart: bool) {
        let incarnation = self.next_incarnation().expect("asked before it was started");
        let source = Source { lane: self.lane, incarnation };
        let may_restart = may_restart && (incarnation as usize) < self.lives.len();
        let link = Link::new(end, source, self.group, Arc::clone(&self.forwards), may_restart);
        let begun = self.lives[incarnation as usize - 1].set(Box::new(link));
        assert!(begun.is_ok(), "one thread begins lives");
        // Release: whoever sees the count sees the life; pairs with the Acquire in `link`.
        self.count.store(incarnation as u32, Ordering::Release);
    }

    /// The latest life.
    #[inline(always)]
    pub fn link(&self) -> &Link {
        let latest = self.count.load(Ordering::Acquire) as usize - 1;
        self.lives[latest].get().expect("counted once it is there")
    }

    /// The life of this incarnation, if there was one.
    pub fn life(&self, incarnation: u64) -> Option<&Link> {
        let number = usize::try_from(incarnation.checked_sub(1)?).ok()?;
        self.lives.get(number)?.get().map(Box::as_ref)
    }
}
