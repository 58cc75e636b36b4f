//! The short way of a call whose payload was written in place, or whose reply is a large one: as `short_way.rs`, and
//! like that it gives up without a trace.

use std::sync::Arc;

use super::correlation::Source;
use super::dispatch::{Outbound, Payload};
use super::link::Link;
use super::pending::CallError;
use super::reply::Reply;
use super::shared::Shared;
use super::short_way::Sent;
use crate::base::ids::Identity;
use crate::lane::Outgoing;
use crate::shm::arena::Block;

impl Shared {
    /// Sends a request that was written in place, waits for its end, and takes that.
    #[inline(always)]
    pub fn call_in_place(
        self: &Arc<Self>,
        outbound: &Outbound,
        payload: Payload<'_>,
    ) -> Result<Reply, CallError> {
        match self.send_in_place(outbound, payload) {
            Ok((link, sent)) => self.answer_to(link, outbound, &sent),
            Err(payload) => self.call_the_long_way(outbound, payload),
        }
    }

    /// Sends a request that was written in place. `Err`: nothing has happened.
    #[inline(always)]
    pub fn send_in_place<'a>(
        &self,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<(&Link, Sent), Payload<'a>> {
        match payload {
            Payload::Block(source, block, len) => self
                .send_block_at_once(outbound, source, block, len)
                .map_err(|block| Payload::Block(source, block, len)),
            Payload::Bytes(bytes) => self.submit_at_once(outbound, bytes).ok_or(payload),
            Payload::Staged(bytes, len) => {
                self.submit_at_once(outbound, &bytes[..len]).ok_or(Payload::Staged(bytes, len))
            }
        }
    }

    /// Sends a request whose payload lies in the arena of `source`. `Err`: nothing has happened.
    #[inline(always)]
    fn send_block_at_once(
        &self,
        outbound: &Outbound,
        source: Source,
        block: Block,
        len: usize,
    ) -> Result<(&Link, Sent), Block> {
        let Some(group) = self.first_group(outbound) else { return Err(block) };
        let Some(link) = self.lanes[self.lane_in(group, outbound)].link() else { return Err(block) };
        // As on the long way, a loan does not wait for what comes from other groups: it holds room that they need.
        let is_usual = link.source == source && link.is_live() && !self.holds_too_much();
        if !is_usual {
            return Err(block);
        }
        let Ok((admitted, position)) = self.admit(link, group, outbound) else { return Err(block) };
        let moves = self.correlation.moves(admitted.index);
        self.launch(link, outbound, &admitted, position, Outgoing::Block(block, len));
        Ok((link, Sent { admitted, source, position, moves, is_large: true }))
    }

    /// Takes a large reply to a request out of the lane, if that is what stands there.
    #[inline(never)]
    pub(super) fn read_own_block(
        self: &Arc<Self>,
        link: &Link,
        identity: &Identity,
        sent: &Sent,
    ) -> Option<Reply> {
        let Sent { admitted, position, .. } = sent;
        let now_ns = self.noted_clock_ns();
        let ends = |trace_id, tags| {
            let carried = (trace_id, tags);
            self.correlation.end_own(admitted, identity, link.source, carried, now_ns)
        };
        let block = link.end.read_own_block(*position, admitted.ticket.0, ends)?;
        let identity = Identity { trace_id: admitted.trace_id, ..*identity };
        Some(Reply::in_arena(identity, self, link.source, block))
    }
}
