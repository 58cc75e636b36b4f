//! Serving a lane: take a request, execute it, end it with exactly one LAST.

use crate::base::clock::has_passed;
use crate::base::failure::ExecutionClass;
use crate::base::ids::{Identity, NodeId, TraceId};
use crate::lane::{Incoming, NoRoom, Said, WorkerEnd};
use crate::node::EmitError;
use crate::node::executor::{self, Executor, Port, Way};
use crate::node::request::Cancellation;
use crate::os::clock;
use crate::shm::view::{Memory, View};
use crate::wire::envelope::{Envelope, kind, status};
use crate::wire::error;

/// Serves until the lane says that it is over.
pub(super) fn serve(mut end: WorkerEnd, mut executor: Executor) {
    let segment = end.request_segment().clone();
    while let Some(incoming) = end.receive() {
        if serve_next(&mut end, &mut executor, &segment, &incoming).is_err() {
            return;
        }
    }
}

/// Serves one request to its last frame. `Err`: serving is over.
#[inline(always)]
fn serve_next(
    end: &mut WorkerEnd,
    executor: &mut Executor,
    segment: &View,
    incoming: &Incoming,
) -> Result<(), NoRoom> {
    let envelope = &incoming.envelope;
    let cancelled = CancelledWord { segment, at: end.cancelled_at(incoming), raised: incoming.position + 1 };
    // The coarse clock is never ahead, so nothing is skipped early. What has just come is not looked at:
    // reading the clock costs more than it could save, and the engine cancels what is due.
    let skip = cancelled.is_cancelled()
        || incoming.has_waited
            && envelope.deadline_ns != 0
            && has_passed(envelope.deadline_ns, clock::coarse_ns());
    let mut port = RingPort { end, target: envelope.target, deadline_ns: envelope.deadline_ns, lost: false };
    if !skip {
        port.end.begin(incoming);
        // The engine wrote an impossible length: it is broken, and nothing can be told to it.
        let payload = port.end.payload(segment, incoming).ok_or(NoRoom)?;
        let request = executor::Incoming {
            target: envelope.target,
            identity: &identity(envelope),
            deadline_ns: envelope.deadline_ns,
            payload,
        };
        executor.execute(&request, &cancelled, &mut port);
    }
    port.finish()
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
    /// Of the request.
    target: u16,
    /// Of the request.
    deadline_ns: u64,
    /// A frame that must go out could not: serving is over.
    lost: bool,
}

impl RingPort<'_> {
    #[inline(always)]
    fn said(&self, kind: u8, status: u8, source: u16) -> Said {
        Said::new(kind, status, self.target, source)
    }

    /// Ends the request.
    #[inline(always)]
    fn finish(self) -> Result<(), NoRoom> {
        if !self.lost && !self.end.has_staged() {
            let done = self.said(kind::DONE, status::SUCCESS, self.target);
            self.end.put_inline(done, &[], 0)?;
        }
        if self.lost {
            return Err(NoRoom);
        }
        self.end.finish();
        Ok(())
    }

    #[inline(always)]
    fn send(&mut self, said: Said, payload: &[u8]) -> Result<(), EmitError> {
        if payload.len() > self.end.inline_bytes() {
            return self.send_with(said, payload.len(), &mut |room| room.copy_from_slice(payload));
        }
        Ok(self.end.put_inline(said, payload, self.deadline_ns)?)
    }

    fn send_with(
        &mut self,
        said: Said,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        self.check(len)?;
        let deadline_ns = self.deadline_ns;
        if len <= self.end.inline_bytes() {
            let mut room = [0; crate::base::limits::INLINE_REPLY_BYTES];
            if let Some(room) = room.get_mut(..len) {
                fill(room);
                return Ok(self.end.put_inline(said, room, deadline_ns)?);
            }
        }
        let mut block = self.end.block(len.max(1), deadline_ns)?;
        fill(&mut block[..len]);
        Ok(self.end.put_block(said, block, len, deadline_ns)?)
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
        self.end.max_onward()
    }

    fn reply(&mut self, source: NodeId, payload: &[u8]) -> Result<(), EmitError> {
        self.send(self.said(kind::TERMINAL, status::SUCCESS, source.0), payload)
    }

    fn reply_with(
        &mut self,
        source: NodeId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        self.send_with(self.said(kind::TERMINAL, status::SUCCESS, source.0), len, fill)
    }

    fn pass_on(&mut self, way: Way, payload: &[u8]) -> Result<(), EmitError> {
        let said = Said::new(kind::OUTPUT, status::SUCCESS, way.target.0, way.source.0);
        self.send(said.by(way.key), payload)
    }

    fn fail(&mut self, source: NodeId, class: ExecutionClass, code: u32, text: &str) {
        let mut payload = [0; error::MAX_BYTES];
        let len = error::encode(class, code, text, self.end.inline_bytes(), &mut payload);
        let said = self.said(kind::TERMINAL, status::ERROR, source.0);
        if self.end.put_inline(said, &payload[..len], 0).is_err() {
            self.lost = true;
        }
    }

    fn progress(&mut self) {
        self.end.progress();
    }
}
