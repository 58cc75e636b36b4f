//! The engine's side of a lane: claiming and committing requests, reading replies under the reader role.
//!
//! Owns: the claim of request positions, the ticket and block behind each, the reader role, the next reply
//! position, which reply blocks are held. Never: decides what a frame means for a request; that is the
//! correlation table's.
//!
//! Invariants: `freed <= head <= freed + capacity`. Only the holder of the role moves `next` and `freed` or
//! sets a held bit. A request's slot and block are freed when its LAST has been read, by nothing else.

use std::sync::Arc;

use crate::base::failure::Rule;
use crate::base::limits::READ_BATCH;
use crate::base::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::base::waiting::Waiting;
use crate::lane::{BlockPlace, REQUEST_SIGNAL};
use crate::shm::arena::{Arena, Block};
use crate::shm::lull::Lull;
use crate::shm::ring::{Look, OwnRing, PeerRing, Place};
use crate::shm::spin::{Processors, Spinner};
use crate::shm::view::{Memory, PeerSlot, View};
use crate::wire::control::{reply, request};
use crate::wire::envelope::{Envelope, flags, kind, status};
use crate::wire::geometry::{Geometry, ReplyLayout, RequestLayout, units_of};

/// The request ring has no free slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A payload on its way out.
pub enum Outgoing<'a> {
    /// Copied behind the envelope; at most [`EngineEnd::inline_bytes`].
    Inline(&'a [u8]),
    /// Written in place already; the first `len` bytes of it.
    Block(Block, usize),
}

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

/// What the engine must know about a request position until its LAST.
struct Record {
    ticket: AtomicU64,
    /// `payload_at` of its arena block, 0 = inline.
    block: AtomicU32,
}

/// Keeps words that different threads change on lines of their own.
#[repr(align(128))]
pub(super) struct Line<T>(pub(super) T);

/// The engine's side.
pub struct EngineEnd {
    pub(super) request: View,
    pub(super) reply: View,
    pub(super) geometry: Geometry,
    pub(super) request_layout: RequestLayout,
    pub(super) reply_layout: ReplyLayout,
    pub(super) request_ring: OwnRing,
    pub(super) reply_ring: PeerRing,
    pub(super) arena: Arc<Arena>,
    records: Box<[Record]>,
    /// One bit per unit of the reply arena: the block that starts there is held by this process.
    pub(super) held: Box<[AtomicU64]>,
    /// How many of the held blocks lie in the lower half of the arena, and in the upper half of the word, in the upper.
    pub(super) held_in_halves: AtomicU64,
    /// Next request position to claim.
    pub(super) head: Line<AtomicU64>,
    /// Requests whose LAST has been read.
    pub(super) freed: Line<AtomicU64>,
    /// 0, or 1 while somebody reads, or why nobody reads any more.
    role: Line<AtomicU32>,
    /// Next reply position to read.
    pub(super) next: AtomicU64,
    /// Next place of the release ring.
    pub(super) released: Line<AtomicU64>,
    /// 1 while both sides wait on one processor.
    shares: AtomicU32,
    /// What is known of how long the worker takes.
    lull: AtomicU32,
    /// Payload bytes of the request that was sent last, if they lie in the arena.
    block_bytes: AtomicU32,
    /// What the worker had begun when its memory was given back.
    pub(super) last_started: AtomicU64,
}

/// Far enough that the lines are there in time, and that the worker does not look at them yet.
const SLOTS_AHEAD: u64 = 4;
/// The worker has written these mostly, when there is a window's worth in flight.
const REPLIES_AHEAD: u64 = 6;

const NOBODY: u32 = 0;
const SOMEBODY: u32 = 1;
/// And more: the rule that was broken.
const CORRUPT: u32 = 2;
/// Set in `head` for good when nothing more may be claimed.
pub(super) const CLOSED: u64 = 1 << 63;

