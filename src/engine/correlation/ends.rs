//! How a request ends: by a frame of its worker, by its deadline, by its caller, with its lane, by a stop.
//! And what becomes of frames that end nothing.

use super::counters::LaneCounters;
use super::events::{Event, EventKind};
use super::hop::{Hop, HopState, Source, is_later};
use super::outcome::Outcome;
use super::root::{Aftermath, BranchEnd, NoBranch, Root, RootKey};
use super::{Branch, CALLERS_ID, Correlation, EndedRoot, Passage, Verdict, tags};
use crate::base::clock::has_passed;
use crate::base::failure::{Category, Cause, ExecutionClass, Failure, Rule};
use crate::base::ids::{GroupId, Identity, Ticket, TraceId};
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::lane::LastMark;
use crate::wire::envelope::{Envelope, kind};

/// A frame's hop and root, as far as they are still its own.
enum Standing {
    /// The hop is open, and its root is of this generation.
    Open(RootKey),
    /// The hop is open, but its root is gone.
    Orphaned,
    /// The hop is not the sender's, or not open: the frame has been dropped and counted.
    Dropped,
}

/// An output's way, as the plan has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// The group that it leaves.
    pub from: GroupId,
    /// The group that it goes to.
    pub to: GroupId,
    /// How many hops the path may have with this one, 0 = any number.
    pub max_hops: u16,
}

impl Correlation {
    /// Finds out whose frame this is; what is not its sender's to send is dropped and counted.
    #[inline(always)]
    fn standing(
        &self,
        source: Source,
        frame: &Envelope,
        last: LastMark,
        now_ns: u64,
    ) -> Result<Standing, Rule> {
        let ticket = Ticket(frame.ticket);
        let counters = &self.counters[usize::from(source.lane)];
        let hop = self.hops.get(ticket.slot() as usize).ok_or(Rule::Ticket)?;
        let state = hop.state(ticket.generation(), source);
        if state == HopState::NeverIssued {
            return Err(Rule::Ticket);
        }
        if state == HopState::Open && last == LastMark::Stray {
            // Its own request is open, but it is not the oldest of the lane: requests end in order.
            return Err(Rule::LastOutOfOrder);
        }
        // After the refusals: until the worker is dead, several may look at a frame that is refused.
        if frame.kind == kind::TERMINAL {
            counters.terminals_received.add_as_reader();
        }
        match state {
            HopState::Foreign if self.is_of_open_root(ticket) => self.reject(counters, frame, now_ns),
            HopState::Foreign | HopState::Past => self.drop_frame(counters, frame, now_ns),
            HopState::Open | HopState::NeverIssued => {
                let index = self.root_of(frame);
                let generation = self.roots[index as usize].generation();
                // A hop is opened while its root is open, so a root that is younger than the hop is another one.
                if is_later(generation, ticket.generation()) {
                    return Ok(Standing::Orphaned);
                }
                return Ok(Standing::Open(RootKey { index, generation }));
            }
        }
        Ok(Standing::Dropped)
    }

    /// Whether the root of a hop that seems to be asked of somebody else is the one that opened it. If not, the
    /// entry is being opened anew for the next one, its lane before its generation, and the frame is a late one.
    /// Acquire: the lane was read before the state that says whose it was.
    #[cold]
    fn is_of_open_root(&self, ticket: Ticket) -> bool {
        fence(Ordering::Acquire);
        let root = &self.roots[ticket.slot() as usize / self.sizes.max_branches];
        root.open_generation().is_some_and(|generation| !is_later(generation, ticket.generation()))
    }

