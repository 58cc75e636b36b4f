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
use crate::shm::ring::{Look, OwnRing, PeerRing};
use crate::shm::spin::{Next, Processors, Spinner};
use crate::shm::view::{Memory, View};
use crate::wire::control::{reply, request};
use crate::wire::envelope::{ENVELOPE_WORDS, Envelope, FLAGS_SHIFT, flags};
use crate::wire::geometry::{Geometry, RequestLayout};
use crate::wire::release;

/// Without `futex_waitv` a sleeping worker looks for a stop this often.
const STOP_LOOK_NS: u64 = 50_000_000;

/// From so many blocks on that the engine has, one looks whether it has released some: as many as there are entries of
/// the release ring in a line.
const MOST_LENT: u64 = 8;

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
    reply: View,
    requests: PeerRing,
}

impl Idleness {
    /// Whether every request that has come has been ended. The worker's own word says how far it is.
    pub fn is_idle(&self) -> bool {
        let finished = self.reply.load_acquire(reply::FINISHED);
        self.requests.place(finished).look() == Look::Empty
    }
}

/// The words of a request's envelope that its replies carry back: trace id, ticket, tags.
#[derive(Clone, Copy, Default)]
struct Origin([u64; 4]);

impl Origin {
    fn of(envelope: &Envelope) -> Self {
        let [first, second] = envelope.trace_id;
        Self([first, second, envelope.ticket, envelope.tags_word()])
    }
}

/// What a reply frame says beside what it carries back.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// The last word of its envelope, but for the flags.
    ///
    /// Put together where it is said: a word that is loaded right after narrower stores to it waits for them.
    head: u64,
    key: Option<u64>,
}

impl Said {
    /// `kind` and `status` as in the envelope; `target` is the node that the frame is for, or that the request was
    /// for, `source` the node that speaks.
    #[inline(always)]
    pub fn new(kind: u8, status: u8, target: u16, source: u16) -> Self {
        let head = Envelope { kind, status, target, source, ..Envelope::default() }.head_word();
        Self { head, key: None }
    }

    /// An output by a key, which chooses the process that it goes to.
    #[inline(always)]
    pub fn by(self, key: Option<u64>) -> Self {
        Self { key, ..self }
    }
}

/// What is a written frame's own of its envelope.
#[derive(Clone, Copy)]
struct Staged {
    key: u64,
    payload: u64,
    head: u64,
}

impl Staged {
    fn new(said: Said, payload_len: usize, payload_at: u32) -> Self {
        let Said { head, key } = said;
        let flags = if key.is_some() { flags::KEYED } else { 0 };
        let own = Envelope { payload_len: payload_len as u32, payload_at, ..Envelope::default() };
        let head = head | u64::from(flags) << FLAGS_SHIFT;
        Self { key: key.unwrap_or(0), payload: own.payload_word(), head }
    }
}

/// The worker's side.
pub struct WorkerEnd {
    request: View,
    reply: View,
    geometry: Geometry,
    request_layout: RequestLayout,
    request_ring: PeerRing,
    reply_ring: OwnRing,
    arena: Arc<Arena>,
    /// Next request position.
    next: u64,
    /// Next reply position.
    head: u64,
    /// What the engine last said it has consumed.
    consumed: u64,
    /// Next entry of the release ring.
    released: u64,
    /// Blocks that the engine has, or has released unnoticed.
    lent: u64,
    /// Payload bytes of the latest request and of its replies, as far as they lie in arenas.
    moved_bytes: u64,
    /// Node calls so far.
    progress: u64,
    /// Of the request that is being served: what its replies carry back unchanged.
    origin: Origin,
    /// A written frame that waits for its flags.
    staged: Option<Staged>,
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
            request_ring: PeerRing::in_segment(
                request.clone(),
                request_layout.slots_at,
                geometry.slot_bytes,
                geometry.slots,
            ),
            reply_ring: OwnRing::in_segment(
                reply.clone(),
                reply_layout.slots_at,
                geometry.slot_bytes,
                geometry.slots,
            ),
            arena: Arc::new(arena),
            next: 0,
            head: 0,
            consumed: 0,
            released: 0,
            lent: 0,
            moved_bytes: 0,
            progress: 0,
            origin: Origin::default(),
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

    /// The largest payload that another group can take.
    pub fn max_onward(&self) -> usize {
        self.max_payload().min(self.geometry.request_arena_bytes)
    }

    /// The segment that requests stand in.
    pub fn request_segment(&self) -> &View {
        &self.request
    }

    /// For another thread: whether every request that has come has been ended.
    pub fn idleness(&self) -> Idleness {
        let Geometry { slot_bytes, slots, .. } = self.geometry;
        let requests =
            PeerRing::in_segment(self.request.clone(), self.request_layout.slots_at, slot_bytes, slots);
        Idleness { reply: self.reply.clone(), requests }
    }

