//! Room for payloads that do not fit a slot: blocks of the writer's own segment.
//!
//! Owns: which units of the arena are taken, in private memory of the writing process. Never reads the
//! arena, never trusts what a peer says about a block: a returned offset must name a published block.
//!
//! Two levels of bitmaps, each word changed by compare-and-swap, so that taking and giving back take no
//! lock, from any thread:
//!
//! ```text
//! large:    one bit per 64 units. Set = taken, whole or split.
//! split:    one bit per large unit that may be split: where to look for small units. A hint.
//! small[i]: one bit per unit of large unit i while that is split; all ones while it is not.
//! ```
//!
//! A payload of up to half a large unit takes a run of small units; a larger one a run of large units. The
//! whole arena can be one block. A split unit stays split when its last block comes back, since the next one
//! is about to be taken. Where large units are wanted and none are to be had, those whose small bits are all
//! clear are closed: by the thread that swaps `0 → all ones`, and only that thread clears the large bit.
//!
//! Large blocks take turns among a few places: to write what the peer has only just read, and still has in its
//! own cache, takes half as long again as to write what has left that since.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::view::View;
use crate::base::limits::CACHE_LINE_BYTES;
use crate::base::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::wire::geometry::units_of;

/// The arena has no room for a block now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// An offset that names no published block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotPublished;

/// Which units are taken. Private to the writing process.
pub(super) struct UnitMap {
    large: AtomicU64,
    split: AtomicU64,
    /// Large unit at which the next run of them is looked for first. A hint.
    turn: AtomicU32,
    small: Box<[AtomicU64]>,
}

/// A run of `count` ones, shifted to bit `at`.
fn run(at: u32, count: u32) -> u64 {
    (u64::MAX >> (64 - count)) << at
}

