//! The usual reply, read by the very one who waits for it: a success that ends the oldest request of the lane, in its
//! slot or in the arena. Whatever is not so is left as it stands, to [`EngineEnd::read`].

use super::engine_end::EngineEnd;
use super::held_blocks::BlockPlace;
use crate::base::sync::Ordering;
use crate::shm::ring::Look;
use crate::shm::view::{PeerSlot, Slot};
use crate::wire::envelope::{self, flags, kind, status};

/// A usual reply, checked as far as the lane can check it. Copied out, but for its payload.
pub struct OwnReply<'a> {
    /// As the worker carried it back.
    pub trace_id: [u64; 2],
    /// The word of route and tags, as the worker carried it back.
    pub tags: u64,
    /// Bytes of its payload.
    pub len: usize,
    slot: PeerSlot<'a>,
}

/// The upper half of the last word of a usual reply's envelope.
const USUAL: u64 = envelope::said_word(kind::TERMINAL, status::SUCCESS, flags::LAST);

impl EngineEnd {
    /// Reads the next reply if it is the usual one to `ticket`, which stands at `position` among the requests.
    /// `take` decides whether it ends the request, and what is taken of it. `None`: nothing has happened.
    ///
    /// A full fence stands between the publication of the new position and this function's return.
    #[inline(always)]
    pub fn read_own<T>(
        &self,
        position: u64,
        ticket: u64,
        take: impl FnOnce(OwnReply<'_>) -> Option<T>,
    ) -> Option<T> {
        if !self.take_role() {
            return None;
        }
        let taken = self.next_if_own(position, ticket, take);
        self.give_role_back();
        taken
    }

    /// The same for a reply that lies in the arena: its block is held. `ends` decides by trace id and tags, as the worker
    /// carried them back, whether it ends the request.
    #[inline(never)]
    pub fn read_own_block(
        &self,
        position: u64,
        ticket: u64,
        ends: impl FnOnce([u64; 2], u64) -> bool,
    ) -> Option<BlockPlace> {
        if !self.take_role() {
            return None;
        }
        let block = self.next_block_if_own(position, ticket, ends);
        self.give_role_back();
        block
    }

    #[inline(always)]
    fn next_block_if_own(
        &self,
        position: u64,
        ticket: u64,
        ends: impl FnOnce([u64; 2], u64) -> bool,
    ) -> Option<BlockPlace> {
        // Relaxed: as below.
        let next = self.next.load(Ordering::Relaxed);
        let is_oldest = self.freed.0.load(Ordering::Relaxed) == position;
        let place = self.reply_ring.place(next);
        if !is_oldest || place.look() != Look::Ready {
            return None;
        }
        let [_, first, second, of, _, tags, payload, head] = place.slot.words();
        let block = BlockPlace { payload_at: (payload >> 32) as u32, len: payload as u32 };
        if of != ticket || head >> envelope::SAID_SHIFT != USUAL || block.payload_at == 0 {
            return None;
        }
        // A broken rule is found once more by who reads it next, and told.
        let block = self.hold(block).ok()?;
        if self.holds_much() || !ends([first, second], tags) {
            self.hold_not(block);
            return None;
        }
        self.free_oldest(position);
        self.consumed(next + 1);
        Some(block)
    }

    #[inline(always)]
    fn next_if_own<T>(
        &self,
        position: u64,
        ticket: u64,
        take: impl FnOnce(OwnReply<'_>) -> Option<T>,
    ) -> Option<T> {
        // Relaxed: only holders of the role write these, and the role orders them.
        let next = self.next.load(Ordering::Relaxed);
        let is_oldest = self.freed.0.load(Ordering::Relaxed) == position;
        let place = self.reply_ring.place(next);
        if !is_oldest || place.look() != Look::Ready {
            return None;
        }
        let [_, first, second, of, _, tags, payload, head] = place.slot.words();
        // Inline: the upper half, its place in the arena, is 0.
        let is_usual =
            of == ticket && head >> envelope::SAID_SHIFT == USUAL && payload <= self.inline_bytes() as u64;
        if !is_usual {
            return None;
        }
        let reply = OwnReply { trace_id: [first, second], tags, len: payload as usize, slot: place.slot };
        let taken = take(reply)?;
        self.free_oldest(position);
        self.consumed(next + 1);
        Some(taken)
    }
}

impl OwnReply<'_> {
    /// Copies the payload out; `out` is as long as it.
    #[inline(always)]
    pub fn copy_to(&self, out: &mut [u8]) {
        self.slot.copy_out(out);
    }
}
