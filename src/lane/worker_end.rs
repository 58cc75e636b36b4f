//! The worker's side of a lane: receiving requests, writing replies.
//!
//! Owns: the next request position, the reply head, the reply arena. One thread serves a lane, so all of it
//! is plain data. Never: runs a node.
//!
//! Invariants: `consumed <= head <= consumed + capacity`, where the engine's word is believed only inside
//! these bounds. A written frame stays uncommitted until the next one is written or the request ends, so
//! that the last one can carry LAST.

use std::sync::Arc;

use crate::base::clock::has_passed;
use crate::base::limits::LONGEST_SLEEP_NS;
use crate::base::waiting::Waiting;
use crate::lane::{REPLY_SIGNAL, REQUEST_SIGNAL};
use crate::os::clock;
use crate::os::futex::{self, Word};
use crate::os::poll::EventFd;
use crate::shm::arena::{Arena, Block};
use crate::shm::block::request_bytes;
use crate::shm::ring::{Look, Ring};
use crate::shm::spin::{Next, Processors, Spinner};
use crate::shm::view::{Memory, View};
use crate::wire::control::{reply, request};
use crate::wire::envelope::{Envelope, flags};
use crate::wire::geometry::{Geometry, RequestLayout};
use crate::wire::release;

/// Without `futex_waitv` a sleeping worker looks for a stop this often.
const STOP_LOOK_NS: u64 = 50_000_000;

/// No room came free before the deadline, or a stop came first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// A request as it was received.
#[derive(Clone, Copy)]
pub struct Incoming {
    /// Its place in the ring.
    pub position: u64,
    /// The copy of its envelope.
    pub envelope: Envelope,
    /// It stood there when the worker came to look: it has waited, for how long nobody knows.
    pub has_waited: bool,
    payload_at: usize,
}

/// A look at a lane from another thread of its worker.
pub struct Idleness {
    request: View,
    reply: View,
    ring: Ring,
}

impl Idleness {
    /// Whether every request that has come has been ended. The worker's own word says how far it is.
    pub fn is_idle(&self) -> bool {
        let finished = self.reply.load_acquire(reply::FINISHED);
        self.ring.look(&self.request, finished) == Look::Empty
    }
}

/// The worker's side.
pub struct WorkerEnd {
    request: View,
    reply: View,
    geometry: Geometry,
    request_layout: RequestLayout,
    request_ring: Ring,
    reply_ring: Ring,
    arena: Arc<Arena>,
    /// Next request position.
    next: u64,
    /// Next reply position.
    head: u64,
    /// What the engine last said it has consumed.
    consumed: u64,
    /// Next entry of the release ring.
    released: u64,
    /// A written frame that waits for its flags.
    staged: Option<Envelope>,
    bell: EventFd,
    /// Raised by the watcher of the control connection to end the serving.
    stop: Arc<Word>,
    policy: Waiting,
    /// Whether both sides wait on one processor.
    shares: bool,
}

impl WorkerEnd {
    /// The worker's side over received segments. `stop` is 0 until serving shall end.
    pub fn new(
        request: View,
        reply: View,
        geometry: Geometry,
        policy: Waiting,
        bell: EventFd,
        stop: Arc<Word>,
    ) -> Self {
        assert!(!request.is_writable() && reply.is_writable());
        let request_layout = geometry.request();
        let reply_layout = geometry.reply();
        let arena = Arena::new(reply.clone(), reply_layout.arena_at, geometry.reply_arena_bytes);
        Self {
            request_ring: Ring::new(request_layout.slots_at, geometry.slot_bytes, geometry.slots),
            reply_ring: Ring::new(reply_layout.slots_at, geometry.slot_bytes, geometry.slots),
            arena: Arc::new(arena),
            next: 0,
            head: 0,
            consumed: 0,
            released: 0,
            staged: None,
            request,
            reply,
            geometry,
            request_layout,
            bell,
            stop,
            policy,
            shares: false,
        }
    }

    /// Inline payload bytes of a slot.
    pub fn inline_bytes(&self) -> usize {
        self.reply_ring.inline_bytes()
    }

    /// The largest reply payload.
    pub fn max_payload(&self) -> usize {
        self.arena.bytes()
    }

    /// The segment that requests stand in.
    pub fn request_segment(&self) -> &View {
        &self.request
    }

    /// For another thread: whether every request that has come has been ended.
    pub fn idleness(&self) -> Idleness {
        Idleness { request: self.request.clone(), reply: self.reply.clone(), ring: self.request_ring }
    }

