//! The engine's side of a lane whose worker is dead: replies read to the end, claims ended, what is unanswered
//! looked at, and, once another lane has taken its place, its memory given back. In this order.
//!
//! The lane itself stays for as long as the engine: who looked it up before the death may use it long after. It
//! finds no room, nothing to read and nobody to wake.

use super::engine_end::{CLOSED, EngineEnd};
use crate::base::limits::CACHE_LINE_BYTES;
use crate::base::sync::Ordering;
use crate::shm::ring::Look;
use crate::shm::view::Memory;
use crate::wire::control::reply;
use crate::wire::envelope::Envelope;

impl EngineEnd {
    /// Ends claiming for good, and waits until all that has been claimed is committed: from now on every request
    /// is either among [`EngineEnd::unanswered`] or finds no place here.
    pub fn end_claims(&self) {
        let head = self.head.0.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED;
        for position in self.freed.0.load(Ordering::Acquire)..head {
            while self.request_ring.place(position).look() == Look::Empty {
                // Between claim and commit code of ours runs that does not wait; it may have lost its processor.
                crate::os::cpu::yield_now();
            }
        }
    }

    /// Every request that has been sent and whose LAST has not been read, in order: envelope and payload, as this
    /// side wrote them.
    pub fn unanswered(&self) -> Vec<(u64, Envelope, Box<[u8]>)> {
        let head = self.head.0.load(Ordering::Acquire);
        assert!(head & CLOSED != 0, "claims have been ended");
        let sent = self.freed.0.load(Ordering::Acquire)..head & !CLOSED;
        let read = |position| {
            let envelope = self.request_ring.place(position).envelope();
            let at = match envelope.payload_at {
                0 => self.request_ring.inline_at(position),
                at => self.request_layout.arena_at + (at as usize - 1) * CACHE_LINE_BYTES,
            };
            let mut payload = vec![0; envelope.payload_len as usize].into_boxed_slice();
            self.request.copy_out(at, &mut payload);
            (position, envelope, payload)
        };
        sent.map(read).collect()
    }

    /// Gives the memory of both segments back, unless somebody still holds a reply or a loan that lies there; call
    /// it again then. Whether it is gone.
    ///
    /// Nobody puts anything there any more that somebody else reads: no reply is read, no request claimed, no loan
    /// given. What a late user may still do is look for a reply (there is none at position 0 of memory that is
    /// zero), store a word that only the dead worker would have read, or sleep, which the wake of its own word ends.
    pub fn give_memory_back(&self) -> bool {
        let holds_reply = || self.held.iter().any(|units| units.load(Ordering::Acquire) != 0);
        if holds_reply() || !self.arena.close() {
            return false;
        }
        self.last_started.store(self.reply.load_acquire(reply::STARTED), Ordering::Release);
        self.next.store(0, Ordering::Release);
        self.request.let_go() & self.reply.let_go()
    }
}
