//! A ring of slots in one segment. Each slot carries its own commit word.
//!
//! Owns: the arithmetic of positions and the meaning of commit words. Holds no position itself:
//! positions are private to whoever writes or reads.
//!
//! ```text
//! commit word of position p:   empty(p) ── write, then store ──▶ p + 1 = ready(p) = empty(p + capacity)
//! ```
//!
//! Invariants: one process writes the ring; a slot is rewritten only after its reader's process said that
//! it is free; a word that is neither `empty(p)` nor `ready(p)` is corruption, and only whoever holds the
//! right to read position p may judge so (to others p may just be old).
//!
//! Source: the bounded queue with per-cell sequence numbers by D. Vyukov. Deviations: one process on each
//! side claims positions privately, so cells carry no "free" value; being free travels in another segment.

use super::view::Memory;
use crate::wire::envelope::{ENVELOPE_BYTES, ENVELOPE_WORDS, Envelope};
use crate::wire::geometry::slot_stride;

/// What a look at a slot shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Not written yet.
    Empty,
    /// Committed; may be read.
    Ready,
    /// An impossible value.
    Corrupt,
}

/// Place and size of a ring within its segment.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    slots_at: usize,
    slot_bytes: usize,
    /// A power of two.
    capacity: u64,
    /// Odd: slots from one position to the next.
    stride: u64,
}

impl Ring {
    /// A ring of `capacity` slots (a power of two) of `slot_bytes` bytes, starting at `slots_at`.
    pub fn new(slots_at: usize, slot_bytes: usize, capacity: usize) -> Self {
        assert!(capacity.is_power_of_two() && slot_bytes.is_multiple_of(8) && slots_at.is_multiple_of(8));
        let stride = slot_stride(capacity) as u64;
        Self { slots_at, slot_bytes, capacity: capacity as u64, stride }
    }

    /// Slots.
    #[inline(always)]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The slot's number within the ring: see [`slot_stride`].
    #[inline(always)]
    pub fn index(&self, position: u64) -> usize {
        (position.wrapping_mul(self.stride) & (self.capacity - 1)) as usize
    }

    #[inline(always)]
    fn slot_at(&self, position: u64) -> usize {
        self.slots_at + self.index(position) * self.slot_bytes
    }

    /// Where the inline payload of a position starts.
    #[inline(always)]
    pub fn inline_at(&self, position: u64) -> usize {
        self.slot_at(position) + ENVELOPE_BYTES
    }

    /// Inline payload bytes of a slot.
    #[inline(always)]
    pub fn inline_bytes(&self) -> usize {
        self.slot_bytes - ENVELOPE_BYTES
    }

    #[inline(always)]
    fn empty(&self, position: u64) -> u64 {
        if position < self.capacity { 0 } else { position + 1 - self.capacity }
    }

    /// Looks at a position. Acquire: pairs with the Release of [`Ring::commit`].
    #[inline(always)]
    pub fn look(&self, memory: &impl Memory, position: u64) -> Look {
        let word = memory.load_acquire(self.slot_at(position));
        if word == position + 1 {
            Look::Ready
        } else if word == self.empty(position) {
            Look::Empty
        } else {
            Look::Corrupt
        }
    }

    /// Copies the envelope of a position that [`Ring::look`] called ready. Read once: check the copy.
    #[inline(always)]
    pub fn envelope(&self, memory: &impl Memory, position: u64) -> Envelope {
        let mut words = memory.load_words::<ENVELOPE_WORDS>(self.slot_at(position));
        words[0] = position + 1;
        Envelope::from_words(words)
    }

    /// Writes the envelope of a claimed position, all but its commit word.
    #[inline(always)]
    pub fn write_envelope(&self, memory: &impl Memory, position: u64, words: &[u64; ENVELOPE_WORDS - 1]) {
        memory.store_words(self.slot_at(position) + 8, words);
    }

    /// Makes a written position readable. Release: pairs with the Acquire of [`Ring::look`].
    #[inline(always)]
    pub fn commit(&self, memory: &impl Memory, position: u64) {
        memory.store_release(self.slot_at(position), position + 1);
    }
}
