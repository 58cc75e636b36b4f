//! The way from one group to the next: a branch that goes on gets its lane, and its payload is copied once,
//! from the reply segment of the one worker to the request segment of the other.
//!
//! A forward never waits: without room in its lane it stands in a private queue in front of it, copied into
//! this process, so that it holds no slot and no block. The queue goes ahead of new dispatches, and whoever
//! reads the lane's replies, which makes room, empties it.
//!
//! Forbidden: a frame is queued, the lane's last room has just been made, and nobody looks at the queue again.
//! Who queues counts, fences, then tries to send; who makes room makes it, fences, then looks at the count.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::correlation::{Aftermath, Branch, Outcome, RootKey};
use super::link::Link;
use super::local::Job;
use super::shared::{Lane, Shared};
use crate::base::ids::{NodeId, Ticket};
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::lane::{BlockPlace, Outgoing};
use crate::wire::envelope::Envelope;

/// Inline payloads up to this are handed on without an allocation.
const SMALL_BYTES: usize = 256;

/// Roots whose owners must be told of something, once the reader role has been given back.
pub(super) type Wakes = Vec<(u32, Aftermath)>;

/// Where a branch goes, beside its hop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Onward {
    /// The node that sent it; [`ENGINE`](crate::wire::envelope::ENGINE) for a caller's request.
    pub source: u16,
    pub target: NodeId,
    pub key: Option<u64>,
}

/// A payload on its way from one group to the next.
#[derive(Clone, Copy)]
pub(super) enum Carried<'a> {
    /// In a reply slot, while its frame is being handled.
    Inline {
        link: &'a Link,
        at: usize,
        len: usize,
    },
    /// In a reply arena.
    Block {
        link: &'a Link,
        block: BlockPlace,
    },
    Heap(&'a [u8]),
}

impl Carried<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Inline { len, .. } => *len,
            Self::Block { block, .. } => block.len as usize,
            Self::Heap(bytes) => bytes.len(),
        }
    }

    fn copy_to(&self, out: &mut [u8]) {
        match self {
            Self::Inline { link, at, .. } => link.end.read_inline(*at, out),
            Self::Block { link, block } => link.end.copy_block(*block, out),
            Self::Heap(bytes) => out.copy_from_slice(bytes),
        }
    }

    pub fn to_heap(self) -> Box<[u8]> {
        let mut bytes = vec![0; self.len()].into_boxed_slice();
        self.copy_to(&mut bytes);
        bytes
    }
}

/// A branch that waits for room.
pub(super) struct Forward {
    pub root: RootKey,
    pub ticket: Ticket,
    pub onward: Onward,
    pub payload: Box<[u8]>,
}

/// The queue in front of a lane.
#[derive(Default)]
pub(super) struct Forwards {
    queue: Mutex<VecDeque<Forward>>,
    /// Its length, for those who only want to know whether it is empty.
    waiting: AtomicU64,
}

impl Forwards {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Forward>> {
        // Nothing under this lock panics.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait. A frame is counted until it has been sent.
    #[inline(always)]
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }
}

/// Tells the owner of a branch that it has got its lane, if that sleeps.
fn tell_moved(branch: &Branch<'_>, wakes: &mut Wakes) {
    if branch.moved() {
        let generation = branch.root.generation;
        let asleep = Aftermath { generation, asleep: true, awaited: false, detached: false };
        wakes.push((branch.root.index, asleep));
    }
}

impl Shared {
    /// Hands a branch on to a lane of its group. Never waits.
    pub fn hand_on(&self, branch: Branch<'_>, onward: Onward, payload: Carried<'_>, wakes: &mut Wakes) {
        match &self.lanes[self.lane_for(branch.group(), onward.key)] {
            Lane::Local(local) => {
                branch.assign(local.source);
                let payload = payload.to_heap();
                self.forwarded_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
                let job = Job::of(&branch, onward.target, payload.into(), &self.correlation);
                local.push(&branch, job, &self.correlation);
                self.runner.kick();
            }
            Lane::Worker(seat) => {
                let link = seat.link();
                branch.assign(link.source);
                let was_sent = link.is_live()
                    && link.forwards.waiting() == 0
                    && self.try_send(link, &branch, onward, payload);
                if !was_sent && !link.is_lost() {
                    self.put_in_front(link, &branch, onward, payload, wakes);
                }
                // The full fence behind the queueing stands between the hop's lane and this look at the latest life.
                // What was sent needs none: who settles a death finds it in the ring.
                if !was_sent && seat.link().is_lost() {
                    self.end_on_dead_lane(seat.link(), branch.root, wakes);
                }
            }
        }
        tell_moved(&branch, wakes);
    }