    /// Judges a terminal, or the end of a branch. If the frame ends its root, `outcome` says how, of which the root's
    /// deadline (0 = none) may be asked, and `fill` puts the payload's words into the cell that it is given.
    #[inline(always)]
    pub fn frame(
        &self,
        source: Source,
        frame: &Envelope,
        last: LastMark,
        outcome: impl FnOnce(u64) -> Outcome,
        now_ns: u64,
        fill: impl FnOnce(&[AtomicU64]),
    ) -> Result<Verdict, Rule> {
        if self.is_large {
            self.prefetch(Ticket(frame.ticket), frame.trace_id);
        }
        let key = match self.standing(source, frame, last, now_ns)? {
            Standing::Open(key) => Some(key),
            Standing::Orphaned => None,
            Standing::Dropped => return Ok(Verdict::Dropped),
        };
        let ticket = Ticket(frame.ticket);
        let counters = &self.counters[usize::from(source.lane)];
        let hop = &self.hops[ticket.slot() as usize];
        if frame.kind == kind::TERMINAL {
            match key.filter(|key| self.is_theirs(*key, frame, counters, now_ns)) {
                Some(key) if self.must_wait(key, ticket, last) => return Ok(Verdict::Candidate(key)),
                Some(key) if self.roots[key.index as usize].try_end(key.generation) => {
                    counters.terminals_that_ended.add_as_reader();
                    fill(self.cell(key.index));
                    let root = &self.roots[key.index as usize];
                    let outcome = outcome(root.deadline_ns.load(Ordering::Relaxed));
                    match outcome {
                        Outcome::Failed(_) => counters.expired.add(),
                        Outcome::Error { .. } => counters.failed.add(),
                        _ => {
                            counters.completed_by_terminal.add_as_reader();
                            self.history.complete(root.number.load(Ordering::Relaxed));
                        }
                    }
                    let group = hop.group();
                    if last == LastMark::Ended {
                        hop.close_of_ending();
                    }
                    return Ok(Verdict::Ended(
                        key.index,
                        self.finish(key.index, outcome, group, true, now_ns),
                    ));
                }
                Some(_) => self.drop_frame(counters, frame, now_ns),
                None if key.is_none() => self.drop_frame(counters, frame, now_ns),
                None => {}
            }
        }
        if last == LastMark::Ended {
            return Ok(self.end_branch(counters, ticket, key, now_ns));
        }
        Ok(Verdict::Dropped)
    }