impl EngineEnd {
    /// The engine's side over freshly created segments.
    pub fn new(request: View, reply: View, geometry: Geometry) -> Self {
        assert!(request.is_writable() && !reply.is_writable());
        let request_layout = geometry.request();
        let reply_layout = geometry.reply();
        let arena = Arena::new(request.clone(), request_layout.arena_at, geometry.request_arena_bytes);
        let held_words = units_of(geometry.reply_arena_bytes).div_ceil(64);
        Self {
            request_ring: OwnRing::in_segment(
                request.clone(),
                request_layout.slots_at,
                geometry.slot_bytes,
                geometry.slots,
            ),
            reply_ring: PeerRing::in_segment(
                reply.clone(),
                reply_layout.slots_at,
                geometry.slot_bytes,
                geometry.slots,
            ),
            arena: Arc::new(arena),
            records: (0..geometry.slots)
                .map(|_| Record { ticket: AtomicU64::new(0), block: AtomicU32::new(0) })
                .collect(),
            held: (0..held_words).map(|_| AtomicU64::new(0)).collect(),
            held_in_halves: AtomicU64::new(0),
            head: Line(AtomicU64::new(0)),
            freed: Line(AtomicU64::new(0)),
            role: Line(AtomicU32::new(NOBODY)),
            next: AtomicU64::new(0),
            released: Line(AtomicU64::new(0)),
            shares: AtomicU32::new(0),
            lull: AtomicU32::new(Lull::default().to_word()),
            block_bytes: AtomicU32::new(0),
            last_started: AtomicU64::new(0),
            request,
            reply,
            geometry,
            request_layout,
            reply_layout,
        }
    }

    /// The request arena, for loans.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Inline payload bytes of a slot.
    pub fn inline_bytes(&self) -> usize {
        self.request_ring.inline_bytes()
    }

    /// Slots of each ring.
    pub fn capacity(&self) -> u64 {
        self.request_ring.capacity()
    }

    /// Sizes of the lane.
    #[cfg(feature = "testing")]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The segment that the engine writes.
    pub fn request_segment(&self) -> &View {
        &self.request
    }

    /// The segment that the worker writes.
    pub fn reply_segment(&self) -> &View {
        &self.reply
    }

