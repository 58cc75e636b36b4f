//! What all handles of an engine share, and the way of a request through it.
//!
//! dispatch: register → look at the lane's state → claim → note the position → write, commit, wake.
//! wait: look at the own root and at the lane's next reply; read for everybody; sleep when that takes long.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::correlation::{
    Admission, Admitted, Aftermath, Correlation, EndedRoot, Outcome, Phase, Refused, RootKey, Verdict,
};
use super::handle::WorkerStop;
use super::link::{Link, Sleeper, wake};
use super::memory::MemoryGroup;
use crate::base::clock::{Deadline, has_passed};
use crate::base::failure::{Cause, ExecutionClass, Failure, KilledFor, Rule};
use crate::base::ids::{GroupId, Identity, NodeId};
use crate::base::limits::READ_BATCH;
use crate::base::waiting::Waiting;
use crate::lane::{Frame, FramePayload, Outgoing, Read};
use crate::os::clock;
use crate::os::futex::Word;
use crate::os::poll::EventFd;
use crate::plan::placement::Placement;
use crate::shm::arena::Block;
use crate::shm::spin::{Next, Spinner};
use crate::wire::envelope::{ENGINE, Envelope, kind, status};
use crate::wire::error;

/// Deadlines this far away are counted from the coarse clock.
const COARSE_FROM: Duration = Duration::from_millis(100);

/// Memory profile: how often one looks who waits for room while somebody else runs a request.
const MEMORY_LOOK: Duration = Duration::from_micros(50);

/// A request as it is handed in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outbound {
    pub target: NodeId,
    pub identity: Identity,
    /// Resolved: monotonic ns, 0 = none.
    pub deadline_ns: u64,
}

/// Its payload.
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Written in place; the first so many bytes of it.
    Block(Block, usize),
    /// Written in private memory, to be copied behind the envelope; the first so many bytes of it.
    Staged(Box<[u8]>, usize),
}

/// Where a loan's bytes are.
pub(super) enum Buffer {
    Block(Block),
    Staged(Box<[u8]>),
}

/// Why a request was not taken.
pub(super) enum NotTaken<'a> {
    /// No room now; the payload comes back.
    Busy(Payload<'a>),
    TraceInFlight,
    Stopped,
    TooLarge {
        size: usize,
        limit: usize,
    },
    Failed(Failure),
}

/// How a worker ended, for whoever waits for that.
#[derive(Default)]
pub(super) struct Exits {
    pub ended: Mutex<Vec<WorkerStop>>,
    pub changed: Condvar,
}

/// Everything of an engine but its handles.
pub(super) struct Shared {
    pub placement: Placement,
    pub group_names: Vec<Arc<str>>,
    pub waiting: Waiting,
    pub correlation: Correlation,
    /// The lane; none in the memory profile.
    pub link: Option<Link>,
    pub memory: Option<MemoryGroup>,
    /// Grows when room comes free while somebody waits for it.
    pub room_made: AtomicU64,
    /// Requests are refused.
    pub stopping: AtomicBool,
    /// Wakes the engine's thread; the workers ring it too.
    pub bell: EventFd,
    /// The engine's thread looks after what nobody waits for.
    pub ticking: AtomicBool,
    /// The engine's thread shall end.
    pub ending: AtomicBool,
    /// Workers are being stopped: an exit is no failure.
    pub stopping_workers: AtomicBool,
    pub exits: Exits,
}

impl Shared {
    pub fn group_name(&self, group: GroupId) -> Arc<str> {
        Arc::clone(&self.group_names[usize::from(group.0)])
    }

    fn group_of(&self, node: NodeId) -> GroupId {
        self.placement.nodes.get(usize::from(node.0)).map_or(GroupId(0), |node| node.group)
    }

    pub fn max_payload(&self) -> usize {
        match (&self.link, &self.memory) {
            (Some(link), _) => link.end.arena().bytes(),
            (None, Some(memory)) => memory.max_payload(),
            (None, None) => unreachable!("an engine has a lane or a memory group"),
        }
    }

    pub fn resolve(&self, deadline: Deadline) -> u64 {
        match deadline {
            // A step late at most, never early, and cheaper to read.
            Deadline::After(duration) if duration >= COARSE_FROM => {
                deadline.resolve(|| clock::coarse_ns() + clock::coarse_step_ns())
            }
            _ => deadline.resolve(clock::monotonic_ns),
        }
    }

