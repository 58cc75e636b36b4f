//! How a request ends: by a frame of its worker, by its deadline, by its caller, with its lane, by a stop.
//! And what becomes of frames that end nothing.

use super::counters::LaneCounters;
use super::events::{Event, EventKind};
use super::outcome::Outcome;
use super::root::{Aftermath, HopState, Root, RootKey, Source};
use super::{CALLERS_ID, Correlation, EndedRoot, Verdict, tags};
use crate::base::clock::has_passed;
use crate::base::failure::{Category, Cause, Failure, Rule};
use crate::base::ids::{GroupId, Identity, Ticket, TraceId};
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::lane::LastMark;
use crate::wire::envelope::{Envelope, kind};

impl Correlation {
    /// Judges one frame of a worker. `started` tells whether the worker had begun a position; `fill` puts the
    /// payload's words into the cell that it is given, if the frame ends its root.
    #[inline]
    pub fn frame(
        &self,
        source: Source,
        frame: &Envelope,
        last: LastMark,
        outcome: Outcome,
        now_ns: u64,
        fill: impl FnOnce(&[AtomicU64]),
    ) -> Result<Verdict, Rule> {
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
        let is_terminal = frame.kind == kind::TERMINAL;
        if is_terminal {
            counters.terminals_received.add_as_reader();
        }
        match state {
            HopState::Foreign => {
                self.reject(counters, frame, now_ns);
                return Ok(Verdict::Dropped);
            }
            HopState::Past => {
                self.drop_frame(counters, frame, now_ns);
                return Ok(Verdict::Dropped);
            }
            HopState::Open | HopState::NeverIssued => {}
        }
        let index = ticket.slot() / self.sizes.max_branches as u32;
        let root = &self.roots[index as usize];
        let mut verdict = Verdict::Dropped;
        if is_terminal {
            if !self.is_identity(root, frame) {
                // A root that was ended and freed since the look at the hop may have another identity by now. Acquire:
                // the identity was read before the state that says whose it was.
                fence(Ordering::Acquire);
                if root.open_generation() != Some(ticket.generation()) {
                    self.drop_frame(counters, frame, now_ns);
                    return Ok(Verdict::Dropped);
                }
                self.reject(counters, frame, now_ns);
            } else if root.try_end(ticket.generation()) {
                counters.terminals_that_ended.add_as_reader();
                fill(self.cell(index));
                if let Outcome::Error { .. } = outcome {
                    counters.failed.add();
                } else {
                    counters.completed_by_terminal.add_as_reader();
                    self.history.complete(root.number.load(Ordering::Relaxed));
                }
                if last == LastMark::Ended {
                    hop.close_of_ending();
                }
                let aftermath = self.finish(index, outcome, true, now_ns);
                verdict = Verdict::Ended(index, aftermath);
            } else {
                self.drop_frame(counters, frame, now_ns);
            }
        } else if frame.kind == kind::OUTPUT {
            // No edge leads from a group to another one yet, so no worker has reason to send this.
            if root.open_generation() == Some(ticket.generation()) {
                self.reject(counters, frame, now_ns);
            } else {
                self.drop_frame(counters, frame, now_ns);
            }
        }
        if last == LastMark::Ended && verdict == Verdict::Dropped {
            // The root may have been freed and used again meanwhile; both closes mind the generation.
            let was_last = hop.close(ticket.generation()) && root.end_hop(ticket.generation());
            if was_last && root.try_end(ticket.generation()) {
                verdict = self.end_by_last(counters, index, now_ns);
            }
        }
        Ok(verdict)
    }

    /// The last branch has ended without a terminal: success and an empty payload, unless the deadline had
    /// passed, which is why a worker skips a request.
    fn end_by_last(&self, counters: &LaneCounters, index: u32, now_ns: u64) -> Verdict {
        let root = &self.roots[index as usize];
        let (outcome, started) = if has_passed(root.deadline_ns.load(Ordering::Relaxed), now_ns) {
            counters.expired.add();
            (Outcome::Failed(Cause::Deadline), false)
        } else {
            counters.completed_by_last.add_as_reader();
            self.history.complete(root.number.load(Ordering::Relaxed));
            (Outcome::Inline { len: 0 }, true)
        };
        Verdict::Ended(index, self.finish(index, outcome, started, now_ns))
    }

    /// Counts a refusal by the worker of a frame that was not for its group.
    pub fn misrouted(&self, lane: u16) {
        self.counters[usize::from(lane)].misrouted.add();
    }