    /// Where both sides publish their processors.
    pub fn processors(&self) -> Processors<'_> {
        Processors { mine: (&self.request, request::CPU), theirs: (&self.reply, reply::CPU) }
    }

    /// The budget of one wait for this lane's worker.
    #[inline(always)]
    pub fn spinner(&self, policy: Waiting) -> Spinner {
        // Relaxed: a habit of the scheduler, not a fact; and who sends beside us may have changed the other.
        let block_bytes = self.block_bytes.load(Ordering::Relaxed);
        Spinner::new(policy, self.shares.load(Ordering::Relaxed) != 0).beside_payload(block_bytes.into())
    }

    /// The budget of a wait for the reply to a request that has just been sent.
    #[inline(always)]
    pub fn spinner_for_own(&self, policy: Waiting) -> Spinner {
        let lull = Lull::from_word(self.lull.load(Ordering::Relaxed));
        let block_bytes = self.block_bytes.load(Ordering::Relaxed);
        let shares = self.shares.load(Ordering::Relaxed) != 0;
        Spinner::behind(lull, policy, shares).beside_payload(block_bytes.into())
    }

    /// Remembers what such a wait has learned.
    #[inline(always)]
    pub fn end_wait_for_own(&self, spinner: &Spinner) {
        self.end_wait(spinner);
        if !spinner.shares() {
            // Relaxed: a habit, and one of several threads may forget what another has learned.
            let lull = Lull::from_word(self.lull.load(Ordering::Relaxed));
            self.lull.store(lull.after(spinner.looks()).to_word(), Ordering::Relaxed);
        }
    }

    /// Remembers what a wait has learned.
    #[inline(always)]
    pub fn end_wait(&self, spinner: &Spinner) {
        let shares = u32::from(spinner.shares());
        if self.shares.load(Ordering::Relaxed) != shares {
            self.shares.store(shares, Ordering::Relaxed);
        }
    }

    // ---- sending ----

    /// Whether a slot is free now. Errs towards yes, and the claim decides: a head that is behind what others
    /// have freed means that our reading of it is old.
    pub fn has_room(&self) -> bool {
        let head = self.head.0.load(Ordering::Relaxed);
        head.saturating_sub(self.freed.0.load(Ordering::Acquire)) < self.capacity()
    }

    /// Requests that have been claimed and whose LAST has not been read. A hint: others go on meanwhile.
    pub fn outstanding(&self) -> u64 {
        let head = self.head.0.load(Ordering::Relaxed) & !CLOSED;
        head.saturating_sub(self.freed.0.load(Ordering::Relaxed))
    }

    /// Claims the next request position. What follows until [`EngineEnd::send`] must not fail.
    #[inline(always)]
    pub fn claim(&self) -> Result<u64, Full> {
        let mut head = self.head.0.load(Ordering::Relaxed);
        loop {
            // Acquire: pairs with the Release in `end_oldest`; the slot's previous user is over.
            // A head that is behind what others freed means that our reading of it is old.
            let used = head.wrapping_sub(self.freed.0.load(Ordering::Acquire));
            if used == self.capacity() {
                return Err(Full);
            }
            if used > self.capacity() {
                if head & CLOSED != 0 {
                    return Err(Full);
                }
                head = self.head.0.load(Ordering::Acquire);
                continue;
            }
            // AcqRel: pairs with `end_claims`; one of the two comes first.
            match self.head.0.compare_exchange_weak(head, head + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(head),
                Err(now) => head = now,
            }
        }
    }

    /// Writes and commits the frame of a claimed position and wakes the worker if it sleeps for it.
    #[inline(always)]
    pub fn send(&self, position: u64, mut envelope: Envelope, payload: Outgoing<'_>) {
        let place = self.request_ring.place(position);
        let record = &self.records[self.request_ring.index(position)];
        record.ticket.store(envelope.ticket, Ordering::Relaxed);
        let block_bytes = match payload {
            Outgoing::Inline(_) => 0,
            Outgoing::Block(_, len) => len as u32,
        };
        // Mostly as it was: no store.
        if self.block_bytes.load(Ordering::Relaxed) != block_bytes {
            self.block_bytes.store(block_bytes, Ordering::Relaxed);
        }
        match payload {
            Outgoing::Inline(bytes) => {
                place.slot.copy_in(bytes);
                envelope.payload_len = bytes.len() as u32;
                envelope.payload_at = 0;
            }
            Outgoing::Block(block, len) => {
                debug_assert!(len <= block.len());
                envelope.payload_len = len as u32;
                envelope.payload_at = block.publish();
            }
        }
        // Relaxed: read by the holder of the reader role only after the worker answered this very frame,
        // which it can do only after the commit below.
        record.block.store(envelope.payload_at, Ordering::Relaxed);
        let [_, words @ ..] = envelope.to_words();
        place.publish(words);
        REQUEST_SIGNAL.wake(&self.request, &self.reply, position);
    }

    /// Begins to take the slot that is sent a few requests behind `position`: for who sends one after the other, and
    /// would wait for each slot's lines to come back from the worker that has read them.
    #[inline(always)]
    pub fn prefetch_ahead_of(&self, position: u64) {
        self.request_ring.place(position.wrapping_add(SLOTS_AHEAD)).slot.prefetch_write();
    }

    /// Tells the worker that the request at `position` is not wanted any more.
    pub fn cancel(&self, position: u64) {
        let at = self.request_layout.cancelled_at + 8 * self.request_ring.index(position);
        self.request.raise(at, position + 1);
    }

    /// Whether the worker had begun the request at `position`, as it says itself.
    pub fn started(&self, position: u64) -> bool {
        // Read in this order: the one is kept before the other is gone.
        let started = self.reply.load_acquire(reply::STARTED);
        started.max(self.last_started.load(Ordering::Acquire)) > position
    }

    /// What the worker says that it executes: position, the deadline that it was sent with (0 = none), and node
    /// calls so far. None if it says that it executes nothing, or something impossible.
    pub fn executing(&self) -> Option<(u64, u64, u64)> {
        let position = self.reply.load_acquire(reply::STARTED).checked_sub(1)?;
        let finished = self.reply.load_acquire(reply::FINISHED);
        let freed = self.freed.0.load(Ordering::Acquire);
        let head = self.head.0.load(Ordering::Acquire) & !CLOSED;
        if finished > position || position < freed || position >= head {
            return None;
        }
        // Ours, and left alone until its LAST has been read.
        let deadline_ns = self.request_ring.place(position).envelope().deadline_ns;
        Some((position, deadline_ns, self.reply.load(reply::PROGRESS)))
    }

    // ---- reading ----

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
    /// gives the role back. `handle` must not wait for anything; it may refuse a frame as impossible.
    ///
    /// A full fence stands between the publication of the new position and this function's return.
    #[inline]
    pub fn read(&self, handle: impl FnMut(Frame) -> Result<(), Rule>) -> Read {
        if !self.take_role() {
            return Read::Busy;
        }
        let read = self.read_batch(READ_BATCH as u64, true, handle);
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
                Ok(_) => return self.read_batch(self.capacity(), false, handle),
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

    /// Next position to claim in the request ring, and to read in the reply ring.
    #[cfg(feature = "testing")]
    pub fn positions(&self) -> (u64, u64) {
        (self.head.0.load(Ordering::Acquire) & !CLOSED, self.next())
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