    // ---- dispatch ----

    /// Takes a request, or says why not. Never waits.
    pub fn submit<'a>(&self, outbound: &Outbound, payload: Payload<'a>) -> Result<Admitted, NotTaken<'a>> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(NotTaken::Stopped);
        }
        match (&self.link, &self.memory) {
            (Some(link), _) => self.submit_to_lane(link, outbound, payload),
            (None, Some(memory)) => memory.submit(&self.correlation, outbound, payload),
            (None, None) => unreachable!("an engine has a lane or a memory group"),
        }
    }

    fn submit_to_lane<'a>(
        &self,
        link: &Link,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        if !link.is_live() {
            return Err(NotTaken::Failed(self.dead(link, self.group_of(outbound.target))));
        }
        let outgoing = match &payload {
            Payload::Bytes(bytes) if bytes.len() > link.end.inline_bytes() => {
                let limit = link.end.arena().bytes();
                if bytes.len() > limit {
                    return Err(NotTaken::TooLarge { size: bytes.len(), limit });
                }
                let Ok(mut block) = link.end.arena().take(bytes.len()) else {
                    return Err(NotTaken::Busy(payload));
                };
                block.copy_from_slice(bytes);
                Some((block, bytes.len()))
            }
            _ => None,
        };
        if !link.end.has_room() {
            return Err(NotTaken::Busy(payload));
        }
        let admission = Admission {
            identity: outbound.identity,
            deadline_ns: outbound.deadline_ns,
            target: link.source,
            group: self.group_of(outbound.target),
        };
        let admitted = match self.correlation.register(&admission) {
            Ok(admitted) => admitted,
            Err(Refused::Full) => return Err(NotTaken::Busy(payload)),
            Err(Refused::TraceInFlight) => return Err(NotTaken::TraceInFlight),
        };
        // Registered, then looked, then published: either this sees the death, or the dying sees the root.
        if !link.is_live() {
            let outcome = Outcome::Failed(link.cause().unwrap_or(Cause::Exit(0)));
            if let Some(ended) = self.correlation.end(admitted.root, outcome, false, clock::coarse_ns()) {
                self.after(ended.index, ended.aftermath);
            }
            return Ok(admitted);
        }
        let Ok(position) = link.end.claim() else {
            // Somebody else took the last slot after the look above.
            self.correlation.withdraw(admitted.root);
            return Err(NotTaken::Busy(payload));
        };
        self.correlation.placed(admitted.ticket, position);
        let identity = outbound.identity;
        let envelope = Envelope {
            trace_id: admitted.trace_id.to_words(),
            ticket: admitted.ticket.0,
            deadline_ns: outbound.deadline_ns,
            reply_to: identity.reply_to,
            run: identity.run,
            scenario: identity.scenario,
            target: outbound.target.0,
            source: ENGINE,
            kind: kind::EXECUTE,
            status: status::SUCCESS,
            ..Envelope::default()
        };
        let staged;
        let outgoing = match (outgoing, payload) {
            (Some((block, len)), _) | (None, Payload::Block(block, len)) => Outgoing::Block(block, len),
            (None, Payload::Bytes(bytes)) => Outgoing::Inline(bytes),
            (None, Payload::Staged(bytes, len)) => {
                staged = bytes;
                Outgoing::Inline(&staged[..len])
            }
        };
        link.end.send(position, envelope, outgoing);
        // Ended meanwhile: whoever ended it may have looked for the position too early.
        if self.correlation.phase(admitted.root) != Phase::Open {
            link.end.cancel(position);
        }
        Ok(admitted)
    }

    /// Takes a request; waits for room until the deadline, reading replies meanwhile.
    #[inline]
    pub fn submit_waiting<'a>(
        &self,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        match self.submit(outbound, payload) {
            Err(NotTaken::Busy(payload)) => self.submit_when_there_is_room(outbound, payload),
            settled => settled,
        }
    }

    #[cold]
    fn submit_when_there_is_room<'a>(
        &self,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        let mut payload = Some(payload);
        let mut settled = None;
        let mut try_again = || match self.submit(outbound, payload.take().expect("given back when busy")) {
            Err(NotTaken::Busy(back)) => {
                payload = Some(back);
                false
            }
            other => {
                settled = Some(other);
                true
            }
        };
        match (&self.link, &self.memory) {
            (Some(link), _) => self.wait_for_room(link, outbound, try_again)?,
            (None, Some(memory)) => {
                while !try_again() {
                    self.give_up_if_due(outbound, clock::monotonic_ns())?;
                    if !memory.help(self) {
                        // Somebody else runs a request; its end makes room.
                        std::thread::sleep(MEMORY_LOOK);
                    }
                }
            }
            (None, None) => unreachable!("an engine has a lane or a memory group"),
        }
        settled.expect("there is room")
    }

    /// Waits until `try_again` says that it found room; reads the lane's replies meanwhile, because each gain
    /// of room is a frame among them.
    fn wait_for_room(
        &self,
        link: &Link,
        outbound: &Outbound,
        mut try_again: impl FnMut() -> bool,
    ) -> Result<(), NotTaken<'static>> {
        let word = Arc::new(Word::new(0));
        let mut spinner = Spinner::new(self.waiting);
        link.begin_looking();
        let result = loop {
            if try_again() {
                break Ok(());
            }
            if !link.is_live() {
                break Err(NotTaken::Failed(self.dead(link, self.group_of(outbound.target))));
            }
            if self.stopping.load(Ordering::SeqCst) {
                break Err(NotTaken::Stopped);
            }
            if self.read(link) {
                continue;
            }
            let next = spinner.step(link.end.processors());
            if next == Next::Look {
                continue;
            }
            let now_ns = clock::monotonic_ns();
            if let Err(due) = self.give_up_if_due(outbound, now_ns) {
                break Err(due);
            }
            if next == Next::Sleep {
                let until_ns = if outbound.deadline_ns == 0 { u64::MAX } else { outbound.deadline_ns };
                let seen = self.room_made.load(Ordering::SeqCst);
                // Room that came between the last try and this reading is found now.
                if try_again() {
                    break Ok(());
                }
                link.sleep(&self.correlation, Sleeper::Room(Arc::clone(&word)), until_ns, || {
                    link.is_live()
                        && !self.stopping.load(Ordering::SeqCst)
                        && self.room_made.load(Ordering::SeqCst) == seen
                });
                spinner = Spinner::new(self.waiting);
                link.begin_looking();
            }
        };
        link.stop_looking(&self.correlation);
        result
    }

    fn give_up_if_due(&self, outbound: &Outbound, now_ns: u64) -> Result<(), NotTaken<'static>> {
        if !has_passed(outbound.deadline_ns, now_ns) {
            return Ok(());
        }
        let group = self.group_name(self.group_of(outbound.target));
        Err(NotTaken::Failed(Failure::new(group, Cause::Deadline, false, None)))
    }

    /// Tells those who wait for room that there may be some.
    #[inline(always)]
    fn room_came_free(&self, link: &Link) {
        if link.waits_for_room() {
            self.room_made.fetch_add(1, Ordering::SeqCst);
            link.wake_for_room(&self.correlation);
        }
    }

    /// Room for a payload to be written in place; waits for it until the deadline.
    pub fn loan(&self, outbound: &Outbound, len: usize) -> Result<Buffer, NotTaken<'static>> {
        let limit = self.max_payload();
        if len > limit {
            return Err(NotTaken::TooLarge { size: len, limit });
        }
        let Some(link) = self.link.as_ref().filter(|link| len > link.end.inline_bytes()) else {
            return Ok(Buffer::Staged(vec![0; len].into()));
        };
        let mut block = None;
        self.wait_for_room(link, outbound, || {
            block = link.end.arena().take(len).ok();
            block.is_some()
        })?;
        Ok(Buffer::Block(block.expect("there is room")))
    }

    /// Reads the lane once, so that what its replies free can be used.
    pub fn look_for_room(&self) {
        if let Some(link) = &self.link
            && self.read(link)
        {
            link.stop_looking(&self.correlation);
        }
    }

    // ---- reading ----

    /// Reads a batch of replies; whether there was one. Call [`Link::stop_looking`] when done.
    pub fn read(&self, link: &Link) -> bool {
        if !link.end.has_reply() {
            return false;
        }
        let mut wakes = [0; READ_BATCH];
        let mut wake_count = 0;
        let now_ns = clock::coarse_ns();
        let read = link.end.read(|frame| {
            if let Some(index) = self.judge(link, frame, now_ns)? {
                wakes[wake_count] = index;
                wake_count += 1;
            }
            Ok(())
        });
        // After the role has been given back: waking takes a system call.
        for &index in &wakes[..wake_count] {
            wake(self.correlation.wake_word(index));
        }
        match read {
            Read::Busy => false,
            Read::Frames(frames) => {
                if frames > 0 {
                    self.room_came_free(link);
                }
                frames > 0
            }
            Read::Corrupt(rule) => {
                self.poison(link, rule);
                false
            }
        }
    }

    /// Judges one frame; returns the root whose owner must be woken.
    pub fn judge(&self, link: &Link, frame: Frame, now_ns: u64) -> Result<Option<u32>, Rule> {
        let Frame { envelope, payload, last } = frame;
        let len = payload.len() as u32;
        // Read after the frame: a worker that skipped the request for its deadline read its clock before.
        let now_ns = if envelope.kind == kind::DONE { clock::monotonic_ns() } else { now_ns };
        let outcome = match (envelope.status, &payload) {
            (status::ERROR, FramePayload::Inline { at, len }) => {
                self.check_error(link, *at, *len)?;
                Outcome::Error { len: *len as u32 }
            }
            (status::ERROR, FramePayload::Block(_)) => return Err(Rule::ErrorPayload),
            (_, FramePayload::Inline { .. }) => Outcome::Inline { len },
            (_, FramePayload::Block(block)) => {
                let (payload_at, len) = block.to_words();
                Outcome::Block { payload_at, len }
            }
        };
        let verdict = self.correlation.frame(link.source, &envelope, last, outcome, now_ns, |cell| {
            if let FramePayload::Inline { at, len } = payload {
                // Relaxed: published by the end of the root.
                link.end.inline_words(at, len, |i, word| {
                    cell[i].store(word, std::sync::atomic::Ordering::Relaxed)
                });
            }
        })?;
        match verdict {
            Verdict::Ended(index, aftermath) => Ok(self.settle(index, aftermath)),
            Verdict::Dropped => {
                if let FramePayload::Block(block) = payload {
                    link.end.release(block);
                }
                Ok(None)
            }
        }
    }

    fn check_error(&self, link: &Link, at: usize, len: usize) -> Result<(), Rule> {
        let mut payload = [0; error::MAX_BYTES];
        let payload = payload.get_mut(..len).ok_or(Rule::ErrorPayload)?;
        let mut put = |i: usize, word: u64| {
            let rest = &mut payload[8 * i..];
            let bytes = rest.len().min(8);
            rest[..bytes].copy_from_slice(&word.to_le_bytes()[..bytes]);
        };
        link.end.inline_words(at, len, &mut put);
        let (class, ..) = error::decode(payload).ok_or(Rule::ErrorPayload)?;
        if class == ExecutionClass::Misrouted {
            self.correlation.misrouted(link.source.lane);
        }
        Ok(())
    }

    /// What follows an end: the owner's index if it must be woken; a detached root is freed.
    fn settle(&self, index: u32, aftermath: Aftermath) -> Option<u32> {
        if aftermath.detached {
            self.discard(index);
            if let Some(link) = &self.link {
                link.unattended.fetch_sub(1, Ordering::AcqRel);
            }
            None
        } else {
            aftermath.asleep.then_some(index)
        }
    }

    /// [`Shared::settle`] and the waking, for ends that do not come from a batch.
    pub fn after(&self, index: u32, aftermath: Aftermath) {
        if let Some(index) = self.settle(index, aftermath) {
            wake(self.correlation.wake_word(index));
        }
    }

    /// Ends of several roots by something other than a frame: tells the worker, wakes the owners.
    pub fn after_all(&self, ended: Vec<EndedRoot>) {
        for root in ended {
            if let (Some(link), Some(position)) = (&self.link, root.position) {
                link.end.cancel(position);
            }
            self.after(root.index, root.aftermath);
        }
    }

    fn poison(&self, link: &Link, rule: Rule) {
        link.die(Cause::Killed(KilledFor::Corruption(rule)));
        // The engine's thread kills the worker and ends what is open.
        self.bell.ring();
    }

    fn dead(&self, link: &Link, group: GroupId) -> Failure {
        let cause = link.cause().unwrap_or(Cause::Exit(0));
        Failure::new(self.group_name(group), cause, false, None)
    }

    // ---- waiting ----

    /// Waits until the root has ended; its deadline is watched meanwhile.
    #[inline]
    pub fn wait(&self, key: RootKey) {
        match (&self.link, &self.memory) {
            (Some(link), _) => self.wait_on_lane(link, key),
            (None, Some(memory)) => memory.wait(self, key),
            (None, None) => unreachable!("an engine has a lane or a memory group"),
        }
    }

    fn wait_on_lane(&self, link: &Link, key: RootKey) {
        let mut spinner = Spinner::new(self.waiting);
        link.begin_looking();
        loop {
            if self.correlation.phase(key) == Phase::Ended {
                break;
            }
            if self.read(link) {
                continue;
            }
            match spinner.step(link.end.processors()) {
                Next::Look => {}
                Next::LookAt(now_ns) => self.expire_if_due(key, now_ns),
                Next::Sleep => {
                    self.expire_if_due(key, clock::monotonic_ns());
                    self.sleep_on_lane(link, key);
                    spinner = Spinner::new(self.waiting);
                    link.begin_looking();
                }
            }
        }
        link.stop_looking(&self.correlation);
    }

    #[cold]
    fn sleep_on_lane(&self, link: &Link, key: RootKey) {
        let deadline_ns = self.correlation.deadline_ns(key.index);
        let until_ns = if deadline_ns == 0 { u64::MAX } else { deadline_ns };
        if self.correlation.fall_asleep(key.index) {
            link.sleep(&self.correlation, Sleeper::Root(key.index), until_ns, || {
                self.correlation.phase(key) != Phase::Ended
            });
        }
        self.correlation.wake_up(key.index);
    }

    /// Ends the root if its deadline has passed.
    pub fn expire_if_due(&self, key: RootKey, now_ns: u64) {
        if has_passed(self.correlation.deadline_ns(key.index), now_ns) {
            let started = self.is_started(key);
            let outcome = Outcome::Failed(Cause::Deadline);
            self.after_all(self.correlation.end(key, outcome, started, now_ns).into_iter().collect());
        }
    }

    /// Ends the root as cancelled, if it has not ended.
    pub fn cancel(&self, key: RootKey) {
        let ended = self.correlation.end(key, Outcome::Cancelled, false, clock::coarse_ns());
        self.after_all(ended.into_iter().collect());
    }

    fn is_started(&self, key: RootKey) -> bool {
        let position = self.correlation.position(key);
        match (&self.link, position) {
            (Some(link), Some(position)) => link.end.started(position),
            _ => position.is_some(),
        }
    }

    /// Ends everything that is due, in order.
    pub fn expire(&self, now_ns: u64) {
        let started = |_lane, position| match &self.link {
            Some(link) => link.end.started(position),
            None => true,
        };
        self.after_all(self.correlation.expire(now_ns, started));
    }

    // ---- what nobody waits for ----

    /// A request that nobody need be waiting for exists from now on.
    pub fn begin_unattended(&self) {
        let Some(link) = &self.link else { return };
        link.unattended.fetch_add(1, Ordering::SeqCst);
        if !self.ticking.load(Ordering::SeqCst) && !self.ticking.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    /// It has been taken.
    pub fn end_unattended(&self) {
        if let Some(link) = &self.link {
            link.unattended.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Frees an ended root whose result nobody wants.
    pub fn discard(&self, index: u32) {
        let (outcome, ..) = self.correlation.outcome(index);
        match (outcome, &self.link, &self.memory) {
            (Outcome::Block { payload_at, len }, Some(link), _) => {
                link.end.release(link.end.held_block(payload_at, len));
            }
            (Outcome::Heap, _, Some(memory)) => drop(memory.take_payload(index)),
            _ => {}
        }
        self.free(index);
    }

    /// Frees a root whose outcome has been taken.
    pub fn free(&self, index: u32) {
        self.correlation.free(index);
        if let Some(link) = &self.link {
            self.room_came_free(link);
        }
    }
}

/// Requests in flight, as a relaxed figure; exact when no call is inside the engine.
pub(super) fn in_flight(correlation: &Correlation) -> u64 {
    let counters = correlation.all_counters();
    counters.registered.saturating_sub(counters.ended())
}
