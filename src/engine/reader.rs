//! The way of a reply in: a batch of frames is read under the lane's reader role; each ends its request, goes on
//! to another group, or ends its branch. Ends by deadline, by cancellation and with a dead lane are here too.

use super::answer::Answer;
use super::correlation::{Aftermath, EndedRoot, Outcome, Passage, RootKey, Source, Verdict, Way};
use super::forward::{Carried, Onward, Wakes};
use super::link::{Link, wake};
use super::local_port::fill_cell;
use super::shared::{Lane, Shared};
use crate::base::clock::has_passed;
use crate::base::failure::{Cause, ExecutionClass, Rule};
use crate::base::ids::{GroupId, NodeId};
use crate::lane::{Expect, Frame, FramePayload, LastMark, Read};
use crate::os::clock;
use crate::wire::envelope::{Envelope, flags, kind, status};
use crate::wire::error;

impl Shared {
    // ---- reading ----

    /// Reads a batch of replies; whether there was one. Call [`Link::stop_looking`] when done.
    pub fn read(&self, link: &Link) -> bool {
        if !link.end.has_reply() {
            return false;
        }
        // Owners to be told; mostly none, seldom more than one.
        let mut wakes = Wakes::new();
        let now_ns = self.noted_clock_ns();
        let expect = |id| self.correlation.expect(id);
        let expect = self.correlation.is_large().then_some(&expect as Expect<'_>);
        let read = link.end.read(expect, |frame| self.judge(link, frame, now_ns, &mut wakes));
        // A full fence stands at the end of the batch, behind the room that it made.
        self.flush(link, &mut wakes);
        // After the role has been given back: waking takes a system call, and a waker may come back in here.
        self.wake(wakes);
        match read {
            Read::Busy => false,
            Read::Frames(frames) => {
                if frames > 0 {
                    self.room_came_free();
                }
                frames > 0
            }
            Read::Corrupt(rule) => {
                self.poison(link, rule);
                false
            }
        }
    }

    /// Judges one frame.
    #[inline(always)]
    pub fn judge(&self, link: &Link, frame: Frame, now_ns: u64, wakes: &mut Wakes) -> Result<(), Rule> {
        let Frame { envelope, payload, last } = frame;
        if envelope.kind == kind::OUTPUT {
            self.judge_output(link, &envelope, payload, last, now_ns, wakes)?;
        } else if envelope.status == status::ERROR {
            self.judge_error(link, &envelope, payload, last, now_ns, wakes)?;
        } else {
            self.judge_success(link, &envelope, payload, last, now_ns, wakes)?;
        }
        if last == LastMark::Ended {
            self.branch_ended(&envelope, wakes);
        }
        Ok(())
    }

    /// A terminal with a payload, or the end of a branch.
    #[inline(always)]
    fn judge_success(
        &self,
        link: &Link,
        envelope: &Envelope,
        payload: FramePayload,
        last: LastMark,
        now_ns: u64,
        wakes: &mut Wakes,
    ) -> Result<(), Rule> {
        // Read after the frame: a worker that skipped the request for its deadline read its clock before.
        let now_ns = if envelope.kind == kind::DONE { self.read_clock() } else { now_ns };
        let outcome = match payload {
            FramePayload::Inline { len, .. } => Outcome::Inline { len: len as u32 },
            // Replies that nobody takes must not take the worker's room away from it: of those that would leave it
            // neither half of the arena, a copy is kept.
            FramePayload::Block(_) if link.end.holds_in_both_halves() => Outcome::Heap,
            FramePayload::Block(block) => Outcome::Block { source: link.source, block },
        };
        let mut verdict = self.correlation.frame(
            link.source,
            envelope,
            last,
            |_| outcome,
            now_ns,
            |cell| match payload {
                FramePayload::Inline { at, len } => link.end.copy_inline(at, len, cell),
                FramePayload::Block(block) if outcome == Outcome::Heap => {
                    let bytes = Carried::Block { link, block }.to_heap();
                    self.keep_payload(self.correlation.root_of(envelope), bytes);
                }
                FramePayload::Block(_) => {}
            },
        );
        if let Ok(Verdict::Candidate(key)) = verdict {
            verdict = Ok(self.keep_payload_of(link, key, envelope, payload, last, now_ns));
        }
        if let FramePayload::Block(block) = payload
            && (!matches!(verdict, Ok(Verdict::Ended(..))) || outcome == Outcome::Heap)
        {
            link.end.release(block);
        }
        self.follow(verdict?, envelope, now_ns, wakes);
        Ok(())
    }

    /// A terminal in a run, of an input that has other branches. Not on the usual path.
    #[cold]
    fn keep_payload_of(
        &self,
        link: &Link,
        key: RootKey,
        envelope: &Envelope,
        payload: FramePayload,
        last: LastMark,
        now_ns: u64,
    ) -> Verdict {
        let bytes = carried(link, payload).to_heap();
        let answer = Answer { source: link.source, group: link.group, envelope: *envelope, bytes };
        self.keep_answer(key, answer, last, now_ns)
    }

    /// An error terminal. Its payload is copied once; the copy is checked, and the copy is kept.
    #[cold]
    fn judge_error(
        &self,
        link: &Link,
        envelope: &Envelope,
        payload: FramePayload,
        last: LastMark,
        now_ns: u64,
        wakes: &mut Wakes,
    ) -> Result<(), Rule> {
        let (at, len) = match payload {
            FramePayload::Inline { at, len } => (at, len),
            FramePayload::Block(block) => {
                link.end.release(block);
                return Err(Rule::ErrorPayload);
            }
        };
        let mut copy = [0; error::MAX_BYTES];
        let copy = copy.get_mut(..len).ok_or(Rule::ErrorPayload)?;
        link.end.read_inline(at, copy);
        let (class, ..) = error::decode(copy).ok_or(Rule::ErrorPayload)?;
        // A worker that has no room gives up at the deadline: then that is what the request ends with.
        let has_waited = class == ExecutionClass::NoRoom;
        let now_ns = if has_waited { self.read_clock() } else { now_ns };
        let outcome = |deadline_ns| match has_waited && has_passed(deadline_ns, now_ns) {
            true => Outcome::Failed(Cause::Deadline),
            false => Outcome::Error { len: len as u32 },
        };
        let mut verdict = self.correlation.frame(link.source, envelope, last, outcome, now_ns, |cell| {
            fill_cell(cell, copy);
        })?;
        if class == ExecutionClass::Misrouted && matches!(verdict, Verdict::Ended(..) | Verdict::Candidate(_))
        {
            self.correlation.misrouted(link.source.lane);
        }
        if let Verdict::Candidate(key) = verdict {
            let bytes = Box::from(&*copy);
            let answer = Answer { source: link.source, group: link.group, envelope: *envelope, bytes };
            verdict = self.keep_answer(key, answer, last, now_ns);
        }
        self.follow(verdict, envelope, now_ns, wakes);
        Ok(())
    }

    /// An output for another group.
    #[inline(never)]
    fn judge_output(
        &self,
        link: &Link,
        envelope: &Envelope,
        payload: FramePayload,
        last: LastMark,
        now_ns: u64,
        wakes: &mut Wakes,
    ) -> Result<(), Rule> {
        let carried = carried(link, payload);
        let passed = self.pass(link.source, link.group, envelope, last, carried, now_ns, wakes);
        if let FramePayload::Block(block) = payload {
            link.end.release(block);
        }
        passed
    }

    /// Judges an output of `group` and hands it on.
    #[expect(clippy::too_many_arguments, reason = "a frame, where it comes from, and when")]
    pub fn pass(
        &self,
        source: Source,
        group: GroupId,
        envelope: &Envelope,
        last: LastMark,
        payload: Carried<'_>,
        now_ns: u64,
        wakes: &mut Wakes,
    ) -> Result<(), Rule> {
        let target = NodeId(envelope.target);
        let from = self.placement.nodes.get(usize::from(envelope.source)).filter(|node| node.group == group);
        let edge =
            from.and_then(|node| node.edges.iter().find(|edge| edge.to == target)).ok_or(Rule::Edge)?;
        let to = self.group_of(target);
        let key = (envelope.flags & flags::KEYED != 0).then_some(envelope.deadline_ns);
        if to == group || key.is_none() && self.placement.groups[usize::from(to.0)].keyed {
            return Err(Rule::Edge);
        }
        if payload.len() > self.max_payload() {
            return Err(Rule::PayloadLength);
        }
        let way = Way { from: group, to, max_hops: edge.max_hops };
        // Looked for before the root is: if that has ended in between, nothing goes on. The other way round, its
        // owner may have taken it out of its run meanwhile, and its frame would overtake others.
        let order = self.order_of(self.correlation.root_of(envelope));
        match self.correlation.output(source, envelope, last, way, now_ns)? {
            Passage::On(branch) => {
                let onward = Onward { source: envelope.source, target, key };
                match order {
                    Some(order) => order.output(self, envelope.ticket, branch, onward, payload, wakes)?,
                    None => self.hand_on(branch, onward, payload, wakes),
                }
            }
            Passage::Ended(index, aftermath) => self.settle(index, aftermath, wakes),
            Passage::Due(key) => self.end_with_answer(envelope, key, now_ns, wakes),
            Passage::Dropped => {}
        }
        Ok(())
    }

    /// What follows the verdict on a terminal, or on the end of a branch.
    #[inline(always)]
    pub fn follow(&self, verdict: Verdict, envelope: &Envelope, now_ns: u64, wakes: &mut Wakes) {
        match verdict {
            Verdict::Ended(index, aftermath) => self.settle(index, aftermath, wakes),
            Verdict::Due(key) => self.end_with_answer(envelope, key, now_ns, wakes),
            Verdict::Candidate(_) => unreachable!("it has been kept"),
            Verdict::Dropped => {}
        }
    }

    /// A branch has ended: frames of its run may be waiting for that.
    #[inline(always)]
    pub fn branch_ended(&self, envelope: &Envelope, wakes: &mut Wakes) {
        if let Some(order) = self.order_of(self.correlation.root_of(envelope)) {
            order.branch_ended(self, envelope.ticket, wakes);
        }
    }

    /// What follows an end: its owner is to be told, or there is none and the root is to be freed.
    pub fn settle(&self, index: u32, aftermath: Aftermath, wakes: &mut Wakes) {
        if aftermath.detached || aftermath.asleep || aftermath.awaited {
            wakes.push((index, aftermath));
        }
    }

    /// Tells owners, and frees roots that have none. Call it without a role, a lock or a pin: wakers are the
    /// user's, and who frees a root waits until nobody pins it.
    pub fn wake(&self, wakes: Wakes) {
        for (index, aftermath) in wakes {
            if aftermath.detached {
                self.discard(index);
                self.end_unattended(true);
                continue;
            }
            if aftermath.asleep {
                wake(self.correlation.wake_word(index));
            }
            if aftermath.awaited {
                self.wake_waker(index, aftermath.generation);
            }
        }
    }

    /// Ends of several roots by something other than a frame: tells the workers, and then the owners.
    pub fn after_all(&self, ended: Vec<EndedRoot>, wakes: &mut Wakes) {
        // The latest first: who stops running the oldest must not begin the next.
        for (source, position) in ended.iter().rev().flat_map(|root| root.frames.iter().rev()) {
            match &self.lanes[usize::from(source.lane)] {
                Lane::Worker(_) => self.link_of(*source).end.cancel(*position),
                Lane::Local(local) => local.cancel(*position),
            }
        }
        for root in ended {
            self.settle(root.index, root.aftermath, wakes);
        }
    }

    /// [`Shared::after_all`] and the waking; what stands in a run makes way. Without a run's lock.
    pub fn after(&self, ended: impl IntoIterator<Item = EndedRoot>) {
        let mut wakes = Wakes::new();
        let ended: Vec<EndedRoot> = ended.into_iter().collect();
        let run_of = |root: &EndedRoot| Some((self.order_of(root.index)?, root.hop?));
        let runs: Vec<_> = ended.iter().filter_map(run_of).collect();
        self.after_all(ended, &mut wakes);
        for (run, hop) in runs {
            run.end_input_of(self, hop, &mut wakes);
        }
        self.wake(wakes);
    }

    fn poison(&self, link: &Link, rule: Rule) {
        link.die_of(rule);
        // The engine's thread kills the worker, and settles its death.
        self.bell.ring();
        // Nothing of the ring is read any more, so what stands in it ends now: no deadline that passes meanwhile
        // comes before what is known. The same exchange as with whoever settles a death: see `Link::is_live`.
        let cause = link.cause().expect("latched above");
        link.end.end_claims();
        let has_successor = !link.is_final();
        let now_ns = self.read_clock();
        self.after(self.correlation.end_all_of(link.source, has_successor, cause, now_ns, self.started()));
    }

    // ---- other ends ----

    /// Ends the root if its deadline has passed.
    pub fn expire_if_due(&self, key: RootKey, now_ns: u64) {
        if has_passed(self.correlation.deadline_ns(key.index), now_ns) {
            let outcome = Outcome::Failed(Cause::Deadline);
            self.after(self.correlation.end(key, None, outcome, now_ns, self.started()));
        }
    }

    /// Ends the root as cancelled, if it has not ended.
    pub fn cancel(&self, key: RootKey) {
        let now_ns = clock::coarse_ns();
        self.after(self.correlation.end(key, None, Outcome::Cancelled, now_ns, |_, _| false));
    }

    /// Ends everything that is due, in order.
    pub fn expire(&self, now_ns: u64) {
        self.after(self.correlation.expire(now_ns, self.started()));
    }

    /// Tells whether the worker of a lane had begun a position.
    pub fn started(&self) -> impl Fn(Source, u64) -> bool {
        |source, position| match &self.lanes[usize::from(source.lane)] {
            Lane::Worker(_) => self.link_of(source).end.started(position),
            Lane::Local(local) => local.started(position),
        }
    }
}

/// A frame's payload where it lies.
fn carried(link: &Link, payload: FramePayload) -> Carried<'_> {
    match payload {
        FramePayload::Inline { at, len } => Carried::Inline { link, at, len },
        FramePayload::Block(block) => Carried::Block { link, block },
    }
}
