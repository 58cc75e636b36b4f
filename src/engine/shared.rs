//! What all handles of an engine share. The way of a request through it: `dispatch.rs`, then `reader.rs`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::correlation::{Correlation, Outcome};
use super::link::Link;
use super::memory::MemoryGroup;
use super::stop::WorkerStop;
use crate::base::clock::Deadline;
use crate::base::ids::{GroupId, NodeId};
use crate::base::waiting::Waiting;
use crate::os::clock;
use crate::os::poll::EventFd;
use crate::plan::placement::Placement;
/// Deadlines this far away are counted from the coarse clock.
const COARSE_FROM: Duration = Duration::from_millis(100);
/// How a worker ended, for whoever waits for that.
#[derive(Default)]
pub(super) struct Exits {
    pub ended: Mutex<Vec<WorkerStop>>,
    pub changed: Condvar,
}

/// Where a payload waits in private memory for its taker.
pub(super) type HeapPlace = Mutex<Option<Box<[u8]>>>;

/// Everything of an engine but its handles.
pub(super) struct Shared {
    pub placement: Placement,
    pub group_names: Vec<Arc<str>>,
    pub waiting: Waiting,
    pub correlation: Correlation,
    /// The lane; none in the memory profile.
    pub link: Option<Link>,
    pub memory: Option<MemoryGroup>,
    /// Payloads of ended roots that are neither in a cell nor left in place, by root.
    pub heap: Box<[HeapPlace]>,
    /// What the clock said when this engine last read it: dates events without reading it again.
    pub clock_ns: AtomicU64,
    /// Grows when room comes free while somebody waits for it.
    pub room_made: AtomicU64,
    /// Requests are refused.
    pub stopping: AtomicBool,
    /// Wakes the engine's thread; the workers ring it too.
    pub bell: EventFd,
    /// The engine's thread looks after what nobody waits for.
    pub ticking: AtomicBool,
    /// The engine's thread shall end.
    pub ending: AtomicBool,
    /// Workers are being stopped: an exit is no failure.
    pub stopping_workers: AtomicBool,
    pub exits: Exits,
}

impl Shared {
    pub fn group_name(&self, group: GroupId) -> Arc<str> {
        Arc::clone(&self.group_names[usize::from(group.0)])
    }

    pub fn group_of(&self, node: NodeId) -> GroupId {
        self.placement.nodes.get(usize::from(node.0)).map_or(GroupId(0), |node| node.group)
    }

    pub fn max_payload(&self) -> usize {
        match (&self.link, &self.memory) {
            (Some(link), _) => link.end.arena().bytes(),
            (None, Some(memory)) => memory.max_request(),
            (None, None) => unreachable!("an engine has a lane or a memory group"),
        }
    }

    pub fn resolve(&self, deadline: Deadline) -> u64 {
        match deadline {
            // A step late at most, never early, and cheaper to read.
            Deadline::After(duration) if duration >= COARSE_FROM => deadline.resolve(|| {
                let now_ns = clock::coarse_ns();
                self.note_clock(now_ns);
                now_ns + clock::coarse_step_ns()
            }),
            _ => deadline.resolve(|| self.read_clock()),
        }
    }

    /// Remembers what a clock said; it never goes back.
    #[inline(always)]
    pub fn note_clock(&self, now_ns: u64) {
        // Relaxed: dates events and passed deadlines, orders nothing. The coarse clock seldom says something new.
        if self.clock_ns.load(Ordering::Relaxed) < now_ns {
            self.clock_ns.fetch_max(now_ns, Ordering::Relaxed);
        }
    }

    /// Reads the precise clock and remembers what it said.
    pub fn read_clock(&self) -> u64 {
        let now_ns = clock::monotonic_ns();
        self.note_clock(now_ns);
        now_ns
    }
    // ---- what nobody waits for ----

    /// A request that nobody need be waiting for exists from now on.
    pub fn begin_unattended(&self) {
        let Some(link) = &self.link else { return };
        link.unattended.fetch_add(1, Ordering::SeqCst);
        if !self.ticking.load(Ordering::SeqCst) && !self.ticking.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    /// It has been taken.
    pub fn end_unattended(&self) {
        if let Some(link) = &self.link {
            link.unattended.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Frees an ended root whose result nobody wants.
    pub fn discard(&self, index: u32) {
        let (outcome, ..) = self.correlation.outcome(index);
        match (outcome, &self.link) {
            (Outcome::Block { payload_at, len }, Some(link)) => {
                link.end.release(link.end.held_block(payload_at, len));
            }
            (Outcome::Heap, _) => drop(self.take_payload(index)),
            _ => {}
        }
        self.free(index);
    }

    fn heap_place(&self, index: u32) -> MutexGuard<'_, Option<Box<[u8]>>> {
        // Nothing under this lock panics.
        self.heap[index as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the payload of a root that is ending.
    pub fn keep_payload(&self, index: u32, payload: Box<[u8]>) {
        *self.heap_place(index) = Some(payload);
    }

    /// Takes the payload that is kept for an ended root.
    pub fn take_payload(&self, index: u32) -> Option<Box<[u8]>> {
        self.heap_place(index).take()
    }

    /// Frees a root whose outcome has been taken.
    pub fn free(&self, index: u32) {
        self.correlation.free(index);
        if let Some(link) = &self.link {
            // See `Link::begin_waiting_for_room`.
            fence(Ordering::SeqCst);
            self.room_came_free(link);
        }
    }
}

/// Requests in flight, as a relaxed figure; exact when no call is inside the engine.
pub(super) fn in_flight(correlation: &Correlation) -> u64 {
    let counters = correlation.all_counters();
    counters.registered.saturating_sub(counters.ended())
}