    /// Judges an output: opens the hop that it goes on by.
    pub fn output(
        &self,
        source: Source,
        frame: &Envelope,
        last: LastMark,
        way: Way,
        now_ns: u64,
    ) -> Result<Passage<'_>, Rule> {
        let key = match self.standing(source, frame, last, now_ns)? {
            Standing::Open(key) => Some(key),
            Standing::Orphaned => None,
            Standing::Dropped => return Ok(Passage::Dropped),
        };
        let ticket = Ticket(frame.ticket);
        let counters = &self.counters[usize::from(source.lane)];
        let passage = match key.filter(|key| self.is_theirs(*key, frame, counters, now_ns)) {
            Some(key) => self.pass(counters, frame, key, last, way, now_ns),
            None => {
                if key.is_none() {
                    self.drop_frame(counters, frame, now_ns);
                }
                Passage::Dropped
            }
        };
        // A hop that another one follows has been closed with the opening of that.
        if last == LastMark::Ended && !matches!(passage, Passage::On(_)) {
            let ended = self.end_branch(counters, ticket, key, now_ns);
            match (&passage, ended) {
                (Passage::Dropped, Verdict::Ended(index, aftermath)) => {
                    return Ok(Passage::Ended(index, aftermath));
                }
                (Passage::Dropped, Verdict::Due(key)) => return Ok(Passage::Due(key)),
                _ => {}
            }
        }
        Ok(passage)
    }

    /// Opens the hop that follows, or ends the root because there may be none.
    fn pass(
        &self,
        counters: &LaneCounters,
        frame: &Envelope,
        key: RootKey,
        last: LastMark,
        way: Way,
        now_ns: u64,
    ) -> Passage<'_> {
        let root = &self.roots[key.index as usize];
        let parent = Ticket(frame.ticket);
        let branches = self.sizes.max_branches as u32;
        let parent_hop = &self.hops[parent.slot() as usize];
        let depth = parent_hop.depth() + 1;
        let too_many = |class| {
            if !root.try_end(key.generation) {
                self.drop_frame(counters, frame, now_ns);
                return Passage::Dropped;
            }
            counters.failed.add();
            let outcome = Outcome::Failed(Cause::Execution { class, code: 0 });
            Passage::Ended(key.index, self.finish(key.index, outcome, way.from, true, now_ns))
        };
        if way.max_hops != 0 && depth > u32::from(way.max_hops) {
            return too_many(ExecutionClass::TooManyHops);
        }
        if parent_hop.is_repeated_output() {
            if root.open_generation() == Some(key.generation) {
                counters.replayed_output_drop.add_as_reader();
            } else {
                self.drop_frame(counters, frame, now_ns);
            }
            return Passage::Dropped;
        }
        let closing = (last == LastMark::Ended).then_some(parent.slot() % branches);
        let entry = match root.begin_branch(key.generation, closing, branches) {
            Ok(entry) => entry,
            Err(NoBranch::TooMany) => return too_many(ExecutionClass::TooManyBranches),
            Err(NoBranch::Ended) => {
                self.drop_frame(counters, frame, now_ns);
                return Passage::Dropped;
            }
        };
        // From here on the root is pinned.
        if closing.is_some() {
            parent_hop.close(parent.generation());
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        self.history.link(number, root.number.load(Ordering::Relaxed));
        let generation = number % Ticket::GENERATIONS;
        let slot = key.index * branches + entry;
        self.hops[slot as usize].open(generation, None, way.to, depth);
        counters.forwarded.add_as_reader();
        Passage::On(Branch { correlation: self, root: key, ticket: Ticket::new(slot, generation) })
    }

    /// Whether the frame carries its root's identity; one that does not is counted.
    #[inline(always)]
    fn is_theirs(&self, key: RootKey, frame: &Envelope, counters: &LaneCounters, now_ns: u64) -> bool {
        let root = &self.roots[key.index as usize];
        if self.is_identity(root, frame) {
            return true;
        }
        // A root that was ended and freed since the look at the hop may have another identity by now. Acquire: the
        // identity was read before the state that says whose it was.
        fence(Ordering::Acquire);
        if root.open_generation() == Some(key.generation) {
            self.reject(counters, frame, now_ns);
        } else {
            self.drop_frame(counters, frame, now_ns);
        }
        false
    }

    /// A branch has ended; so has its root if it was the last one.
    pub(super) fn end_branch(
        &self,
        counters: &LaneCounters,
        ticket: Ticket,
        key: Option<RootKey>,
        now_ns: u64,
    ) -> Verdict {
        // The root may have been freed and used again meanwhile; every step minds the generation.
        let closed = self.hops[ticket.slot() as usize].close(ticket.generation());
        let entry = ticket.slot() % self.sizes.max_branches as u32;
        let Some(key) = key.filter(|_| closed) else { return Verdict::Dropped };
        let root = &self.roots[key.index as usize];
        match root.end_branch(key.generation, entry) {
            BranchEnd::Last if root.try_end(key.generation) => {
                self.end_by_last(counters, key.index, ticket, now_ns)
            }
            BranchEnd::LastOfAnswered => Verdict::Due(key),
            BranchEnd::Last | BranchEnd::NotLast => Verdict::Dropped,
        }
    }

    /// The last branch has ended without a terminal: success and an empty payload, unless the deadline had
    /// passed, which is why a worker skips a request.
    fn end_by_last(&self, counters: &LaneCounters, index: u32, ticket: Ticket, now_ns: u64) -> Verdict {
        let root = &self.roots[index as usize];
        let group = self.hops[ticket.slot() as usize].group();
        let (outcome, started) = if has_passed(root.deadline_ns.load(Ordering::Relaxed), now_ns) {
            counters.expired.add();
            (Outcome::Failed(Cause::Deadline), false)
        } else {
            counters.completed_by_last.add_as_reader();
            self.history.complete(root.number.load(Ordering::Relaxed));
            (Outcome::Inline { len: 0 }, true)
        };
        Verdict::Ended(index, self.finish(index, outcome, group, started, now_ns))
    }

    /// Counts a refusal by the worker of a frame that was not for its group.
    pub fn misrouted(&self, lane: u16) {
        self.counters[usize::from(lane)].misrouted.add();
    }

    /// Ends one root for a reason other than a frame. `None` if it has ended already.
    ///
    /// What it says of the failure is said of the oldest open hop, or of the oldest one at `place` if that is
    /// where it happened: its group, and whether its worker had begun it, as `started` tells of a lane's position.
    pub fn end(
        &self,
        key: RootKey,
        place: Option<Source>,
        outcome: Outcome,
        now_ns: u64,
        started: impl Fn(Source, u64) -> bool,
    ) -> Option<EndedRoot> {
        let root = &self.roots[key.index as usize];
        if !root.try_end(key.generation) {
            return None;
        }
        let home = root.place.load(Ordering::Relaxed) as u16;
        let counters = &self.counters[usize::from(home)];
        match outcome {
            Outcome::Cancelled => counters.cancelled.add(),
            Outcome::Failed(Cause::Deadline) => counters.expired.add(),
            Outcome::Failed(_) | Outcome::Error { .. } => counters.failed.add(),
            Outcome::Inline { .. } | Outcome::Block { .. } | Outcome::Heap => {
                unreachable!("only a frame completes a request")
            }
        }
        // Between the end of the root and the look at its positions; pairs with the senders' fence.
        fence(Ordering::SeqCst);
        let age = |hop: &&Hop| hop.generation().wrapping_sub(key.generation) % Ticket::GENERATIONS;
        let there = |hop: &&Hop| place.is_none_or(|place| hop.lane() == Some(place.lane));
        let is_of_another_life = |hop: &Hop| place.is_some_and(|place| !hop.is_asked_of(place));
        let rank = |hop: &&Hop| (is_of_another_life(hop), age(hop));
        let failed = self.open_hops(key).filter(there).min_by_key(rank);
        // Between two hops of a path none is open; then the latest one speaks.
        let failed = failed.or_else(|| self.hops_since(key).filter(there).max_by_key(age));
        let group = failed.map_or(GroupId(0), Hop::group);
        let placed = failed.and_then(Hop::placed);
        let begun = placed.is_some_and(|(source, position)| started(source, position));
        let frames = self.open_hops(key).filter_map(Hop::placed).collect();
        let hop = self.open_hop(key);
        let aftermath = self.finish(key.index, outcome, group, begun, now_ns);
        Some(EndedRoot { index: key.index, aftermath, frames, hop })
    }

    /// Ends every root whose deadline has passed, in the order of deadlines, ties in the order of
    /// registration; `started` tells whether a lane's worker had begun a position.
    pub fn expire(&self, now_ns: u64, started: impl Fn(Source, u64) -> bool) -> Vec<EndedRoot> {
        let mut due = Vec::new();
        self.deadlines.due(now_ns, |roots| {
            let mut earliest = 0;
            for index in roots {
                let root = &self.roots[index as usize];
                let Some(generation) = root.open_generation() else { continue };
                let deadline_ns = root.deadline_ns.load(Ordering::Relaxed);
                if has_passed(deadline_ns, now_ns) {
                    let number = root.number.load(Ordering::Relaxed);
                    due.push((deadline_ns, number, RootKey { index, generation }));
                } else {
                    earliest = crate::base::clock::earlier(earliest, deadline_ns);
                }
            }
            earliest
        });
        if self.is_large {
            for (.., RootKey { index, generation }) in &due {
                let hop = index * self.sizes.max_branches as u32;
                self.prefetch(Ticket::new(hop, *generation), self.trace_words(*index));
            }
        }
        due.sort_unstable_by_key(|(deadline_ns, number, _)| (*deadline_ns, *number));
        let outcome = Outcome::Failed(Cause::Deadline);
        due.into_iter().filter_map(|(_, _, key)| self.end(key, None, outcome, now_ns, &started)).collect()
    }

    /// Ends every root with a hop that has been sent to `source` and not ended, in the order of registration. What
    /// only waits in front of it can wait for its successor, unless there is to be none: then whatever has a hop in
    /// its lane ends.
    pub fn end_all_of(
        &self,
        source: Source,
        has_successor: bool,
        cause: Cause,
        now_ns: u64,
        started: impl Fn(Source, u64) -> bool,
    ) -> Vec<EndedRoot> {
        let is_lost = |hop: &Hop| match has_successor {
            true => hop.is_asked_of(source) && hop.placed().is_some(),
            // What was to wait for a successor may have been asked of an earlier life.
            false => hop.lane() == Some(source.lane),
        };
        let open = self.open_roots(|key| self.open_hops(key).any(is_lost));
        let outcome = Outcome::Failed(cause);
        let end = |key| self.end(key, Some(source), outcome, now_ns, &started);
        open.into_iter().filter_map(end).collect()
    }

    /// Ends every root, in the order of registration.
    pub fn end_all(
        &self,
        cause: Cause,
        now_ns: u64,
        started: impl Fn(Source, u64) -> bool,
    ) -> Vec<EndedRoot> {
        let end = |key| self.end(key, None, Outcome::Failed(cause), now_ns, &started);
        self.open_roots(|_| true).into_iter().filter_map(end).collect()
    }

    /// Open roots, in the order of registration.
    fn open_roots(&self, which: impl Fn(RootKey) -> bool) -> Vec<RootKey> {
        let mut open: Vec<(u64, RootKey)> = (0..self.roots.len() as u32)
            .filter_map(|index| {
                let root = &self.roots[index as usize];
                let key = RootKey { index, generation: root.open_generation()? };
                which(key).then(|| (root.number.load(Ordering::Relaxed), key))
            })
            .collect();
        open.sort_unstable_by_key(|(number, _)| *number);
        open.into_iter().map(|(_, key)| key).collect()
    }

    /// What every end has in common, after the winner has counted it.
    fn finish(&self, index: u32, outcome: Outcome, group: GroupId, started: bool, now_ns: u64) -> Aftermath {
        self.conclude(index, outcome, group, started, now_ns);
        self.roots[index as usize].finish()
    }

    /// The same, but that the owner does not see it yet.
    pub(super) fn conclude(&self, index: u32, outcome: Outcome, group: GroupId, started: bool, now_ns: u64) {
        let root = &self.roots[index as usize];
        let place = root.place.load(Ordering::Relaxed);
        root.outcome.put(outcome, group, started);
        let words = self.trace_words(index);
        if place & CALLERS_ID != 0 {
            self.index.remove(self.index.bucket_of(words), index);
        }
        let (kind, status) = match outcome {
            Outcome::Inline { .. } | Outcome::Block { .. } | Outcome::Heap => (EventKind::Completed, None),
            Outcome::Error { .. } => (EventKind::Failed, Some(Category::Execution)),
            Outcome::Cancelled => (EventKind::Cancelled, None),
            Outcome::Failed(Cause::Deadline) => (EventKind::Expired, Some(Category::Timeout)),
            Outcome::Failed(cause) => (EventKind::Failed, Some(Failure::category_of(cause))),
        };
        self.events.add(Event { kind, trace_id: TraceId::from_words(words), at_ns: now_ns, status });
    }

    pub(super) fn drop_frame(&self, counters: &LaneCounters, frame: &Envelope, now_ns: u64) {
        let kind = match frame.kind {
            kind::TERMINAL => {
                let latest = self.numbers.load(Ordering::Relaxed);
                if self.history.knows(Ticket(frame.ticket).generation(), latest) {
                    counters.duplicate_terminal.add_as_reader();
                    EventKind::DuplicateTerminal
                } else {
                    counters.late_reply_drop.add_as_reader();
                    EventKind::LateReplyDrop
                }
            }
            kind::OUTPUT => return counters.late_output_drop.add_as_reader(),
            _ => return,
        };
        self.drop_event(kind, frame, now_ns);
    }

    fn reject(&self, counters: &LaneCounters, frame: &Envelope, now_ns: u64) {
        counters.rejected.add_as_reader();
        if frame.kind == kind::TERMINAL {
            counters.rejected_terminal.add_as_reader();
        }
        self.drop_event(EventKind::Rejected, frame, now_ns);
    }

    fn drop_event(&self, kind: EventKind, frame: &Envelope, now_ns: u64) {
        let trace_id = TraceId::from_words(frame.trace_id);
        self.events.add(Event { kind, trace_id, at_ns: now_ns, status: None });
    }

    /// The root that the hop of this ticket belongs to, if that is still its own.
    pub fn root_key(&self, frame: &Envelope) -> Option<RootKey> {
        let index = self.root_of(frame);
        let generation = self.roots[index as usize].generation();
        (!is_later(generation, Ticket(frame.ticket).generation())).then_some(RootKey { index, generation })
    }

    /// The root whose hop a frame names; beyond the table if the frame has not been judged.
    pub fn root_of(&self, frame: &Envelope) -> u32 {
        Ticket(frame.ticket).slot() / self.sizes.max_branches as u32
    }

    fn is_identity(&self, root: &Root, frame: &Envelope) -> bool {
        let identity = Identity {
            trace_id: TraceId::default(),
            reply_to: frame.reply_to,
            run: frame.run,
            scenario: frame.scenario,
        };
        root.trace_id[0].load(Ordering::Relaxed) == frame.trace_id[0]
            && root.trace_id[1].load(Ordering::Relaxed) == frame.trace_id[1]
            && root.tags.load(Ordering::Relaxed) == tags(&identity)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{Admission, Phase, Sizes};
    use super::*;

    const ASKED: Source = Source { lane: 0, incarnation: 1 };
    const OTHER: Source = Source { lane: 1, incarnation: 1 };

    fn table() -> Correlation {
        let sizes = Sizes { roots: 1, max_branches: 2, completed_history: 4, lanes: 2, inline_bytes: 8 };
        Correlation::new(sizes, 1)
    }

    fn terminal(ticket: Ticket, trace_id: TraceId) -> Envelope {
        let trace_id = trace_id.to_words();
        Envelope { trace_id, ticket: ticket.0, kind: kind::TERMINAL, ..Envelope::default() }
    }

    #[test]
    fn ledger_01_only_an_open_request_has_foreign_frames() {
        let table = table();
        let group = GroupId(0);
        let identity = Identity::default();
        let admission = Admission { identity, deadline_ns: 0, home: 0, target: Some(ASKED), group };
        let admitted = table.register(&admission).expect("there is a place");
        let frame = terminal(admitted.ticket, admitted.trace_id);
        let judge = |source| {
            let outcome = Outcome::Inline { len: 0 };
            assert_eq!(
                table.frame(source, &frame, LastMark::No, |_| outcome, 1, |_| {}),
                Ok(Verdict::Dropped)
            );
            let counters = table.all_counters();
            (counters.rejected_terminal, counters.late_reply_drop)
        };
        assert_eq!(judge(OTHER), (1, 0));
        assert!(table.end(admitted.root(), None, Outcome::Cancelled, 2, |_, _| false).is_some());
        assert_eq!(table.phase(admitted.root()), Phase::Ended);
        table.free(admitted.index);
        // As far as the next user has got when it has given the entry its lane, and not yet its generation.
        table.hops[0].assign(OTHER);
        assert_eq!(judge(ASKED), (1, 1), "late, and nobody lies");
    }
}
