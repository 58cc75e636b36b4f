//! Where the sections of both segments stand, for a given size of rings and arenas.

use super::control;
use super::envelope::ENVELOPE_BYTES;
use crate::base::limits::{ARENA_UNITS, CACHE_LINE_BYTES, PAGE_BYTES};

/// The four sizes that a lane is made from. Checked by `plan/` before they get here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Slots of each ring, a power of two.
    pub slots: usize,
    /// Bytes of a slot, a power of two.
    pub slot_bytes: usize,
    /// Bytes of the request arena, a power of two.
    pub request_arena_bytes: usize,
    /// Bytes of the reply arena, a power of two.
    pub reply_arena_bytes: usize,
}

/// Byte offsets of the request segment's sections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestLayout {
    /// One u64 per slot: position + 1 of the request cancelled there.
    pub cancelled_at: usize,
    /// One u64 per unit of the reply arena.
    pub release_at: usize,
    /// Slots.
    pub slots_at: usize,
    /// Arena.
    pub arena_at: usize,
    /// Bytes of the whole segment.
    pub total: usize,
}

/// Byte offsets of the reply segment's sections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyLayout {
    /// Slots.
    pub slots_at: usize,
    /// Arena.
    pub arena_at: usize,
    /// Bytes of the whole segment.
    pub total: usize,
}

const fn page_up(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE_BYTES)
}

impl Geometry {
    /// Inline payload of a slot.
    pub const fn inline_bytes(&self) -> usize {
        self.slot_bytes - ENVELOPE_BYTES
    }

    /// Places of the release ring: as many as blocks can be out.
    pub const fn release_places(&self) -> usize {
        units_of(self.reply_arena_bytes)
    }

    /// The request segment.
    pub const fn request(&self) -> RequestLayout {
        let cancelled_at = page_up(control::request::END);
        let release_at = page_up(cancelled_at + 8 * self.slots);
        let slots_at = page_up(release_at + 8 * self.release_places());
        let arena_at = page_up(slots_at + self.slots * self.slot_bytes);
        let total = page_up(arena_at + self.request_arena_bytes);
        RequestLayout { cancelled_at, release_at, slots_at, arena_at, total }
    }

    /// The reply segment.
    pub const fn reply(&self) -> ReplyLayout {
        let slots_at = page_up(control::reply::END);
        let arena_at = page_up(slots_at + self.slots * self.slot_bytes);
        let total = page_up(arena_at + self.reply_arena_bytes);
        ReplyLayout { slots_at, arena_at, total }
    }

    /// Bytes of both segments.
    pub const fn total(&self) -> usize {
        self.request().total + self.reply().total
    }
}

/// Slots from one position of a ring to the next; odd, so that every slot has its turn.
///
/// Neighbouring positions lie on different pages (in all but the smallest rings), because the reader's
/// prefetcher would else pull slots away that the writer is about to write: 30 ns a message within a core
/// complex, 150 ns across.
pub const fn slot_stride(slots: usize) -> usize {
    (slots * 5 / 8) | 1
}

/// Units in which an arena of so many bytes is handed out.
pub const fn units_of(arena_bytes: usize) -> usize {
    let lines = arena_bytes / CACHE_LINE_BYTES;
    if lines < ARENA_UNITS { lines } else { ARENA_UNITS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_stand_on_pages_and_do_not_overlap() {
        let geometry =
            Geometry { slots: 2, slot_bytes: 128, request_arena_bytes: 4096, reply_arena_bytes: 8192 };
        let request = geometry.request();
        let bounds = [
            control::request::END,
            request.cancelled_at,
            request.release_at,
            request.slots_at,
            request.arena_at,
            request.total,
        ];
        assert!(bounds.is_sorted());
        assert!(bounds[1..].iter().all(|at| at % PAGE_BYTES == 0));
        assert!(request.release_at >= request.cancelled_at + 16);
        assert!(request.slots_at >= request.release_at + 8 * 128);
        assert_eq!(geometry.reply().total, 4096 + 4096 + 8192);
        assert_eq!(units_of(1 << 20), 4096);
    }
}
