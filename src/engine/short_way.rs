//! The short way of a call, there and back: a payload that fits its slot, one worker that lives and has room, an owner
//! who waits. The same as the long way, less what does not apply; it gives up without a trace, and the long way finds
//! out why.

use std::sync::Arc;

use super::correlation::{Admitted, Phase, Source};
use super::dispatch::{Outbound, Payload};
use super::link::Link;
use super::pending::{CallError, take};
use super::reply::Reply;
use super::request::settled;
use super::shared::Shared;
use super::wait::Budget;
use crate::base::ids::Identity;
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::lane::Outgoing;
use crate::shm::spin::Next;

/// A request that has been sent to a worker, and where.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub admitted: Admitted,
    pub source: Source,
    pub position: u64,
    /// How often hops of the root had got a lane before it was sent.
    pub moves: u64,
    /// Whether its payload lies in the arena. Then that of its reply is likely to as well.
    pub is_large: bool,
}

impl Sent {
    /// A request that stands in no lane that anybody knew of when it was sent.
    pub fn somewhere(admitted: Admitted) -> Self {
        Self { admitted, source: Source { lane: 0, incarnation: 0 }, position: 0, moves: 0, is_large: false }
    }
}

/// What a wait for one's own reply goes by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    /// How long the worker usually takes from the sending of a request to its reply; and it is learned.
    Learned,
    /// Nothing: others have been sent meanwhile.
    None,
}

impl Shared {
    /// Sends a request, waits for its end, and takes that.
    #[inline(always)]
    pub fn call(self: &Arc<Self>, outbound: &Outbound, bytes: &[u8]) -> Result<Reply, CallError> {
        if self.has_local
            && let Some(end) = self.call_here(outbound, bytes)
        {
            return end;
        }
        match self.submit_at_once(outbound, bytes) {
            Some((link, sent)) => self.answer_to(link, outbound, &sent),
            None => self.call_the_long_way(outbound, Payload::Bytes(bytes)),
        }
    }

    /// A call of a group that runs in this process. `None`: nothing has happened.
    #[inline(never)]
    fn call_here(self: &Arc<Self>, outbound: &Outbound, bytes: &[u8]) -> Option<Result<Reply, CallError>> {
        let group = self.first_group(outbound)?;
        let local = self.lanes[self.lane_in(group, outbound)].local()?;
        let is_usual = bytes.len() <= self.max_payload() && !self.holds_too_much();
        if is_usual { local.call(self, outbound, bytes) } else { None }
    }

    /// The end of a request that has been sent: by the short way, or the long one.
    #[inline(always)]
    pub(super) fn answer_to(
        self: &Arc<Self>,
        link: &Link,
        outbound: &Outbound,
        sent: &Sent,
    ) -> Result<Reply, CallError> {
        match self.own_reply(link, &outbound.identity, sent, Habit::Learned) {
            Ok(reply) => Ok(reply),
            Err(budget) => {
                self.wait_on(sent.admitted.root(), budget);
                take(self, sent.admitted.root())
            }
        }
    }

    #[inline(never)]
    pub(super) fn call_the_long_way(
        self: &Arc<Self>,
        outbound: &Outbound,
        payload: Payload<'_>,
    ) -> Result<Reply, CallError> {
        let admitted = self.submit_or_wait(outbound, payload).map_err(settled)?;
        self.wait(admitted.root());
        take(self, admitted.root())
    }

    /// Sends a request, without a copy on the way. `None`: nothing has happened.
    #[inline(always)]
    pub fn submit_at_once(&self, outbound: &Outbound, bytes: &[u8]) -> Option<(&Link, Sent)> {
        let group = self.first_group(outbound)?;
        let link = self.lanes[self.lane_in(group, outbound)].link()?;
        let is_usual = bytes.len() <= link.end.inline_bytes()
            && link.is_live()
            && link.forwards.waiting() == 0
            && !self.holds_too_much();
        if !is_usual {
            return None;
        }
        let (admitted, position) = self.admit(link, group, outbound).ok()?;
        let moves = self.correlation.moves(admitted.index);
        self.launch(link, outbound, &admitted, position, Outgoing::Inline(bytes));
        Some((link, Sent { admitted, source: link.source, position, moves, is_large: false }))
    }

    /// Waits for the reply to a request while it need not sleep, and takes it out of the lane itself. `Err`: something
    /// else has come, or nothing; with what is left for looking.
    #[inline(always)]
    pub(super) fn own_reply(
        self: &Arc<Self>,
        link: &Link,
        identity: &Identity,
        sent: &Sent,
        habit: Habit,
    ) -> Result<Reply, Budget> {
        let admitted = &sent.admitted;
        link.begin_looking();
        let mut spinner = match habit {
            Habit::Learned => link.end.spinner_for_own(self.waiting),
            Habit::None => link.end.spinner(self.waiting),
        };
        let reply = loop {
            if link.end.has_reply() {
                if habit == Habit::None {
                    link.end.prefetch_replies();
                }
                break self.read_own_of_either_size(link, identity, sent).ok_or(Budget::Whole);
            }
            // Somebody else may have read it, or an output of it that goes on: then nothing need come here any more.
            let is_here = self.correlation.moves(admitted.index) == sent.moves;
            if !is_here || self.correlation.phase(admitted.root()) != Phase::Open {
                break Err(Budget::Whole);
            }
            match spinner.step(link.end.processors()) {
                Next::Look => {}
                Next::LookAt(now_ns) => {
                    self.note_clock(now_ns);
                    self.expire_if_due(admitted.root(), now_ns);
                }
                Next::Sleep => break Err(Budget::Spent),
            }
        };
        if reply.is_ok() {
            match habit {
                Habit::Learned => link.end.end_wait_for_own(&spinner),
                Habit::None => link.end.end_wait(&spinner),
            }
            if link.forwards.waiting() != 0 {
                self.flush_behind_fence(link);
            }
            link.stop_looking_after_read(&self.correlation);
            self.correlation.free_own(admitted);
            self.room_came_free();
        } else {
            link.stop_looking(&self.correlation);
        }
        reply
    }

    #[inline(always)]
    fn read_own_of_either_size(
        self: &Arc<Self>,
        link: &Link,
        identity: &Identity,
        sent: &Sent,
    ) -> Option<Reply> {
        if !sent.is_large
            && let Some(reply) = self.read_own(link, identity, sent)
        {
            return Some(reply);
        }
        self.read_own_of_other_size(link, identity, sent)
    }

    /// Apart, so that the usual way is small enough to stand in its caller: 4 ns of a call.
    #[inline(never)]
    fn read_own_of_other_size(
        self: &Arc<Self>,
        link: &Link,
        identity: &Identity,
        sent: &Sent,
    ) -> Option<Reply> {
        let large = self.read_own_block(link, identity, sent);
        if large.is_none() && sent.is_large { self.read_own(link, identity, sent) } else { large }
    }

    #[inline(always)]
    fn read_own(&self, link: &Link, identity: &Identity, sent: &Sent) -> Option<Reply> {
        let Sent { admitted, position, .. } = sent;
        let now_ns = self.noted_clock_ns();
        link.end.read_own(*position, admitted.ticket.0, |reply| {
            let carried = (reply.trace_id, reply.tags);
            let is_ended = reply.len <= INLINE_REPLY_BYTES
                && self.correlation.end_own(admitted, identity, link.source, carried, now_ns);
            let identity = Identity { trace_id: admitted.trace_id, ..*identity };
            is_ended.then(|| Reply::small(identity, reply.len, |bytes| reply.copy_to(bytes)))
        })
    }
}
