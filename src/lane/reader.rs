//! How the engine reads a lane's replies: a batch at a time, under the reader role.
//!
//! Owns: the reader role, and what a frame is before anybody has judged it. Never: decides what a frame means for a
//! request; that is the correlation table's.
//!
//! Looking at the next reply needs no role. Only the holder of the role moves `next` and `freed` or sets a held bit.

use super::engine_end::EngineEnd;
use crate::base::failure::Rule;
use crate::base::limits::READ_BATCH;
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::lane::BlockPlace;
use crate::shm::ring::{Look, Place};
use crate::shm::view::{Memory, PeerSlot};
use crate::wire::control::{reply, request};
use crate::wire::envelope::{Envelope, flags, kind, status};

/// What a frame's LAST flag did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastMark {
    /// The flag is not set.
    No,
    /// The frame ended the oldest request of the lane.
    Ended,
    /// The flag is set, but the ticket is not that of the oldest request.
    Stray,
}

/// The payload of a reply frame, checked against its place.
#[derive(Clone, Copy)]
pub enum FramePayload {
    /// Behind the envelope; valid until the frame's handler returns.
    Inline {
        /// Offset in the reply segment.
        at: usize,
        /// Bytes.
        len: usize,
    },
    /// In the reply arena, and held.
    Block(BlockPlace),
}

/// One reply frame, copied out and checked as far as the lane can check it.
#[derive(Clone, Copy)]
pub struct Frame {
    /// The copy of its envelope.
    pub envelope: Envelope,
    /// Its payload.
    pub payload: FramePayload,
    /// What its LAST flag did.
    pub last: LastMark,
}

/// What one turn as reader brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// Somebody else reads.
    Busy,
    /// So many frames were handled.
    Frames(usize),
    /// The worker broke a rule; nothing after that frame is read.
    Corrupt(Rule),
}

/// Told the trace id of a frame that stands further behind, as it says itself: for a hint, nothing else.
pub type Expect<'a> = &'a dyn Fn([u64; 2]);

/// How far behind the frame that is being handled that one stands: about as many are handled while a line of a large
/// table comes.
const EXPECTED_AHEAD: u64 = 4;

/// How far behind the next reply one is fetched: with a window's worth in flight the worker has mostly written it.
const REPLIES_AHEAD: u64 = 6;

/// The role is free to be taken.
pub(super) const NOBODY: u32 = 0;
const SOMEBODY: u32 = 1;
/// And more: the rule that was broken.
const CORRUPT: u32 = 2;

impl EngineEnd {
    /// Next reply position.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Whether the next reply is there (or a value that only the reader may judge). Needs no role.
    #[inline(always)]
    pub fn has_reply(&self) -> bool {
        let place = self.reply_ring.place(self.next());
        let is_there = place.look() != Look::Empty;
        if is_there {
            // Who looks reads: the payload's line comes while the role is being taken.
            place.slot.prefetch_inline();
        }
        is_there
    }

    /// Begins to fetch a reply that stands a few places behind the next one, for who has several to come.
    #[inline(always)]
    pub fn prefetch_replies(&self) {
        self.reply_ring.place(self.next().wrapping_add(REPLIES_AHEAD)).slot.prefetch();
    }

    /// Takes the reader role for one batch, hands each frame to `handle`, publishes what became free and
    /// gives the role back. `handle` must not wait for anything; it may refuse a frame as impossible. `expect` is told of
    /// each frame some frames before `handle`, if it stands there by then.
    ///
    /// A full fence stands between the publication of the new position and this function's return.
    #[inline]
    pub fn read(&self, expect: Option<Expect<'_>>, handle: impl FnMut(Frame) -> Result<(), Rule>) -> Read {
        if !self.take_role() {
            return Read::Busy;
        }
        let read = self.read_batch(READ_BATCH as u64, true, expect, handle);
        if let Read::Corrupt(rule) = read {
            // The frame that broke a rule might keep it when it is read once more, and what is behind it is worth
            // nothing.
            self.role.0.store(CORRUPT + rule as u32, Ordering::Release);
        } else {
            self.give_role_back();
        }
        read
    }

