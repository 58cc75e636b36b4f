//! The way of a reply in: who waits looks at its own root and at the lane's next reply, reads for everybody,
//! and sleeps when that takes long. Ends by deadline and by cancellation are here too.

use std::sync::atomic::Ordering;

use super::correlation::{Aftermath, EndedRoot, Outcome, Phase, RootKey, Verdict};
use super::link::{Link, Sleeper, wake};
use super::memory::fill_cell;
use super::shared::Shared;
use crate::base::clock::has_passed;
use crate::base::failure::{Cause, ExecutionClass, Failure, KilledFor, Rule};
use crate::base::ids::GroupId;
use crate::lane::{Frame, FramePayload, LastMark, Read};
use crate::os::clock;
use crate::shm::spin::Next;
use crate::wire::envelope::{Envelope, kind, status};
use crate::wire::error;
impl Shared {
    // ---- reading ----

    /// Reads a batch of replies; whether there was one. Call [`Link::stop_looking`] when done.
    pub fn read(&self, link: &Link) -> bool {
        if !link.end.has_reply() {
            return false;
        }
        // Owners that sleep; mostly none, seldom more than one.
        let mut to_wake = Vec::new();
        let now_ns = self.clock_ns.load(Ordering::Relaxed);
        let read = link.end.read(|frame| {
            if let Some(index) = self.judge(link, frame, now_ns)? {
                to_wake.push(index);
            }
            Ok(())
        });
        // After the role has been given back: waking takes a system call.
        for index in to_wake {
            wake(self.correlation.wake_word(index));
        }
        match read {
            Read::Busy => false,
            Read::Frames(frames) => {
                if frames > 0 {
                    self.room_came_free(link);
                }
                frames > 0
            }
            Read::Corrupt(rule) => {
                self.poison(link, rule);
                false
            }
        }
    }

    /// Judges one frame; returns the root whose owner must be woken.
    #[inline]
    pub fn judge(&self, link: &Link, frame: Frame, now_ns: u64) -> Result<Option<u32>, Rule> {
        let Frame { envelope, payload, last } = frame;
        if envelope.status == status::ERROR {
            return self.judge_error(link, &envelope, payload, last, now_ns);
        }
        // Read after the frame: a worker that skipped the request for its deadline read its clock before.
        let now_ns = if envelope.kind == kind::DONE { self.read_clock() } else { now_ns };
        let outcome = match &payload {
            FramePayload::Inline { len, .. } => Outcome::Inline { len: *len as u32 },
            // Replies that nobody takes must not take the worker's room away from it: beyond half the arena they
            // are copied out.
            FramePayload::Block(_) if link.end.holds_much() => Outcome::Heap,
            FramePayload::Block(block) => {
                let (payload_at, len) = block.to_words();
                Outcome::Block { payload_at, len }
            }
        };
        let verdict =
            self.correlation.frame(link.source, &envelope, last, outcome, now_ns, |cell| match &payload {
                FramePayload::Inline { at, len } => link.end.copy_inline(*at, *len, cell),
                FramePayload::Block(block) if outcome == Outcome::Heap => {
                    let mut copy = vec![0; block.len()].into_boxed_slice();
                    block.bytes().copy_to(0, &mut copy);
                    self.keep_payload(self.correlation.root_of(&envelope), copy);
                }
                FramePayload::Block(_) => {}
            })?;
        if let FramePayload::Block(block) = payload
            && (verdict == Verdict::Dropped || outcome == Outcome::Heap)
        {
            link.end.release(block);
        }
        match verdict {
            Verdict::Ended(index, aftermath) => Ok(self.settle(index, aftermath)),
            Verdict::Dropped => Ok(None),
        }
    }

    /// The same for an error frame. Its payload is copied once; the copy is checked, and the copy is kept.
    #[cold]
    fn judge_error(
        &self,
        link: &Link,
        envelope: &Envelope,
        payload: FramePayload,
        last: LastMark,
        now_ns: u64,
    ) -> Result<Option<u32>, Rule> {
        let FramePayload::Inline { at, len } = payload else { return Err(Rule::ErrorPayload) };
        let mut copy = [0; error::MAX_BYTES];
        let copy = copy.get_mut(..len).ok_or(Rule::ErrorPayload)?;
        link.end.read_inline(at, copy);
        let (class, ..) = error::decode(copy).ok_or(Rule::ErrorPayload)?;
        let outcome = Outcome::Error { len: len as u32 };
        let verdict = self.correlation.frame(link.source, envelope, last, outcome, now_ns, |cell| {
            fill_cell(cell, copy);
        })?;
        match verdict {
            Verdict::Ended(index, aftermath) => {
                if class == ExecutionClass::Misrouted {
                    self.correlation.misrouted(link.source.lane);
                }
                Ok(self.settle(index, aftermath))
            }
            Verdict::Dropped => Ok(None),
        }
    }

