//! The way of a request out: register → claim → note the position → write, commit, wake → look once more
//! whether it has been ended or its lane has died meanwhile.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::correlation::{Admission, Admitted, Outcome, Phase, Refused, RootKey};
use super::link::{Link, Sleeper};
use super::shared::Shared;
use crate::base::clock::has_passed;
use crate::base::failure::{Cause, Failure};
use crate::base::ids::{Identity, NodeId};
use crate::lane::Outgoing;
use crate::os::clock;
use crate::os::futex::Word;
use crate::shm::arena::Block;
use crate::shm::spin::Next;
use crate::wire::envelope::{ENGINE, Envelope, kind, status};
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
impl Shared {
    /// Takes a request, or says why not. Never waits.
    pub fn submit<'a>(&self, outbound: &Outbound, payload: Payload<'a>) -> Result<Admitted, NotTaken<'a>> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(NotTaken::Stopped);
        }
        // Against the clock as it was read for this deadline.
        self.give_up_if_due(outbound, self.clock_ns.load(Ordering::Relaxed))?;
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
        link.end.prepare();
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
        // The full fence inside `send` stands between what has been stored (root, position, frame) and the three
        // looks below. Against each of them somebody else stores, fences and looks the other way round: who
        // raises deadline bounds, who ends the root and cancels its position, who declares the lane dead.
        self.correlation.published(admitted.root, outbound.deadline_ns);
        if self.correlation.phase(admitted.root) != Phase::Open {
            link.end.cancel(position);
        }
        if !link.is_live() {
            self.end_on_dead_lane(link, admitted.root);
        }
        Ok(admitted)
    }

    /// The lane died while the request was being sent, and whoever settled that may have looked before.
    #[cold]
    fn end_on_dead_lane(&self, link: &Link, root: RootKey) {
        let outcome = Outcome::Failed(link.cause().unwrap_or(Cause::Exit(0)));
        if let Some(ended) = self.correlation.end(root, outcome, false, self.read_clock()) {
            self.after(ended.index, ended.aftermath);
        }
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
        let mut spinner = link.end.spinner(self.waiting);
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
                link.begin_waiting_for_room();
                let found = try_again();
                if !found {
                    link.sleep(&self.correlation, Sleeper::Room(Arc::clone(&word)), until_ns, || {
                        link.is_live()
                            && !self.stopping.load(Ordering::SeqCst)
                            && self.room_made.load(Ordering::SeqCst) == seen
                    });
                }
                link.end_waiting_for_room();
                if found {
                    break Ok(());
                }
                spinner.renew();
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

    /// Tells those who wait for room that there may be some. A full fence stands between the making of it and
    /// this.
    #[inline(always)]
    pub fn room_came_free(&self, link: &Link) {
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

    /// A loan is over: sent, or given back.
    pub fn loan_ended(&self) {
        if let Some(link) = &self.link {
            fence(Ordering::SeqCst);
            self.room_came_free(link);
        }
    }

    /// Reads the lane once, so that what its replies free can be used.
    pub fn look_for_room(&self) {
        if let Some(link) = &self.link
            && self.read(link)
        {
            link.stop_looking_after_read(&self.correlation);
        }
    }
}