    /// Sends a branch if there is room for it.
    fn try_send(&self, link: &Link, branch: &Branch<'_>, onward: Onward, payload: Carried<'_>) -> bool {
        let len = payload.len();
        let mut small = [0; SMALL_BYTES];
        let large;
        let outgoing = if len > link.end.inline_bytes() {
            let Ok(mut block) = link.end.arena().take(len) else { return false };
            payload.copy_to(&mut block[..len]);
            Outgoing::Block(block, len)
        } else if let Carried::Heap(bytes) = payload {
            Outgoing::Inline(bytes)
        } else if let Some(small) = small.get_mut(..len) {
            payload.copy_to(small);
            Outgoing::Inline(small)
        } else {
            large = payload.to_heap();
            Outgoing::Inline(&large)
        };
        let Ok(position) = link.end.claim() else { return false };
        branch.place(position);
        let identity = self.correlation.identity(branch.root.index);
        let deadline_ns = self.correlation.deadline_ns(branch.root.index);
        let envelope = Envelope::execute(&identity, branch.ticket, deadline_ns, onward.source, onward.target);
        link.end.send(position, envelope, outgoing);
        // Behind the full fence inside `send`: who ends the root ends it, fences, then looks for its positions.
        if !self.correlation.is_open(branch.root) {
            link.end.cancel(position);
        }
        // Whoever sends this may not look at the lane, and its owner may not be waiting.
        self.arm_for_awaited(link);
        true
    }

    fn put_in_front(
        &self,
        link: &Link,
        branch: &Branch<'_>,
        onward: Onward,
        payload: Carried<'_>,
        wakes: &mut Wakes,
    ) {
        let payload = payload.to_heap();
        self.forwarded_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let mut queue = link.forwards.lock();
        queue.push_back(Forward { root: branch.root, ticket: branch.ticket, onward, payload });
        link.forwards.waiting.store(queue.len() as u64, Ordering::SeqCst);
        drop(queue);
        fence(Ordering::SeqCst);
        self.flush(link, wakes);
    }

    /// Sends what waits in front of a lane, as far as there is room. Call it behind a full fence after room was
    /// made.
    #[inline(always)]
    pub fn flush(&self, link: &Link, wakes: &mut Wakes) {
        if link.forwards.waiting() != 0 {
            self.flush_queue(link, wakes);
        }
    }

    #[cold]
    fn flush_queue(&self, link: &Link, wakes: &mut Wakes) {
        let mut queue = link.forwards.lock();
        // Whatever life the caller spoke of: the queue is the process's, and the latest life is the one to be asked.
        let link = self.link(link.source.lane);
        while let Some(front) = queue.front() {
            if !link.is_live() {
                // It waits for the successor; if there is to be none, whoever gave up ends what is here.
                break;
            }
            match self.correlation.take_up(front.root, front.ticket) {
                Some(branch) => {
                    branch.assign(link.source);
                    if !self.try_send(link, &branch, front.onward, Carried::Heap(&front.payload)) {
                        break;
                    }
                    // Its owner may be looking at a former life.
                    tell_moved(&branch, wakes);
                }
                None => self.correlation.put_down(front.root, front.ticket),
            }
            self.forward_gone(&front.payload);
            queue.pop_front();
        }
        link.forwards.waiting.store(queue.len() as u64, Ordering::SeqCst);
        // Before the caller tells those who wait for room.
        fence(Ordering::SeqCst);
    }

    /// Puts frames that a dead worker is to have once more in front of the queue, in their order.
    pub fn put_back(&self, link: &Link, frames: Vec<Forward>) {
        let mut queue = link.forwards.lock();
        for forward in frames.into_iter().rev() {
            self.forwarded_bytes.fetch_add(forward.payload.len() as u64, Ordering::Relaxed);
            queue.push_front(forward);
        }
        link.forwards.waiting.store(queue.len() as u64, Ordering::SeqCst);
    }

    /// Drops frames of ended roots from the queue; where nothing can come of a frame any more, every one.
    pub fn purge(&self, link: &Link) {
        let mut queue = link.forwards.lock();
        queue.retain(|forward| {
            let stays = !link.is_lost() && self.correlation.is_open(forward.root);
            if !stays {
                self.correlation.put_down(forward.root, forward.ticket);
                self.forward_gone(&forward.payload);
            }
            stays
        });
        link.forwards.waiting.store(queue.len() as u64, Ordering::SeqCst);
    }

    /// Bytes that were held for a frame between two groups are not any more.
    pub fn forward_gone(&self, payload: &[u8]) {
        self.forwarded_bytes.fetch_sub(payload.len() as u64, Ordering::Relaxed);
    }

    /// Whether frames between groups hold more than they may, so that no new request is admitted.
    #[inline(always)]
    pub fn holds_too_much(&self) -> bool {
        self.forwarded_bytes.load(Ordering::Relaxed) > self.forward_bytes && self.still_holds_too_much()
    }

    #[cold]
    fn still_holds_too_much(&self) -> bool {
        self.links().for_each(|link| self.purge(link));
        self.forwarded_bytes.load(Ordering::Relaxed) > self.forward_bytes
    }

    /// The root has a frame for a lane whose worker is dead without a successor, and whoever settled that may have
    /// looked before.
    #[cold]
    pub fn end_on_dead_lane(&self, link: &Link, root: RootKey, wakes: &mut Wakes) {
        let outcome = Outcome::Failed(self.cause_of(link));
        let now_ns = self.read_clock();
        let ended = self.correlation.end(root, Some(link.source), outcome, now_ns, |_, _| false);
        self.after_all(ended.into_iter().collect(), wakes);
    }
}