    /// What follows an end: the owner's index if it must be woken; a detached root is freed.
    fn settle(&self, index: u32, aftermath: Aftermath) -> Option<u32> {
        if aftermath.detached {
            self.discard(index);
            if let Some(link) = &self.link {
                link.unattended.fetch_sub(1, Ordering::AcqRel);
            }
            None
        } else {
            aftermath.asleep.then_some(index)
        }
    }

    /// [`Shared::settle`] and the waking, for ends that do not come from a batch.
    pub fn after(&self, index: u32, aftermath: Aftermath) {
        if let Some(index) = self.settle(index, aftermath) {
            wake(self.correlation.wake_word(index));
        }
    }

    /// Ends of several roots by something other than a frame: tells the worker, wakes the owners.
    pub fn after_all(&self, ended: Vec<EndedRoot>) {
        if let Some(link) = &self.link {
            // The latest first: who stops running the oldest must not begin the next.
            ended
                .iter()
                .rev()
                .filter_map(|root| root.position)
                .for_each(|position| link.end.cancel(position));
        }
        for root in ended {
            self.after(root.index, root.aftermath);
        }
    }

    fn poison(&self, link: &Link, rule: Rule) {
        link.die(Cause::Killed(KilledFor::Corruption(rule)));
        // The engine's thread kills the worker and ends what is open.
        self.bell.ring();
    }

    pub fn dead(&self, link: &Link, group: GroupId) -> Failure {
        let cause = link.cause().unwrap_or(Cause::Exit(0));
        Failure::new(self.group_name(group), cause, false, None)
    }

    // ---- waiting ----

    /// Waits until the root has ended; its deadline is watched meanwhile.
    #[inline]
    pub fn wait(&self, key: RootKey) {
        match (&self.link, &self.memory) {
            (Some(link), _) => self.wait_on_lane(link, key),
            (None, Some(memory)) => memory.wait(self, key),
            (None, None) => unreachable!("an engine has a lane or a memory group"),
        }
    }

    fn wait_on_lane(&self, link: &Link, key: RootKey) {
        let mut spinner = link.end.spinner(self.waiting);
        let mut has_read = false;
        link.begin_looking();
        loop {
            if self.correlation.phase(key) == Phase::Ended {
                break;
            }
            if self.read(link) {
                has_read = true;
                continue;
            }
            match spinner.step(link.end.processors()) {
                Next::Look => {}
                Next::LookAt(now_ns) => {
                    self.note_clock(now_ns);
                    self.expire_if_due(key, now_ns);
                }
                Next::Sleep => {
                    self.expire_if_due(key, self.read_clock());
                    self.sleep_on_lane(link, key);
                    spinner.renew();
                    has_read = false;
                    link.begin_looking();
                }
            }
        }
        link.end.end_wait(&spinner);
        if has_read {
            link.stop_looking_after_read(&self.correlation);
        } else {
            link.stop_looking(&self.correlation);
        }
    }

    #[cold]
    fn sleep_on_lane(&self, link: &Link, key: RootKey) {
        let deadline_ns = self.correlation.deadline_ns(key.index);
        let until_ns = if deadline_ns == 0 { u64::MAX } else { deadline_ns };
        if self.correlation.fall_asleep(key.index) {
            link.sleep(&self.correlation, Sleeper::Root(key.index), until_ns, || {
                self.correlation.phase(key) != Phase::Ended
            });
        }
        self.correlation.wake_up(key.index);
    }

    /// Ends the root if its deadline has passed.
    pub fn expire_if_due(&self, key: RootKey, now_ns: u64) {
        if has_passed(self.correlation.deadline_ns(key.index), now_ns) {
            let started = self.is_started(key);
            let outcome = Outcome::Failed(Cause::Deadline);
            self.after_all(self.correlation.end(key, outcome, started, now_ns).into_iter().collect());
        }
    }

    /// Ends the root as cancelled, if it has not ended.
    pub fn cancel(&self, key: RootKey) {
        let ended = self.correlation.end(key, Outcome::Cancelled, false, clock::coarse_ns());
        self.after_all(ended.into_iter().collect());
    }

    fn is_started(&self, key: RootKey) -> bool {
        let position = self.correlation.position(key);
        match (&self.link, position) {
            (Some(link), Some(position)) => link.end.started(position),
            _ => position.is_some(),
        }
    }

    /// Ends everything that is due, in order.
    pub fn expire(&self, now_ns: u64) {
        let started = |_lane, position| match &self.link {
            Some(link) => link.end.started(position),
            None => true,
        };
        self.after_all(self.correlation.expire(now_ns, started));
    }
}
