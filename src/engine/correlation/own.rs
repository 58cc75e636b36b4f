//! The usual end of a call: its owner waits, reads the success itself, and takes it at once. So no outcome is kept for
//! anybody, and the place is free again in the same step.

use super::events::EventKind;
use super::hop::{HopState, Source};
use super::{Admitted, Correlation, tags};
use crate::base::ids::Identity;

impl Correlation {
    /// Ends a request of no run by a success that was read for its first hop, as its owner, who takes the payload.
    /// `trace_id` and `word` are what the frame carried back. The caller holds the reader role of `source`'s lane, and
    /// calls [`Correlation::free_own`] without it. False: nothing has happened.
    #[inline(always)]
    pub fn end_own(
        &self,
        admitted: &Admitted,
        identity: &Identity,
        source: Source,
        (trace_id, word): ([u64; 2], u64),
        now_ns: u64,
    ) -> bool {
        let hop = &self.hops[admitted.ticket.slot() as usize];
        let is_own = hop.state(admitted.ticket.generation(), source) == HopState::Open
            && admitted.trace_id.to_words() == trace_id
            && tags(identity) == word;
        is_own && self.end_own_run(admitted, source, now_ns)
    }

    /// The same for a request that its owner has run itself, so that nothing has been carried back. The caller holds the
    /// states in place of the role.
    #[inline(always)]
    pub fn end_own_run(&self, admitted: &Admitted, source: Source, now_ns: u64) -> bool {
        if !self.roots[admitted.index as usize].end_unmarked(admitted.root().generation) {
            return false;
        }
        let counters = &self.counters[usize::from(source.lane)];
        counters.terminals_received.add_as_reader();
        counters.terminals_that_ended.add_as_reader();
        counters.completed_by_terminal.add_as_reader();
        self.history.complete(admitted.number);
        self.hops[admitted.ticket.slot() as usize].close_of_ending();
        if let Some(bucket) = admitted.bucket {
            self.index.remove(bucket, admitted.index);
        }
        self.events.note(EventKind::Completed, admitted.trace_id.to_words(), now_ns, None);
        true
    }

    /// Frees the place of a request that [`Correlation::end_own`] has ended.
    #[inline(always)]
    pub fn free_own(&self, admitted: &Admitted) {
        self.roots[admitted.index as usize].wait_for_pins();
        self.free.push(admitted.index);
    }
}
