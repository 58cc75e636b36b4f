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

use super::view::{OwnSlot, OwnSlots, PeerSlots, Slot, Slots, View, ViewSlots};
use crate::wire::envelope::{ENVELOPE_WORDS, Envelope};
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

/// A ring over its slots.
pub struct Ring<S> {
    slots: S,
    /// A power of two.
    capacity: u64,
    /// Odd: slots from one position to the next.
    stride: u64,
}

/// A ring that the peer writes.
pub type PeerRing = Ring<PeerSlots>;
/// A ring that this process writes.
pub type OwnRing = Ring<OwnSlots>;

/// The slot of one position, found once and used for all that concerns it.
#[derive(Clone, Copy)]
pub struct Place<S> {
    /// The slot.
    pub slot: S,
    position: u64,
    capacity: u64,
}

impl<const OWN: bool> Ring<ViewSlots<OWN>> {
    /// The ring of `capacity` slots (a power of two) of `slot_bytes` bytes (a power of two) at `slots_at`.
    pub fn in_segment(view: View, slots_at: usize, slot_bytes: usize, capacity: usize) -> Self {
        Self::new(ViewSlots::new(view, slots_at, slot_bytes, capacity), capacity)
    }

    /// Inline payload bytes of a slot.
    #[inline(always)]
    pub fn inline_bytes(&self) -> usize {
        self.slots.inline_bytes()
    }

    /// Where in its segment the inline payload of a position starts.
    #[inline(always)]
    pub fn inline_at(&self, position: u64) -> usize {
        self.slots.inline_at(position.wrapping_mul(self.stride))
    }
}

impl<S: Slots> Ring<S> {
    /// A ring over `capacity` slots (a power of two).
    pub fn new(slots: S, capacity: usize) -> Self {
        assert!(capacity.is_power_of_two());
        Self { slots, capacity: capacity as u64, stride: slot_stride(capacity) as u64 }
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

    /// The slot of a position.
    #[inline(always)]
    pub fn place(&self, position: u64) -> Place<S::Slot<'_>> {
        let slot = self.slots.slot(position.wrapping_mul(self.stride));
        Place { slot, position, capacity: self.capacity }
    }
}

impl<S: Slot> Place<S> {
    /// Looks at the position. Acquire: pairs with the Release of [`Place::publish`].
    #[inline(always)]
    pub fn look(&self) -> Look {
        let word = self.slot.commit_word();
        // Wrapping: who looks from beside a lane takes the position from a word that may be anything.
        if word == self.position.wrapping_add(1) {
            Look::Ready
        } else if word == self.empty() {
            Look::Empty
        } else {
            Look::Corrupt
        }
    }

    #[inline(always)]
    fn empty(&self) -> u64 {
        if self.position < self.capacity { 0 } else { self.position - (self.capacity - 1) }
    }

    /// Copies the envelope of a position that [`Place::look`] called ready. Read once: check the copy.
    #[inline(always)]
    pub fn envelope(&self) -> Envelope {
        let mut words = self.slot.words();
        words[0] = self.position + 1;
        Envelope::from_words(words)
    }
}

impl<S: OwnSlot> Place<S> {
    /// Writes the envelope of a claimed position, its commit word left out of `words`, and makes the position
    /// readable. Release: pairs with the Acquire of [`Place::look`].
    #[inline(always)]
    pub fn publish(&self, words: [u64; ENVELOPE_WORDS - 1]) {
        let [first, second, ticket, deadline, tags, payload, head] = words;
        self.slot.publish([self.position + 1, first, second, ticket, deadline, tags, payload, head]);
    }
}