    /// Ends one root for a reason other than a frame. `None` if it has ended already.
    pub fn end(&self, key: RootKey, outcome: Outcome, started: bool, now_ns: u64) -> Option<EndedRoot> {
        let root = &self.roots[key.index as usize];
        if !root.try_end(key.generation) {
            return None;
        }
        let lane = root.place.load(Ordering::Relaxed) as u16;
        let counters = &self.counters[usize::from(lane)];
        match outcome {
            Outcome::Cancelled => counters.cancelled.add(),
            Outcome::Failed(Cause::Deadline) => counters.expired.add(),
            Outcome::Failed(_) | Outcome::Error { .. } => counters.failed.add(),
            Outcome::Inline { .. } | Outcome::Block { .. } | Outcome::Heap => {
                unreachable!("only a frame completes a request")
            }
        }
        // Between the end of the root and the look at the position; pairs with the sender's fence.
        fence(Ordering::SeqCst);
        let position = self.first_hop(key.index).position();
        let aftermath = self.finish(key.index, outcome, started, now_ns);
        Some(EndedRoot { index: key.index, aftermath, position })
    }

    /// Ends every root whose deadline has passed, in the order of deadlines, ties in the order of
    /// registration; `started` tells whether a lane's worker had begun a position.
    pub fn expire(&self, now_ns: u64, started: impl Fn(u16, u64) -> bool) -> Vec<EndedRoot> {
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
        due.sort_unstable_by_key(|(deadline_ns, number, _)| (*deadline_ns, *number));
        let end = |(_, _, key): (u64, u64, RootKey)| {
            let started = self.is_started(key, &started);
            self.end(key, Outcome::Failed(Cause::Deadline), started, now_ns)
        };
        due.into_iter().filter_map(end).collect()
    }

    /// Ends every root with an open hop at `source`, in the order of registration.
    pub fn end_all_of(
        &self,
        source: Source,
        cause: Cause,
        now_ns: u64,
        started: impl Fn(u16, u64) -> bool,
    ) -> Vec<EndedRoot> {
        let mut open: Vec<(u64, RootKey)> = (0..self.roots.len() as u32)
            .filter_map(|index| {
                let root = &self.roots[index as usize];
                let generation = root.open_generation()?;
                let number = root.number.load(Ordering::Relaxed);
                let asked = self.hops_of(index).iter().any(|hop| hop.is_asked_of(source));
                asked.then_some((number, RootKey { index, generation }))
            })
            .collect();
        open.sort_unstable_by_key(|(number, _)| *number);
        let end = |(_, key): (u64, RootKey)| {
            let started = self.is_started(key, &started);
            self.end(key, Outcome::Failed(cause), started, now_ns)
        };
        open.into_iter().filter_map(end).collect()
    }

    fn is_started(&self, key: RootKey, started: impl Fn(u16, u64) -> bool) -> bool {
        let lane = self.roots[key.index as usize].place.load(Ordering::Relaxed) as u16;
        self.first_hop(key.index).position().is_some_and(|position| started(lane, position))
    }

    /// What every end has in common, after the winner has counted it.
    fn finish(&self, index: u32, outcome: Outcome, started: bool, now_ns: u64) -> Aftermath {
        let root = &self.roots[index as usize];
        let place = root.place.load(Ordering::Relaxed);
        let group = GroupId((place >> 16) as u16);
        root.outcome.put(outcome, group, started);
        let words = self.trace_words(index);
        if place & CALLERS_ID != 0 {
            self.index.remove(words, index);
        }
        let (kind, status) = match outcome {
            Outcome::Inline { .. } | Outcome::Block { .. } | Outcome::Heap => (EventKind::Completed, None),
            Outcome::Error { .. } => (EventKind::Failed, Some(Category::Execution)),
            Outcome::Cancelled => (EventKind::Cancelled, None),
            Outcome::Failed(Cause::Deadline) => (EventKind::Expired, Some(Category::Timeout)),
            Outcome::Failed(cause) => (EventKind::Failed, Some(Failure::category_of(cause))),
        };
        self.events.add(Event { kind, trace_id: TraceId::from_words(words), at_ns: now_ns, status });
        root.finish()
    }

    fn drop_frame(&self, counters: &LaneCounters, frame: &Envelope, now_ns: u64) {
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

    /// The root whose hop a judged frame names.
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