    /// Whether serving shall end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load() != 0
    }

    // ---- receiving ----

    /// Waits for the next request; `None` when serving shall end. An impossible commit word ends it too:
    /// the engine is gone or broken, and the watcher of the control connection will say which.
    #[inline(always)]
    pub fn receive(&mut self) -> Option<Incoming> {
        // The next reply's lines come while the request is being waited for. Whoever is to read it does not look before it
        // has sent that; a caller who looks for its own only after a lull.
        self.reply_ring.place(self.head).slot.prefetch_write();
        let has_waited = match self.request_ring.place(self.next).look() {
            Look::Ready => true,
            Look::Corrupt => return None,
            Look::Empty => self.wait()?,
        };
        Some(self.take(has_waited))
    }

    /// Waits until the next request is there; tells whether it has waited for us.
    fn wait(&mut self) -> Option<bool> {
        let mut spinner = Spinner::new(self.policy, self.shares).beside_payload(self.moved_bytes);
        let mut has_waited = false;
        loop {
            let place = self.request_ring.place(self.next);
            // With each look, so that it comes beside the envelope, not behind it.
            place.slot.prefetch_inline();
            match place.look() {
                Look::Ready => {
                    self.shares = spinner.shares();
                    return Some(has_waited);
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
                    if self.is_stopping() && self.request_ring.place(self.next).look() == Look::Empty {
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
        // The payload's line comes while the envelope is being looked at.
        let place = self.request_ring.place(position);
        place.slot.prefetch_inline();
        let envelope = place.envelope();
        let payload_at = match envelope.payload_at {
            0 => self.request_ring.inline_at(position),
            at => self.request_layout.arena_at + (at as usize - 1) * crate::base::limits::CACHE_LINE_BYTES,
        };
        self.moved_bytes = 0;
        if envelope.payload_at != 0 {
            self.request.prefetch_read(payload_at, envelope.payload_len as usize);
            self.moved_bytes = u64::from(envelope.payload_len);
        }
        self.origin = Origin::of(&envelope);
        self.next += 1;
        Incoming { position, envelope, has_waited, payload_at }
    }

    fn sleep(&self) {
        let expected = REQUEST_SIGNAL.prepare(&self.request);
        let stop = self.stop.load();
        REQUEST_SIGNAL.announce(&self.reply, self.next);
        if stop == 0 && self.request_ring.place(self.next).look() == Look::Empty {
            self.sleep_on(request::WAKE, expected, stop, clock::monotonic_ns() + LONGEST_SLEEP_NS);
        }
        REQUEST_SIGNAL.withdraw(&self.reply);
    }

    /// Sleeps on a word of the request segment and on `stop`.
    fn sleep_on(&self, word_at: usize, expected: u32, stop: u32, until_ns: u64) {
        if futex::waitv_supported() {
            let word = self.request.futex_word(word_at);
            futex::note_sleep(futex::wait_either(word, expected, &self.stop, stop, Some(until_ns)));
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
    #[inline(always)]
    pub fn payload<'a>(&self, segment: &'a View, incoming: &Incoming) -> Option<&'a [u8]> {
        let len = incoming.envelope.payload_len as usize;
        let room = match incoming.envelope.payload_at {
            0 => self.inline_bytes(),
            _ => self.request_layout.total.checked_sub(incoming.payload_at)?,
        };
        (len <= room).then(|| request_bytes(segment, incoming.payload_at, len))
    }

    /// Offset of the word that tells whether `incoming` has been cancelled.
    pub fn cancelled_at(&self, incoming: &Incoming) -> usize {
        self.request_layout.cancelled_at + 8 * self.request_ring.index(incoming.position)
    }

    // ---- replying ----

    /// A block of the reply arena; waits for room until the deadline (0 = none).
    pub fn block(&mut self, len: usize, deadline_ns: u64) -> Result<Block, NoRoom> {
        loop {
            // Looking at the engine's word costs its cache line: not for each block, while there is room in the half
            // that the engine leaves replies in.
            if self.lent < MOST_LENT
                && let Ok(block) = self.arena.take(len)
                && (self.lent == 0 || block.is_in_lower_half())
            {
                return Ok(block);
            }
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
    #[inline(always)]
    pub fn put_inline(&mut self, said: Said, payload: &[u8], deadline_ns: u64) -> Result<(), NoRoom> {
        self.slot(deadline_ns)?;
        self.reply_ring.place(self.head).slot.copy_in(payload);
        self.staged = Some(Staged::new(said, payload.len(), 0));
        Ok(())
    }

    /// Writes a frame whose payload is the first `len` bytes of `block`, and stages it.
    pub fn put_block(
        &mut self,
        said: Said,
        block: Block,
        len: usize,
        deadline_ns: u64,
    ) -> Result<(), NoRoom> {
        self.slot(deadline_ns)?;
        self.lent += 1;
        self.moved_bytes += len as u64;
        self.staged = Some(Staged::new(said, len, block.publish()));
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
    pub fn progress(&mut self) {
        self.progress += 1;
        self.reply.store(reply::PROGRESS, self.progress);
    }

    #[inline(always)]
    fn commit_staged(&mut self, extra_flags: u16) {
        let Some(Staged { key, payload, head }) = self.staged.take() else { return };
        let Origin([first, second, ticket, tags]) = self.origin;
        let head = head | u64::from(extra_flags) << FLAGS_SHIFT;
        self.commit([first, second, ticket, key, tags, payload, head]);
    }

    /// Publishes the frame at the head with this envelope, of which the commit word is not given.
    #[inline(always)]
    fn commit(&mut self, words: [u64; ENVELOPE_WORDS - 1]) {
        let position = self.head;
        self.head += 1;
        self.reply_ring.place(position).publish(words);
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
            self.lent = self.lent.saturating_sub(1);
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
        self.reply_ring.place(self.head).slot.copy_in(bytes);
        let [_, words @ ..] = envelope.to_words();
        self.commit(words);
        Ok(())
    }

    /// Sizes of the lane.
    pub fn geometry(&self) -> Geometry {
        self.geometry
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
