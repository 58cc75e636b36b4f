//! The short way of a call whose payload was written in place, or whose reply is a large one: as `short_way.rs`, and
//! like that it gives up without a trace.

use std::sync::Arc;

use super::correlation::Source;
use super::dispatch::{Outbound, Payload};
use super::pending::{CallError, Reply};
use super::shared::Shared;
use super::short_way::Sent;
use crate::base::ids::Identity;
use crate::lane::Outgoing;
use crate::shm::arena::Block;

impl Shared {
    /// Sends a request that was written in place, waits for its end, and takes that.
    pub fn call_in_place(
        self: &Arc<Self>,
        outbound: &Outbound,
        payload: Payload<'static>,
    ) -> Result<Reply, CallError> {
        let payload = match payload {
            Payload::Block(source, block, len) => match self.send_block_at_once(outbound, source, block, len)
            {
                Ok(sent) => return self.answer_to(outbound, &sent),
                Err(block) => Payload::Block(source, block, len),
            },
            Payload::Staged(bytes, len) => match self.submit_at_once(outbound, &bytes[..len]) {
                Some(sent) => return self.answer_to(outbound, &sent),
                None => Payload::Staged(bytes, len),
            },
            payload @ Payload::Bytes(_) => payload,
        };
        self.call_the_long_way(outbound, payload)
    }

    /// Sends a request whose payload lies in the arena of `source`. `Err`: nothing has happened.
    #[inline(always)]
    pub(super) fn send_block_at_once(
        &self,
        outbound: &Outbound,
        source: Source,
        block: Block,
        len: usize,
    ) -> Result<Sent<'_>, Block> {
        let Ok(group) = self.may_enter(outbound) else { return Err(block) };
        let Some(link) = self.lanes[self.lane_in(group, outbound)].link() else { return Err(block) };
        // As on the long way, a loan does not wait for what comes from other groups: it holds room that they need.
        let is_usual = link.source == source && link.is_live() && !self.holds_too_much();
        if !is_usual {
            return Err(block);
        }
        let Ok((admitted, position)) = self.admit(link, group, outbound) else { return Err(block) };
        let moves = self.correlation.moves(admitted.root.index);
        self.launch(link, outbound, &admitted, position, Outgoing::Block(block, len));
        Ok(Sent { admitted, link, position, moves, is_large: true })
    }

    /// Takes a large reply to a request out of the lane, if that is what stands there.
    #[inline(never)]
    pub fn read_own_block(self: &Arc<Self>, outbound: &Outbound, sent: &Sent<'_>) -> Option<Reply> {
        let Sent { admitted, link, position, .. } = sent;
        let now_ns = self.noted_clock_ns();
        let ends = |trace_id, tags| {
            let carried = (trace_id, tags);
            self.correlation.end_own(admitted, &outbound.identity, link.source, carried, now_ns)
        };
        let block = link.end.read_own_block(*position, admitted.ticket.0, ends)?;
        let identity = Identity { trace_id: admitted.trace_id, ..outbound.identity };
        Some(Reply::in_arena(identity, self, link.source, block))
    }
}