    #[inline(always)]
    pub(super) fn take_role(&self) -> bool {
        // Acquire: pairs with the Release of `give_role_back`; the previous holder's changes are visible.
        self.role.0.compare_exchange(NOBODY, SOMEBODY, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline(always)]
    pub(super) fn give_role_back(&self) {
        self.role.0.store(NOBODY, Ordering::Release);
    }

    /// Takes the role for good and reads to the end: for a lane whose worker is dead. At most one ring's
    /// worth of frames can stand there. Call it once. Where a rule was broken before, nothing is read.
    pub fn read_out(&self, handle: impl FnMut(Frame) -> Result<(), Rule>) -> Read {
        loop {
            match self.role.0.compare_exchange(NOBODY, SOMEBODY, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return self.read_batch(self.capacity(), false, None, handle),
                // The holder runs code of ours that does not wait; it may have lost its processor, though.
                Err(SOMEBODY) => crate::os::cpu::yield_now(),
                Err(corrupt) => return Read::Corrupt(Rule::ALL[(corrupt - CORRUPT) as usize]),
            }
        }
    }

    /// Whether no request waits for its LAST. Then a well-behaved worker has nothing more to say, and a look at
    /// the next slot would only fetch a line from it; what another one says is read the next time.
    #[inline(always)]
    fn is_all_answered(&self) -> bool {
        // Relaxed: a request that is being sent meanwhile is answered later still.
        self.freed.0.load(Ordering::Relaxed) == self.head.0.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn read_batch(
        &self,
        limit: u64,
        ends_when_all_is_answered: bool,
        expect: Option<Expect<'_>>,
        mut handle: impl FnMut(Frame) -> Result<(), Rule>,
    ) -> Read {
        // Relaxed: only holders of the role write it, and the role orders them.
        let begin = self.next.load(Ordering::Relaxed);
        let mut next = begin;
        let mut corrupt = None;
        while next - begin < limit {
            let place = self.reply_ring.place(next);
            match place.look() {
                Look::Empty => break,
                Look::Corrupt => {
                    corrupt = Some(Rule::CommitWord);
                    break;
                }
                Look::Ready => {}
            }
            if let Some(expect) = expect {
                self.tell_ahead(next.wrapping_add(EXPECTED_AHEAD), expect);
            }
            if let Err(rule) = self.frame(next, &place).and_then(&mut handle) {
                corrupt = Some(rule);
                break;
            }
            next += 1;
            if ends_when_all_is_answered && self.is_all_answered() {
                break;
            }
        }
        if next != begin {
            self.consumed(next);
        }
        match corrupt {
            Some(rule) => Read::Corrupt(rule),
            None => Read::Frames((next - begin) as usize),
        }
    }

    #[cold]
    fn tell_ahead(&self, position: u64, expect: Expect<'_>) {
        let place = self.reply_ring.place(position);
        if place.look() == Look::Ready {
            expect(place.envelope().trace_id);
        }
    }

    /// Publishes how far the replies have been read. By the holder of the role.
    #[inline(always)]
    pub(super) fn consumed(&self, next: u64) {
        self.request.store_release(request::CONSUMED, next);
        self.next.store(next, Ordering::Release);
        self.offer_room();
    }

    /// Copies one frame out and checks it.
    #[inline(always)]
    fn frame(&self, position: u64, place: &Place<PeerSlot<'_>>) -> Result<Frame, Rule> {
        // The payload's line comes while the envelope is being checked.
        place.slot.prefetch_inline();
        let envelope = place.envelope();
        if envelope.flags & !flags::KNOWN != 0 {
            return Err(Rule::Flags);
        }
        if !matches!(envelope.kind, kind::TERMINAL | kind::OUTPUT | kind::DONE) {
            return Err(Rule::Kind);
        }
        if envelope.status > status::ERROR {
            return Err(Rule::Status);
        }
        let payload = if envelope.payload_at == 0 {
            let len = envelope.payload_len as usize;
            if len > self.inline_bytes() {
                return Err(Rule::PayloadLength);
            }
            FramePayload::Inline { at: self.reply_ring.inline_at(position), len }
        } else {
            let block = BlockPlace { payload_at: envelope.payload_at, len: envelope.payload_len };
            FramePayload::Block(self.hold(block)?)
        };
        let last =
            if envelope.flags & flags::LAST == 0 { LastMark::No } else { self.end_oldest(envelope.ticket) };
        Ok(Frame { envelope, payload, last })
    }

    /// Frees the oldest request's slot and block if it is the one that `ticket` names.
    fn end_oldest(&self, ticket: u64) -> LastMark {
        let freed = self.freed.0.load(Ordering::Relaxed);
        let record = &self.records[self.request_ring.index(freed)];
        if freed == self.head.0.load(Ordering::Acquire) || record.ticket.load(Ordering::Relaxed) != ticket {
            return LastMark::Stray;
        }
        self.free_oldest(freed);
        LastMark::Ended
    }

    /// Frees the slot and the block of the oldest request, which stands at `position`.
    #[inline(always)]
    pub(super) fn free_oldest(&self, position: u64) {
        // Only the holder of the role is here, and who sends into this slot again finds it freed first: no exchange.
        let record = &self.records[self.request_ring.index(position)];
        let block = record.block.load(Ordering::Relaxed);
        if block != 0 {
            record.block.store(0, Ordering::Relaxed);
            self.arena.take_back(block).expect("a sent block is published until its LAST");
        }
        record.ticket.store(0, Ordering::Relaxed);
        self.freed.0.store(position + 1, Ordering::Release);
    }

    /// After a store that made room: wakes the worker if it waits for some. Forbidden: the worker sees no
    /// room *and* we do not see that it wants some; both sides fence between their store and their load.
    #[inline(always)]
    pub(super) fn offer_room(&self) {
        fence(Ordering::SeqCst);
        if self.reply.load(reply::WANTS_ROOM) != 0 {
            self.request.futex_wake(request::ROOM);
        }
    }

    /// Copies an inline payload into cells, while its frame is being handled.
    #[inline(always)]
    pub fn copy_inline(&self, at: usize, len: usize, cells: &[AtomicU64]) {
        self.reply.copy_to_cells(at, len, cells);
    }

    /// Copies an inline payload out, while its frame is being handled.
    pub fn read_inline(&self, at: usize, out: &mut [u8]) {
        self.reply.copy_out(at, out);
    }

    // ---- the engine's thread ----

    /// Asks the worker to ring the event descriptor with its next reply; false if that is there already.
    pub fn arm_bell(&self) -> bool {
        loop {
            let next = self.next();
            self.request.store(request::BELL, next + 1);
            // Between this store and the look, as in `shm/signal.rs`: the worker commits, fences, looks at the bell.
            fence(Ordering::SeqCst);
            if self.has_reply() {
                return false;
            }
            // Somebody may have read on meanwhile: the bell must be armed for the position that is next.
            if self.next() == next {
                return true;
            }
        }
    }
}