/// First bit of `count` neighbouring zeros in `taken`.
fn find_run(taken: u64, count: u32) -> Option<u32> {
    let mut starts = !taken;
    // After each step a set bit means that a longer run starts there.
    let mut length = 1;
    while length < count {
        let step = length.min(count - length);
        starts &= starts >> step;
        length += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

/// Places among which large blocks of one size take turns.
const TURNS: u32 = 4;

impl UnitMap {
    /// Units per large unit.
    const SPLIT: u32 = 64;

    pub(super) fn new(units: usize) -> Self {
        let large = (units as u32 / Self::SPLIT).max(1);
        let unusable = if large == 64 { 0 } else { !run(0, large) };
        Self {
            large: AtomicU64::new(unusable),
            split: AtomicU64::new(0),
            turn: AtomicU32::new(0),
            small: (0..large).map(|_| AtomicU64::new(u64::MAX)).collect(),
        }
    }

    /// Takes `units` neighbouring units; returns the first.
    #[inline]
    pub(super) fn take(&self, units: u32) -> Option<u32> {
        if units <= Self::SPLIT / 2 {
            return self.take_small(units);
        }
        let count = units.div_ceil(Self::SPLIT);
        let large = self.take_large(count).or_else(|| self.take_closed(count));
        large.map(|large| large * Self::SPLIT)
    }

    #[inline]
    fn take_small(&self, units: u32) -> Option<u32> {
        // Relaxed, here and below: only hints; the compare-and-swap decides.
        let mut split = self.split.load(Ordering::Relaxed);
        while split != 0 {
            let large = split.trailing_zeros();
            split &= split - 1;
            let word = &self.small[large as usize];
            let mut taken = word.load(Ordering::Relaxed);
            while let Some(at) = find_run(taken, units) {
                // Acquire: pairs with the Release of `give`, so that the previous user's accesses are over.
                match word.compare_exchange_weak(
                    taken,
                    taken | run(at, units),
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(large * Self::SPLIT + at),
                    Err(now) => taken = now,
                }
            }
        }
        let large = self.take_large(1)?;
        // Release: opens the split unit to others; pairs with the Acquire of their compare-and-swap.
        self.small[large as usize].store(run(0, units), Ordering::Release);
        self.split.fetch_or(1 << large, Ordering::Relaxed);
        Some(large * Self::SPLIT)
    }

    fn take_large(&self, count: u32) -> Option<u32> {
        if count as usize > self.small.len() {
            return None;
        }
        // Apart by a power of two, so that one that is held leaves half the arena in one piece.
        let step = count.next_power_of_two();
        // In one half of the arena: what is held in place, of blocks that are let go one after the other, lies in one.
        let places = TURNS.min(self.small.len() as u32 / 2 / step);
        let takes_turns = places > 1;
        // Relaxed: a hint.
        let turn = takes_turns.then(|| self.turn.load(Ordering::Relaxed));
        let turn = turn.filter(|turn| (1..places * step).contains(turn));
        let mut taken = self.large.load(Ordering::Relaxed);
        loop {
            let in_turn = turn.and_then(|turn| find_run(taken | run(0, turn), count));
            let at = in_turn.or_else(|| find_run(taken, count))?;
            // Acquire: pairs with the Release of `give_large`.
            match self.large.compare_exchange_weak(
                taken,
                taken | run(at, count),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if takes_turns {
                        self.turn.store(at + step, Ordering::Relaxed);
                    }
                    return Some(at);
                }
                Err(now) => taken = now,
            }
        }
    }

    /// [`UnitMap::take_large`] after the split units that nobody uses have been closed.
    ///
    /// Who comes while another thread does this may find no room where there is some. That other thread takes it, or
    /// somebody else holds room; either way there is a notice of room to come.
    #[cold]
    fn take_closed(&self, count: u32) -> Option<u32> {
        let mut split = self.split.load(Ordering::Relaxed);
        while split != 0 {
            let large = split.trailing_zeros();
            split &= split - 1;
            let word = &self.small[large as usize];
            // Acquire: pairs with the Release of `give`.
            if word.compare_exchange(0, u64::MAX, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.split.fetch_and(!(1 << large), Ordering::Relaxed);
                self.give_large(large, 1);
            }
        }
        self.take_large(count)
    }

    /// Gives back what `take(units)` returned.
    #[inline]
    pub(super) fn give(&self, first: u32, units: u32) {
        let large = first / Self::SPLIT;
        if units > Self::SPLIT / 2 {
            return self.give_large(large, units.div_ceil(Self::SPLIT));
        }
        let mask = run(first % Self::SPLIT, units);
        let before = self.small[large as usize].fetch_and(!mask, Ordering::Release);
        debug_assert!(before & mask == mask, "units given back twice");
    }

    /// Takes whatever is free, for good.
    fn take_all(&self) {
        self.large.fetch_or(u64::MAX, Ordering::AcqRel);
        for word in &self.small {
            word.fetch_or(u64::MAX, Ordering::AcqRel);
        }
    }

    fn give_large(&self, at: u32, count: u32) {
        let mask = run(at, count);
        let before = self.large.fetch_and(!mask, Ordering::Release);
        debug_assert!(before & mask == mask, "large units given back twice");
    }

    /// Whether nothing is taken.
    #[cfg(all(test, not(loom)))]
    fn is_empty(&self) -> bool {
        let units = self.small.len() as u32;
        let unusable = if units == 64 { 0 } else { !run(0, units) };
        let is_free = |large: u32, word: &AtomicU64| match word.load(Ordering::Acquire) {
            0 => true,
            word => word == u64::MAX && self.large.load(Ordering::Acquire) >> large & 1 == 0,
        };
        let mut words = (0..).zip(&self.small);
        self.large.load(Ordering::Acquire) & unusable == unusable
            && words.all(|(large, word)| is_free(large, word))
    }
}

/// The arena of a segment that this process writes.
pub struct Arena {
    view: View,
    at: usize,
    bytes: usize,
    unit_bytes: usize,
    map: UnitMap,
    /// Units of the published block that starts at this unit; 0 = none does.
    published: Box<[AtomicU32]>,
    /// 1 once no block is to be had any more: then none comes back either.
    closed: AtomicU32,
}

impl Arena {
    /// The arena of `bytes` bytes (a power of two) at `at` of a writable segment.
    pub fn new(view: View, at: usize, bytes: usize) -> Self {
        let units = units_of(bytes);
        assert!(view.is_writable() && bytes.is_power_of_two() && at.is_multiple_of(CACHE_LINE_BYTES));
        assert!(at + bytes <= view.bytes());
        Self {
            view,
            at,
            bytes,
            unit_bytes: bytes / units,
            map: UnitMap::new(units),
            published: (0..units).map(|_| AtomicU32::new(0)).collect(),
            closed: AtomicU32::new(0),
        }
    }

    /// Bytes of the largest possible block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a block of at least `len` bytes (1 ≤ `len` ≤ [`Arena::bytes`]). Its content is unspecified:
    /// bytes of earlier payloads of the same segment.
    pub fn take(self: &Arc<Self>, len: usize) -> Result<Block, NoRoom> {
        assert!((1..=self.bytes).contains(&len), "block size out of range");
        let units = len.div_ceil(self.unit_bytes) as u32;
        // Counted before it is taken: see `close`.
        let arena = Arc::clone(self);
        let first = self.map.take(units).ok_or(NoRoom)?;
        // What the peer has read of it comes back here while its user is still about to write.
        self.view.prefetch_write(self.place_of(first), len);
        Ok(Block { arena, first, units, len })
    }

    fn place_of(&self, unit: u32) -> usize {
        self.at + unit as usize * self.unit_bytes
    }

    /// Lets no block be taken any more; true once nobody has one that has not been published. `self` must be the
    /// only reference but those of blocks, and nothing may be taken back meanwhile.
    ///
    /// A reference is counted before its block is taken and until that is given back. So once none is counted
    /// after `closed` was raised, who looked at that too early is over, and taken units stay taken. Then all are
    /// taken, and once none is counted behind that, who was about to split a large unit is over too. Taken once
    /// more, nothing is left; and if none is counted still, nobody took anything in between.
    pub fn close(self: &Arc<Self>) -> bool {
        self.closed.store(1, Ordering::SeqCst);
        let is_alone = || {
            // Acquire, by the fence: pairs with the Release of the reference that was dropped last.
            let is_alone = Arc::strong_count(self) == 1;
            fence(Ordering::SeqCst);
            is_alone
        };
        let take_all = || {
            self.map.take_all();
            fence(Ordering::SeqCst);
            true
        };
        is_alone() && take_all() && is_alone() && take_all() && is_alone()
    }

    /// Takes back a published block that the peer has let go.
    pub fn take_back(&self, payload_at: u32) -> Result<(), NotPublished> {
        let offset = (payload_at as usize).checked_sub(1).ok_or(NotPublished)? * CACHE_LINE_BYTES;
        if !offset.is_multiple_of(self.unit_bytes) {
            return Err(NotPublished);
        }
        let first = offset / self.unit_bytes;
        let units = self.published.get(first).map_or(0, |units| units.swap(0, Ordering::AcqRel));
        if units == 0 {
            return Err(NotPublished);
        }
        self.map.give(first as u32, units);
        Ok(())
    }
}

/// A block of the arena that this process owns and nobody else knows of yet. Given back when dropped.
pub struct Block {
    arena: Arc<Arena>,
    /// INVARIANT: units `first..first + units` are taken for this block alone, and hold `len` bytes.
    first: u32,
    units: u32,
    len: usize,
}

impl Block {
    /// Whether it lies in the lower half of the arena, where blocks are looked for first.
    pub fn is_in_lower_half(&self) -> bool {
        (self.first + self.units) as usize <= self.arena.published.len() / 2
    }

    fn at(&self) -> usize {
        self.arena.place_of(self.first)
    }

    /// Hands the block over to the peer: returns its offset as it travels in an envelope. It comes back
    /// through [`Arena::take_back`].
    pub fn publish(self) -> u32 {
        let payload_at = (self.first as usize * self.arena.unit_bytes / CACHE_LINE_BYTES) as u32 + 1;
        self.arena.published[self.first as usize].store(self.units, Ordering::Release);
        // The units now belong to the published block; only the count of the arena itself is dropped.
        let mut block = std::mem::ManuallyDrop::new(self);
        // SAFETY: `block` is never used or dropped again, so the reference is dropped exactly once.
        unsafe { std::ptr::drop_in_place(&raw mut block.arena) };
        payload_at
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.arena.closed.load(Ordering::SeqCst) == 0 {
            self.arena.map.give(self.first, self.units);
        }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: by the invariant the range belongs to this block alone, and the segment is written by this
        // process only (the arena demands a writable view); `&self` excludes a mutable slice meanwhile.
        unsafe { self.arena.view.slice(self.at(), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes the slice the only one.
        unsafe { self.arena.view.slice_mut(self.at(), self.len) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::os::map::Mapping;
    use crate::os::memfd;
    use std::os::fd::AsFd;

    fn arena(bytes: usize) -> Arc<Arena> {
        let fd = memfd::create("arena-test", bytes as u64).unwrap();
        let view = View::new(Mapping::writable(fd.as_fd(), bytes).unwrap());
        Arc::new(Arena::new(view, 0, bytes))
    }

    #[test]
    fn finds_runs_of_every_length() {
        assert_eq!(find_run(0, 64), Some(0));
        assert_eq!(find_run(1, 64), None);
        assert_eq!(find_run(0b1011, 2), Some(4));
        assert_eq!(find_run(!0b0110_0000, 2), Some(5));
        assert_eq!(find_run(u64::MAX, 1), None);
        for count in 1..=64 {
            assert_eq!(find_run(!run(64 - count, count), count), Some(64 - count));
        }
    }

    #[test]
    fn blocks_never_overlap_and_all_room_comes_back() {
        let arena = arena(1 << 18);
        let mut seed = 7u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        let mut blocks: Vec<(Block, u8)> = Vec::new();
        for round in 0..20_000 {
            if next() % 2 == 0 {
                let len = 1 + next() % [200, 3_000, 70_000][next() % 3];
                if let Ok(mut block) = arena.take(len) {
                    block.fill(round as u8);
                    blocks.push((block, round as u8));
                }
            } else if !blocks.is_empty() {
                let (block, value) = blocks.swap_remove(next() % blocks.len());
                assert!(block.iter().all(|byte| *byte == value));
                if next() % 2 == 0 {
                    let at = block.publish();
                    arena.take_back(at).unwrap();
                    assert_eq!(arena.take_back(at), Err(NotPublished));
                }
            }
        }
        drop(blocks);
        assert!(arena.map.is_empty());
        assert_eq!(arena.take(1 << 18).unwrap().len(), 1 << 18);
    }

    #[test]
    fn half_an_arena_fits_twice() {
        for bytes in [4096, 1 << 16, 1 << 20] {
            let arena = arena(bytes);
            let halves = [arena.take(bytes / 2).ok(), arena.take(bytes / 2).ok()];
            assert!(halves.iter().all(Option::is_some));
        }
    }

    #[test]
    fn large_blocks_take_turns_and_leave_half_the_arena_in_one_piece() {
        for len in [16 << 10, 12 << 10, 64 << 10, 40 << 10] {
            let arena = arena(1 << 18);
            let mut places = Vec::new();
            for _ in 0..8 {
                let block = arena.take(len).unwrap();
                assert!(arena.take(1 << 17).is_ok(), "{len} bytes at {}", block.at());
                places.push(block.at());
                drop(block);
            }
            // All in the same half: of blocks of an eighth of the arena four, of a quarter two.
            let turns = if len <= 32 << 10 { 4 } else { 2 };
            assert!(places.iter().zip(&places[turns..]).all(|(one, next)| one == next), "{len}: {places:?}");
            assert!(places[..turns].is_sorted_by(|one, next| one < next), "{len}: {places:?}");
            assert!(places[turns - 1] - places[0] < 1 << 17, "{len}: {places:?}");
        }
    }

    #[test]
    fn small_blocks_come_back_to_the_same_place_until_a_large_one_needs_it() {
        let arena = arena(1 << 18);
        let at = arena.take(200).unwrap().at();
        assert_eq!(arena.take(200).unwrap().at(), at);
        let whole = arena.take(1 << 18).unwrap();
        assert!(arena.take(200).is_err());
        drop(whole);
        let small = arena.take(200).unwrap();
        assert!(arena.take(1 << 18).is_err());
        drop(small);
        assert!(arena.take(1 << 18).is_ok());
    }

    #[test]
    fn a_peer_cannot_return_what_was_not_published() {
        let arena = arena(1 << 20);
        let block = arena.take(1000).unwrap();
        for at in [0, 1, 2, 3, 5, u32::MAX] {
            assert_eq!(arena.take_back(at), Err(NotPublished));
        }
        assert_eq!(arena.take_back(block.publish()), Ok(()));
    }

    #[test]
    fn a_closed_arena_is_left_by_the_last_block_and_entered_by_none() {
        for _ in 0..200 {
            let arena = arena(1 << 18);
            let (kept, published) = (arena.take(9_000).unwrap(), arena.take(70_000).unwrap());
            published.publish();
            std::thread::scope(|scope| {
                for thread in 0..2u8 {
                    let arena = &arena;
                    scope.spawn(move || {
                        while let Ok(mut block) = arena.take(1 + usize::from(thread) * 5_000) {
                            block.fill(thread);
                        }
                    });
                }
                assert!(!arena.close(), "one is kept");
                drop(kept);
                while !arena.close() {
                    std::thread::yield_now();
                }
                assert!(arena.take(1).is_err());
            });
            assert!(arena.take(1).is_err() && arena.close());
        }
    }

    #[test]
    fn threads_share_the_map() {
        let arena = arena(1 << 18);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let arena = &arena;
                scope.spawn(move || {
                    for i in 0..20_000usize {
                        if let Ok(mut block) = arena.take(1 + i * 37 % 9_000) {
                            block.fill(thread);
                            assert!(block.iter().all(|byte| *byte == thread));
                        }
                    }
                });
            }
        });
        assert!(arena.map.is_empty());
    }
}
