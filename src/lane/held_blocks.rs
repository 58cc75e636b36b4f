//! Blocks of the reply arena that this process holds, each from the frame that names it until it is released.
//!
//! Owns: which blocks are held, and the next place of the release ring. A frame that names a held block is an
//! impossible one, so each block is released once.
//!
//! Blocks that are held for as long as a caller likes lie in one half of the arena: whoever is about to leave one in
//! place asks [`EngineEnd::holds_in_both_halves`] behind [`EngineEnd::hold`], as reader, and else copies it out. So
//! the other half is free in one piece as soon as what is in flight has ended. A block is cut out of units and of runs
//! of units that never cross the middle unless its payload does, so what the payload covers tells where it lies.

use super::engine_end::EngineEnd;
use crate::base::failure::Rule;
use crate::base::limits::CACHE_LINE_BYTES;
use crate::base::sync::{AtomicU64, Ordering};
use crate::shm::block::InPlace;
use crate::shm::view::Memory;
use crate::wire::geometry::units_of;
use crate::wire::release;

/// A block of the reply arena that this process holds: where it is, and how much of it is payload. Goes back by
/// [`EngineEnd::release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockPlace {
    /// As in the envelope.
    pub payload_at: u32,
    /// Bytes.
    pub len: u32,
}

/// Where the count of the upper half of the arena stands in its word.
const HALF_SHIFT: u32 = 32;

impl EngineEnd {
    /// Checks where a frame's block lies and holds it. An error changes nothing.
    #[inline(never)]
    pub(super) fn hold(&self, block: BlockPlace) -> Result<BlockPlace, Rule> {
        let arena_bytes = self.geometry.reply_arena_bytes;
        let offset = block.offset();
        if !offset.is_multiple_of(self.unit_bytes()) || offset >= arena_bytes {
            return Err(Rule::PayloadPlace);
        }
        if block.len as usize > arena_bytes - offset {
            return Err(Rule::PayloadLength);
        }
        // Whoever waits for it reads it next.
        self.reply.prefetch_read(self.reply_layout.arena_at + offset, block.len as usize);
        let (word, bit) = self.held_bit(block);
        if word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return Err(Rule::BlockHeld);
        }
        self.held_in_halves.fetch_add(self.halves_of(block), Ordering::Relaxed);
        Ok(block)
    }

    /// Undoes [`EngineEnd::hold`]: the frame is still to be read.
    #[cold]
    pub(super) fn hold_not(&self, block: BlockPlace) {
        self.held_in_halves.fetch_sub(self.halves_of(block), Ordering::Relaxed);
        let (word, bit) = self.held_bit(block);
        word.fetch_and(!bit, Ordering::AcqRel);
    }

    /// The smallest block of the reply arena.
    fn unit_bytes(&self) -> usize {
        let arena_bytes = self.geometry.reply_arena_bytes;
        arena_bytes / units_of(arena_bytes)
    }

    /// What says whether the block is held.
    fn held_bit(&self, block: BlockPlace) -> (&AtomicU64, u64) {
        let unit = block.offset() / self.unit_bytes();
        (&self.held[unit / 64], 1 << (unit % 64))
    }

    /// What a held block counts in `held_in_halves`: one in each half of the arena that it lies in.
    fn halves_of(&self, block: BlockPlace) -> u64 {
        let middle = self.geometry.reply_arena_bytes / 2;
        let (begin, end) = (block.offset(), block.offset() + block.len.max(1) as usize);
        u64::from(begin < middle) | u64::from(end > middle) << HALF_SHIFT
    }

    /// Whether neither half of the reply arena is free of held blocks, so that the worker may lack room.
    pub fn holds_in_both_halves(&self) -> bool {
        // Relaxed: only the reader adds, and it is the reader who asks; what others let go meanwhile only makes room.
        let held = self.held_in_halves.load(Ordering::Relaxed);
        held as u32 != 0 && held >> HALF_SHIFT != 0
    }

    /// Gives a block back to the worker. Once for each frame that came with one.
    pub fn release(&self, block: BlockPlace) {
        self.held_in_halves.fetch_sub(self.halves_of(block), Ordering::Relaxed);
        let (word, bit) = self.held_bit(block);
        word.fetch_and(!bit, Ordering::AcqRel);
        let position = self.released.0.fetch_add(1, Ordering::AcqRel);
        let place = position as usize % self.geometry.release_places();
        let at = self.request_layout.release_at + 8 * place;
        self.request.store_release(at, release::entry(position, block.payload_at));
        self.offer_room();
    }

    /// The payload of a held block, where it lies.
    pub fn in_place(&self, block: BlockPlace) -> InPlace<'_> {
        InPlace::new(&self.reply, self.reply_layout.arena_at + block.offset(), block.len as usize)
    }

    /// Copies the payload of a held block out.
    pub fn copy_block(&self, block: BlockPlace, out: &mut [u8]) {
        assert!(out.len() <= block.len as usize, "read beyond the end of the payload");
        self.reply.copy_out(self.reply_layout.arena_at + block.offset(), out);
    }
}

impl BlockPlace {
    /// Bytes from the start of the arena.
    fn offset(self) -> usize {
        (self.payload_at as usize - 1) * CACHE_LINE_BYTES
    }
}