    /// Whether serving shall end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load() != 0
    }

    // ---- receiving ----

    /// Waits for the next request; `None` when serving shall end. An impossible commit word ends it too:
    /// the engine is gone or broken, and the watcher of the control connection will say which.
    pub fn receive(&mut self) -> Option<Incoming> {
        let mut spinner = Spinner::new(self.policy, self.shares);
        let mut has_waited = true;
        loop {
            match self.request_ring.look(&self.request, self.next) {
                Look::Ready => {
                    self.shares = spinner.shares();
                    return Some(self.take(has_waited));
                }
                Look::Corrupt => return None,
                Look::Empty => has_waited = false,
            }
            let processors =
                Processors { mine: (&self.reply, reply::CPU), theirs: (&self.request, request::CPU) };
            match spinner.step(processors) {
                Next::Look => {}
                Next::LookAt(_) => {
                    if self.is_stopping() {
                        return None;
                    }
                }
                Next::Sleep => {
                    self.sleep();
                    has_waited = true;
                    if self.is_stopping() && self.request_ring.look(&self.request, self.next) == Look::Empty {
                        return None;
                    }
                    spinner.renew();
                }
            }
        }
    }

    #[inline(always)]
    fn take(&mut self, has_waited: bool) -> Incoming {
        let position = self.next;
        // Both payloads' lines come while the envelope is being looked at.
        self.request.prefetch(self.request_ring.inline_at(position));
        self.reply.prefetch_write(self.reply_ring.inline_at(self.head));
        let envelope = self.request_ring.envelope(&self.request, position);
        let payload_at = match envelope.payload_at {
            0 => self.request_ring.inline_at(position),
            at => self.request_layout.arena_at + (at as usize - 1) * crate::base::limits::CACHE_LINE_BYTES,
        };
        self.next += 1;
        Incoming { position, envelope, has_waited, payload_at }
    }

    fn sleep(&self) {
        let expected = REQUEST_SIGNAL.prepare(&self.request);
        let stop = self.stop.load();
        REQUEST_SIGNAL.announce(&self.reply, self.next);
        if stop == 0 && self.request_ring.look(&self.request, self.next) == Look::Empty {
            self.sleep_on(request::WAKE, expected, stop, clock::monotonic_ns() + LONGEST_SLEEP_NS);
        }
        REQUEST_SIGNAL.withdraw(&self.reply);
    }

    /// Sleeps on a word of the request segment and on `stop`.
    fn sleep_on(&self, word_at: usize, expected: u32, stop: u32, until_ns: u64) {
        if futex::waitv_supported() {
            futex::wait_either(self.request.futex_word(word_at), expected, &self.stop, stop, Some(until_ns));
        } else {
            let look_ns = clock::monotonic_ns() + STOP_LOOK_NS;
            self.request.futex_wait(word_at, expected, until_ns.min(look_ns));
        }
    }

    /// Says that execution of `incoming` begins.
    #[inline(always)]
    pub fn begin(&self, incoming: &Incoming) {
        // Release: whoever sees the request as started may see what it wrote; pairs with `EngineEnd::started`.
        self.reply.store_release(reply::STARTED, incoming.position + 1);
    }

    /// The payload, if envelope and segment agree about its place.
    pub fn payload<'a>(segment: &'a View, geometry: &Geometry, incoming: &Incoming) -> Option<&'a [u8]> {
        let len = incoming.envelope.payload_len as usize;
        let room = match incoming.envelope.payload_at {
            0 => geometry.inline_bytes(),
            _ => geometry.request().total.checked_sub(incoming.payload_at)?,
        };
        (len <= room).then(|| request_bytes(segment, incoming.payload_at, len))
    }

    /// Sizes of the lane.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Offset of the word that tells whether `incoming` has been cancelled.
    pub fn cancelled_at(&self, incoming: &Incoming) -> usize {
        self.request_layout.cancelled_at + 8 * self.request_ring.index(incoming.position)
    }

    // ---- replying ----

    /// A block of the reply arena; waits for room until the deadline (0 = none).
    pub fn block(&mut self, len: usize, deadline_ns: u64) -> Result<Block, NoRoom> {
        loop {
            self.take_back_blocks();
            if let Ok(block) = self.arena.take(len) {
                return Ok(block);
            }
            self.commit_staged(0);
            self.wait_for_room(deadline_ns, |end| {
                end.take_back_blocks();
                end.arena.take(len).is_ok()
            })?;
        }
    }

    /// Writes a frame whose payload is copied behind the envelope, and stages it. Waits for a slot until the
    /// deadline (0 = none).
    pub fn put_inline(
        &mut self,
        mut envelope: Envelope,
        payload: &[u8],
        deadline_ns: u64,
    ) -> Result<(), NoRoom> {
        self.slot(deadline_ns)?;
        self.reply.copy_in(self.reply_ring.inline_at(self.head), payload);
        envelope.payload_len = payload.len() as u32;
        envelope.payload_at = 0;
        self.staged = Some(envelope);
        Ok(())
    }

    /// Writes a frame whose payload is the first `len` bytes of `block`, and stages it.
    pub fn put_block(
        &mut self,
        mut envelope: Envelope,
        block: Block,
        len: usize,
        deadline_ns: u64,
    ) -> Result<(), NoRoom> {
        self.slot(deadline_ns)?;
        envelope.payload_len = len as u32;
        envelope.payload_at = block.publish();
        self.staged = Some(envelope);
        Ok(())
    }

    /// Whether a frame waits for its flags.
    pub fn has_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Ends the request: the staged frame goes out as its last.
    #[inline(always)]
    pub fn finish(&mut self) {
        debug_assert!(self.staged.is_some(), "a request ends with a frame");
        self.commit_staged(flags::LAST);
        let finished = self.next;
        self.reply.store(reply::FINISHED, finished);
    }

    /// Counts a node call.
    #[inline(always)]
    pub fn progress(&self) {
        self.reply.store(reply::PROGRESS, self.reply.load(reply::PROGRESS) + 1);
    }

    #[inline(always)]
    fn commit_staged(&mut self, extra_flags: u16) {
        let Some(mut envelope) = self.staged.take() else { return };
        envelope.flags |= extra_flags;
        let position = self.head;
        self.head += 1;
        self.reply_ring.write_envelope(&self.reply, position, envelope);
        self.reply_ring.commit(&self.reply, position);
        REPLY_SIGNAL.wake(&self.reply, &self.request, position);
        // The fence inside `wake` stands between the commit and this look as well.
        if self.request.load(request::BELL) == position + 1 {
            self.bell.ring();
        }
    }

    /// Commits what is staged and makes sure that the next slot is free.
    #[inline(always)]
    fn slot(&mut self, deadline_ns: u64) -> Result<(), NoRoom> {
        self.commit_staged(0);
        if self.has_slot() { Ok(()) } else { self.wait_for_room(deadline_ns, Self::has_slot) }
    }

    #[inline(always)]
    fn has_slot(&mut self) -> bool {
        let capacity = self.reply_ring.capacity();
        if self.head - self.consumed < capacity {
            return true;
        }
        // Acquire: the engine has copied out what it calls consumed. Believed only within bounds.
        let consumed = self.request.load_acquire(request::CONSUMED);
        if consumed >= self.consumed && consumed <= self.head {
            self.consumed = consumed;
        }
        self.head - self.consumed < capacity
    }

    /// Takes back what the engine has released.
    fn take_back_blocks(&mut self) {
        let places = self.geometry.release_places() as u64;
        for _ in 0..places {
            let at = self.request_layout.release_at + 8 * (self.released % places) as usize;
            let Some(block) = release::block_of(self.request.load_acquire(at), self.released) else { return };
            self.released += 1;
            // An engine that returns what it never had is broken; the block stays as it is.
            let _ = self.arena.take_back(block);
        }
    }

    /// Waits until `has_room`. Forbidden: we see no room *and* the engine, which then makes some, does not see
    /// that we want it; both sides fence between their store and their load.
    fn wait_for_room(
        &mut self,
        deadline_ns: u64,
        has_room: impl Fn(&mut Self) -> bool,
    ) -> Result<(), NoRoom> {
        loop {
            let expected = self.request.futex_load(request::ROOM);
            let stop = self.stop.load();
            self.reply.store(reply::WANTS_ROOM, 1);
            self.reply.fence_full();
            if has_room(self) {
                self.reply.store(reply::WANTS_ROOM, 0);
                return Ok(());
            }
            let now_ns = clock::monotonic_ns();
            if has_passed(deadline_ns, now_ns) {
                self.reply.store(reply::WANTS_ROOM, 0);
                return Err(NoRoom);
            }
            if stop != 0 {
                // Told to stop while nobody reads: give it up, the engine has ended the request already.
                self.reply.store(reply::WANTS_ROOM, 0);
                return Err(NoRoom);
            }
            let longest_ns = now_ns + LONGEST_SLEEP_NS;
            let until_ns = if deadline_ns == 0 { longest_ns } else { deadline_ns.min(longest_ns) };
            self.sleep_on(request::ROOM, expected, stop, until_ns);
        }
    }
}

/// What a lying worker needs beside the honest ways.
#[cfg(feature = "testing")]
impl WorkerEnd {
    /// Sends the envelope as it is, with `bytes` behind it as far as they fit.
    pub fn send_raw(&mut self, envelope: Envelope, bytes: &[u8]) -> Result<(), NoRoom> {
        self.slot(0)?;
        let bytes = &bytes[..bytes.len().min(self.inline_bytes())];
        self.reply.copy_in(self.reply_ring.inline_at(self.head), bytes);
        self.staged = Some(envelope);
        self.commit_staged(0);
        Ok(())
    }

    /// The segment that this side writes.
    pub fn reply_segment(&self) -> &View {
        &self.reply
    }

    /// Offset of a reply position's commit word.
    pub fn reply_slot_at(&self, position: u64) -> usize {
        self.reply_ring.inline_at(position) - crate::wire::envelope::ENVELOPE_BYTES
    }

    /// Next reply position.
    pub fn head(&self) -> u64 {
        self.head
    }
}
