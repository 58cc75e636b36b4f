//! The short way of a call, there and back: a payload that fits its slot, one worker that lives and has room, an owner
//! who waits. The same as the long way, less what does not apply; it gives up without a trace, and the long way finds
//! out why.

use std::sync::Arc;

use super::correlation::{Admitted, Phase};
use super::dispatch::{Outbound, Payload};
use super::link::Link;
use super::pending::{CallError, Reply, take};
use super::request::settled;
use super::shared::Shared;
use super::small::Small;
use crate::base::ids::Identity;
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::lane::Outgoing;
use crate::shm::spin::Next;

/// A request that has been sent, and where.
pub(super) struct Sent<'s> {
    pub admitted: Admitted,
    pub link: &'s Link,
    pub position: u64,
    /// How often hops of the root had got a lane before it was sent.
    pub moves: u64,
    /// Whether its payload lies in the arena. Then that of its reply is likely to as well.
    pub is_large: bool,
}

impl Shared {
    /// Sends a request, waits for its end, and takes that.
    #[inline(always)]
    pub fn call(self: &Arc<Self>, outbound: &Outbound, bytes: &[u8]) -> Result<Reply, CallError> {
        match self.submit_at_once(outbound, bytes) {
            Some(sent) => self.answer_to(outbound, &sent),
            None => self.call_the_long_way(outbound, Payload::Bytes(bytes)),
        }
    }

    /// The end of a request that has been sent: by the short way, or the long one.
    #[inline(always)]
    pub(super) fn answer_to(
        self: &Arc<Self>,
        outbound: &Outbound,
        sent: &Sent<'_>,
    ) -> Result<Reply, CallError> {
        if let Some(reply) = self.own_reply(outbound, sent) {
            return Ok(reply);
        }
        self.wait(sent.admitted.root);
        take(self, sent.admitted.root)
    }

    #[inline(never)]
    pub(super) fn call_the_long_way(
        self: &Arc<Self>,
        outbound: &Outbound,
        payload: Payload<'_>,
    ) -> Result<Reply, CallError> {
        let admitted = self.submit_or_wait(outbound, payload).map_err(settled)?;
        self.wait(admitted.root);
        take(self, admitted.root)
    }

    /// Sends a request, without a copy on the way. `None`: nothing has happened.
    #[inline(always)]
    pub fn submit_at_once(&self, outbound: &Outbound, bytes: &[u8]) -> Option<Sent<'_>> {
        let group = self.may_enter(outbound).ok()?;
        let link = self.lanes[self.lane_in(group, outbound)].link()?;
        let is_usual = bytes.len() <= link.end.inline_bytes()
            && link.is_live()
            && link.forwards.waiting() == 0
            && !self.holds_too_much();
        if !is_usual {
            return None;
        }
        let (admitted, position) = self.admit(link, group, outbound).ok()?;
        let moves = self.correlation.moves(admitted.root.index);
        self.launch(link, outbound, &admitted, position, Outgoing::Inline(bytes));
        Some(Sent { admitted, link, position, moves, is_large: false })
    }

    /// Waits for the reply to a request while it need not sleep, and takes it out of the lane itself. `None`: something
    /// else has come, or nothing.
    #[inline(always)]
    fn own_reply(self: &Arc<Self>, outbound: &Outbound, sent: &Sent<'_>) -> Option<Reply> {
        let Sent { admitted, link, .. } = sent;
        link.begin_looking();
        let mut spinner = link.end.spinner_for_own(self.waiting);
        let reply = loop {
            if link.end.has_reply() {
                break self.read_own_of_either_size(outbound, sent);
            }
            // Somebody else may have read it, or an output of it that goes on: then nothing need come here any more.
            let is_here = self.correlation.moves(admitted.root.index) == sent.moves;
            if !is_here || self.correlation.phase(admitted.root) != Phase::Open {
                break None;
            }
            match spinner.step(link.end.processors()) {
                Next::Look => {}
                Next::LookAt(now_ns) => {
                    self.note_clock(now_ns);
                    self.expire_if_due(admitted.root, now_ns);
                }
                Next::Sleep => break None,
            }
        };
        if reply.is_some() {
            link.end.end_wait_for_own(&spinner);
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
    fn read_own_of_either_size(self: &Arc<Self>, outbound: &Outbound, sent: &Sent<'_>) -> Option<Reply> {
        if sent.is_large {
            return self.read_own_block(outbound, sent).or_else(|| self.read_own(outbound, sent));
        }
        self.read_own(outbound, sent).or_else(|| self.read_own_block(outbound, sent))
    }

    #[inline(always)]
    fn read_own(&self, outbound: &Outbound, sent: &Sent<'_>) -> Option<Reply> {
        let Sent { admitted, link, position, .. } = sent;
        let now_ns = self.noted_clock_ns();
        link.end.read_own(*position, admitted.ticket.0, |reply| {
            let carried = (reply.trace_id, reply.tags);
            let is_ended = reply.len <= INLINE_REPLY_BYTES
                && self.correlation.end_own(admitted, &outbound.identity, link.source, carried, now_ns);
            let identity = Identity { trace_id: admitted.trace_id, ..outbound.identity };
            is_ended.then(|| {
                let payload = Small::new(reply.len, |bytes| reply.copy_to(bytes));
                Reply::small(identity, payload)
            })
        })
    }
}
