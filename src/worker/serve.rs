//! Serving a lane: take a request, execute it, end it with exactly one LAST.

use crate::base::clock::has_passed;
use crate::base::failure::ExecutionClass;
use crate::base::ids::{Identity, NodeId, TraceId};
use crate::lane::{Incoming, NoRoom, WorkerEnd};
use crate::node::EmitError;
use crate::node::executor::{self, Executor, Port, Way};
use crate::node::request::Cancellation;
use crate::os::clock;
use crate::shm::view::{Memory, View};
use crate::wire::envelope::{Envelope, flags, kind, status};
use crate::wire::error;

/// Serves until the lane says that it is over.
pub(super) fn serve(mut end: WorkerEnd, mut executor: Executor) {
    let segment = end.request_segment().clone();
    let geometry = end.geometry();
    while let Some(incoming) = end.receive() {
        let cancelled = CancelledWord {
            segment: &segment,
            at: end.cancelled_at(&incoming),
            raised: incoming.position + 1,
        };
        let envelope = incoming.envelope;
        // The coarse clock is never ahead, so nothing is skipped early. What has just come is not looked at:
        // reading the clock costs more than it could save, and the engine cancels what is due.
        let skip = cancelled.is_cancelled()
            || incoming.has_waited
                && envelope.deadline_ns != 0
                && has_passed(envelope.deadline_ns, clock::coarse_ns());
        let mut port = RingPort { end: &mut end, incoming, lost: false };
        if !skip {
            port.end.begin(&incoming);
            match WorkerEnd::payload(&segment, &geometry, &incoming) {
                Some(payload) => {
                    let request = executor::Incoming {
                        target: envelope.target,
                        identity: identity(&envelope),
                        deadline_ns: envelope.deadline_ns,
                        payload,
                    };
                    executor.execute(&request, &cancelled, &mut port);
                }
                // The engine wrote an impossible length: it is broken, and nothing can be told to it.
                None => return,
            }
        }
        if port.finish().is_err() {
            return;
        }
    }
}

fn identity(envelope: &Envelope) -> Identity {
    Identity {
        trace_id: TraceId::from_words(envelope.trace_id),
        reply_to: envelope.reply_to,
        run: envelope.run,
        scenario: envelope.scenario,
    }
}

/// The engine's word that says whether a request is still wanted.
struct CancelledWord<'a> {
    segment: &'a View,
    at: usize,
    raised: u64,
}

impl Cancellation for CancelledWord<'_> {
    fn is_cancelled(&self) -> bool {
        self.segment.load(self.at) >= self.raised
    }
}

/// Sends a request's frames through the reply ring.
struct RingPort<'a> {
    end: &'a mut WorkerEnd,
    incoming: Incoming,
    /// A frame that must go out could not: serving is over.
    lost: bool,
}

impl RingPort<'_> {
    fn envelope(&self, kind: u8, status: u8, source: u16) -> Envelope {
        let request = &self.incoming.envelope;
        Envelope { sequence: 0, deadline_ns: 0, source, kind, status, flags: 0, ..*request }
    }

    /// Ends the request.
    fn finish(self) -> Result<(), NoRoom> {
        if !self.lost && !self.end.has_staged() {
            let done = self.envelope(kind::DONE, status::SUCCESS, self.incoming.envelope.target);
            self.end.put_inline(done, &[], 0)?;
        }
        if self.lost {
            return Err(NoRoom);
        }
        self.end.finish();
        Ok(())
    }

    fn send(&mut self, envelope: Envelope, payload: &[u8]) -> Result<(), EmitError> {
        if payload.len() > self.end.inline_bytes() {
            return self.send_with(envelope, payload.len(), &mut |room| room.copy_from_slice(payload));
        }
        Ok(self.end.put_inline(envelope, payload, self.incoming.envelope.deadline_ns)?)
    }

    fn send_with(
        &mut self,
        envelope: Envelope,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        self.check(len)?;
        let deadline_ns = self.incoming.envelope.deadline_ns;
        if len <= self.end.inline_bytes() {
            let mut room = [0; crate::base::limits::INLINE_REPLY_BYTES];
            if let Some(room) = room.get_mut(..len) {
                fill(room);
                return Ok(self.end.put_inline(envelope, room, deadline_ns)?);
            }
        }
        let mut block = self.end.block(len.max(1), deadline_ns)?;
        fill(&mut block[..len]);
        Ok(self.end.put_block(envelope, block, len, deadline_ns)?)
    }

    fn check(&self, len: usize) -> Result<(), EmitError> {
        let limit = self.end.max_payload();
        if len <= limit { Ok(()) } else { Err(EmitError::TooLarge { size: len, limit }) }
    }
}

impl From<NoRoom> for EmitError {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

impl Port for RingPort<'_> {
    fn max_payload(&self) -> usize {
        self.end.max_payload()
    }

    fn max_onward(&self) -> usize {
        self.end.max_payload().min(self.end.geometry().request_arena_bytes)
    }

    fn reply(&mut self, source: NodeId, payload: &[u8]) -> Result<(), EmitError> {
        let envelope = self.envelope(kind::TERMINAL, status::SUCCESS, source.0);
        self.send(envelope, payload)
    }

    fn reply_with(
        &mut self,
        source: NodeId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        let envelope = self.envelope(kind::TERMINAL, status::SUCCESS, source.0);
        self.send_with(envelope, len, fill)
    }

    fn pass_on(&mut self, way: Way, payload: &[u8]) -> Result<(), EmitError> {
        let envelope = Envelope {
            target: way.target.0,
            deadline_ns: way.key.unwrap_or(0),
            flags: if way.key.is_some() { flags::KEYED } else { 0 },
            ..self.envelope(kind::OUTPUT, status::SUCCESS, way.source.0)
        };
        self.send(envelope, payload)
    }

    fn fail(&mut self, source: NodeId, class: ExecutionClass, code: u32, text: &str) {
        let mut payload = [0; error::MAX_BYTES];
        let len = error::encode(class, code, text, self.end.inline_bytes(), &mut payload);
        let envelope = self.envelope(kind::TERMINAL, status::ERROR, source.0);
        if self.end.put_inline(envelope, &payload[..len], 0).is_err() {
            self.lost = true;
        }
    }

    fn progress(&mut self) {
        self.end.progress();
    }
}
