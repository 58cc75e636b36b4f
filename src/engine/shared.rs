//! What all handles of an engine share. The way of a request through it: `dispatch.rs`, `reader.rs`, and between
//! two groups `forward.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::correlation::{Correlation, Outcome, Source};
use super::in_order::InOrder;
use super::link::Link;
use super::local::{Local, Runner};
use super::order::Reach;
use super::revival::{Recipe, Revived};
use super::room::RoomWaiters;
use super::seat::Seat;
use super::stop::WorkerStop;
use crate::base::clock::Deadline;
use crate::base::contain::contain;
use crate::base::failure::{Cause, Failure};
use crate::base::ids::{GroupId, NodeId};
use crate::base::waiting::Waiting;
use crate::doorbell::Rejects;
use crate::os::clock;
use crate::os::poll::EventFd;
use crate::plan::placement::Placement;
use crate::supervisor::{StartError, Tail, Worker, WorkerEvent, WorkerNotice};
use crate::wire::geometry::Geometry;

/// Deadlines this far away are counted from the coarse clock.
const COARSE_FROM: Duration = Duration::from_millis(100);

/// Dead workers whose last lines are kept.
const LAST_WORDS: usize = 64;

/// Takes failures, in the thread of whoever takes the failed request.
pub(super) type FailureListener = Arc<dyn Fn(&Failure) + Send + Sync>;

/// The workers of all lanes, for whoever stops them.
#[derive(Default)]
pub(super) struct Workers {
    pub now: Mutex<Roll>,
    pub changed: Condvar,
}

/// Who there is, and how those ended who were there before, each by lane.
#[derive(Default)]
pub(super) struct Roll {
    pub living: BTreeMap<u16, Arc<Worker>>,
    /// The latest end of each.
    pub ended: BTreeMap<u16, WorkerStop>,
    /// The last words of the latest dead, by process number.
    pub last_words: VecDeque<(i32, Tail)>,
    /// What the doorbells of the dead had refused.
    pub rejects: Rejects,
}

impl Workers {
    pub fn lock(&self) -> MutexGuard<'_, Roll> {
        lock(&self.now)
    }

    /// A worker has been reaped; false if that was known already.
    pub fn settle(&self, lane: u16, worker: &Worker, stop: WorkerStop) -> bool {
        let mut roll = self.lock();
        let is_new = roll.living.remove(&lane).is_some();
        if is_new {
            roll.rejects.add(&worker.rejects());
            roll.last_words.push_back((worker.pid(), worker.tail().clone()));
            if roll.last_words.len() > LAST_WORDS {
                roll.last_words.pop_front();
            }
            roll.ended.insert(lane, stop);
        }
        drop(roll);
        self.changed.notify_all();
        is_new
    }
}

/// One process's worth of a group.
pub(super) enum Lane {
    Worker(Box<Seat>),
    Local(Box<Local>),
}

impl Lane {
    pub fn seat(&self) -> Option<&Seat> {
        match self {
            Self::Worker(seat) => Some(seat),
            Self::Local(_) => None,
        }
    }

    /// The lane of its worker's latest life.
    #[inline(always)]
    pub fn link(&self) -> Option<&Link> {
        match self {
            Self::Worker(seat) => Some(seat.link()),
            Self::Local(_) => None,
        }
    }

    pub fn local(&self) -> Option<&Local> {
        match self {
            Self::Worker(_) => None,
            Self::Local(local) => Some(local),
        }
    }

    /// Whether nothing can come of a request here any more.
    pub fn is_lost(&self) -> bool {
        self.link().is_some_and(Link::is_lost)
    }

    /// How much stands here or waits for it: what lives before what must wait for a successor.
    pub fn load(&self) -> u64 {
        match self {
            Self::Worker(seat) if !seat.link().is_live() => WAITING_FOR_SUCCESSOR,
            Self::Worker(seat) => seat.link().load(),
            Self::Local(local) => local.load(),
        }
    }

    pub fn source(&self) -> Source {
        match self {
            Self::Worker(seat) => seat.link().source,
            Self::Local(local) => local.source,
        }
    }
}

/// The load of a lane whose worker is dead and to be restarted.
const WAITING_FOR_SUCCESSOR: u64 = 1 << 62;

/// The lanes of one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub first: u16,
    pub processes: u16,
}

/// Where something of a root waits in private memory for its taker.
pub(super) type Place<T> = Mutex<Option<T>>;

/// Everything of an engine but its handles.
pub(super) struct Shared {
    pub placement: Placement,
    pub group_names: Vec<Arc<str>>,
    pub waiting: Waiting,
    pub geometry: Geometry,
    pub correlation: Correlation,
    /// In the plan's order of groups, and of processes within.
    pub lanes: Box<[Lane]>,
    /// By group.
    pub routes: Box<[Route]>,
    /// Whether any lane is without a worker.
    pub has_local: bool,
    /// Payloads of ended roots that are neither in a cell nor left in place, by root.
    pub heap: Box<[Place<Box<[u8]>>]>,
    /// Wakers of those who wait for a root without a thread, with its generation, by root.
    pub wakers: Box<[Place<(u64, Waker)>]>,
    /// The runs that roots belong to, by root.
    pub orders: Box<[Place<Arc<InOrder>>]>,
    /// What runs need to know of the plan; of none that has a circle.
    pub reach: Arc<Reach>,
    /// Runs that are going on; while there is none, nobody looks at `orders`.
    pub runs: AtomicU32,
    /// What the clock said when this engine last read it: dates events without reading it again.
    pub clock_ns: AtomicU64,
    /// Threads that are about to sleep for room, or do.
    pub waiting_for_room: AtomicU32,
    /// Grows when room comes free while somebody waits for it.
    pub room_made: AtomicU64,
    /// Those who wait for it without a thread.
    pub room_waiters: RoomWaiters,
    /// Payload bytes of frames that wait between two groups, and of answers that runs keep.
    pub forwarded_bytes: AtomicU64,
    /// How many of those there may be before new requests are refused.
    pub forward_bytes: u64,
    /// Requests that nobody need be waiting for: pending and detached ones.
    pub unattended: AtomicU64,
    /// Of these, those that somebody must be told of, or that nobody will ever take.
    pub awaited: AtomicU64,
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
    pub workers: Workers,
    /// Successors that have been started, or could not be, by lane; for the engine's thread.
    pub revived: Mutex<Vec<(u16, Result<Revived, StartError>)>>,
    /// How a successor is started.
    pub recipe: Recipe,
    /// Who is told of each failure.
    pub failure_listener: Option<FailureListener>,
    pub runner: Runner,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    // ---- groups and lanes ----

    pub fn group_name(&self, group: GroupId) -> Arc<str> {
        Arc::clone(&self.group_names[usize::from(group.0)])
    }

    pub fn group_of(&self, node: NodeId) -> GroupId {
        self.placement.nodes.get(usize::from(node.0)).map_or(GroupId(0), |node| node.group)
    }

    /// The lanes that have a worker.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.lanes.iter().filter_map(Lane::link)
    }

    /// The lane for a frame of this group: by key always the same one; without a key the least loaded one that
    /// lives.
    #[inline(always)]
    pub fn lane_for(&self, group: GroupId, key: Option<u64>) -> usize {
        let route = self.routes[usize::from(group.0)];
        if route.processes == 1 { usize::from(route.first) } else { self.lane_among(route, key) }
    }

    fn lane_among(&self, route: Route, key: Option<u64>) -> usize {
        let first = usize::from(route.first);
        let processes = usize::from(route.processes);
        if let Some(key) = key {
            return first + (spread(key) % processes as u64) as usize;
        }
        let mut least = (u64::MAX, first);
        for lane in first..first + processes {
            if !self.lanes[lane].is_lost() {
                least = least.min((self.lanes[lane].load(), lane));
            }
            if least.0 == 0 {
                break;
            }
        }
        least.1
    }

    /// The largest request.
    pub fn max_payload(&self) -> usize {
        self.geometry.request_arena_bytes
    }

    // ---- the clock ----

    pub fn resolve(&self, deadline: Deadline) -> u64 {
        match deadline {
            // Cheaper to read, and late by two steps at most. Behind by one of them always, by both while a tick is late.
            Deadline::After(duration) if duration >= COARSE_FROM => deadline.resolve(|| {
                let now_ns = clock::coarse_ns();
                self.note_clock(now_ns);
                now_ns + 2 * clock::coarse_step_ns()
            }),
            Deadline::Never => {
                // Nobody else may read a clock for long, and ends are dated.
                self.note_clock(clock::coarse_ns());
                0
            }
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

    /// What the clock said last.
    #[inline(always)]
    pub fn noted_clock_ns(&self) -> u64 {
        self.clock_ns.load(Ordering::Relaxed)
    }

    /// Now, for a judgement of what has this deadline (0 = none): the coarse clock while that is far away.
    #[inline]
    pub fn clock_for(&self, deadline_ns: u64) -> u64 {
        let now_ns = clock::coarse_ns();
        if deadline_ns == 0 || now_ns + COARSE_FROM.as_nanos() as u64 <= deadline_ns {
            self.note_clock(now_ns);
            return now_ns;
        }
        self.read_clock()
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
        self.unattended.fetch_add(1, Ordering::SeqCst);
        if !self.ticking.load(Ordering::SeqCst) && !self.ticking.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
        if self.has_local {
            self.runner.kick();
        }
    }

    /// It has been taken, or has ended without an owner.
    pub fn end_unattended(&self, was_awaited: bool) {
        if was_awaited {
            self.awaited.fetch_sub(1, Ordering::AcqRel);
        }
        self.unattended.fetch_sub(1, Ordering::AcqRel);
    }

    /// Somebody must be told of the end of an unattended request: from now on its lanes ring the bell for it.
    pub fn begin_awaited(&self) {
        // SeqCst: whoever reads on looks here behind its fence, and arms the bell again; see `arm_for_awaited`.
        self.awaited.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for link in self.links().filter(|link| link.load() > 0) {
            if !link.end.arm_bell() {
                self.bell.ring();
            }
        }
    }

    /// Somebody stops looking at a lane, and the bell may be armed for a reply that it has read.
    #[inline(always)]
    pub fn arm_for_awaited(&self, link: &Link) {
        if self.awaited.load(Ordering::SeqCst) != 0 && link.load() > 0 && !link.end.arm_bell() {
            self.bell.ring();
        }
    }

    /// Leaves a waker with a root; false if the root has ended.
    pub fn leave_waker(&self, index: u32, generation: u64, waker: &Waker) -> bool {
        let mut place = lock(&self.wakers[index as usize]);
        let known = place.as_ref().is_some_and(|(of, known)| *of == generation && known.will_wake(waker));
        let former = if known { None } else { place.replace((generation, waker.clone())) };
        drop(place);
        // It is the user's, and may own what comes back in here: not under the lock.
        drop(former);
        self.correlation.await_end(index)
    }

    /// Takes the waker that was left with this user of a place, and calls it.
    pub fn wake_waker(&self, index: u32, generation: u64) {
        let waker = lock(&self.wakers[index as usize]).take_if(|(of, _)| *of == generation);
        if let Some((_, waker)) = waker {
            // It is the user's, and this thread may be the engine's.
            contain(|| waker.wake());
        }
    }

    /// Forgets the waker of a root.
    pub fn drop_waker(&self, index: u32) {
        let waker = lock(&self.wakers[index as usize]).take();
        drop(waker);
    }

    // ---- runs ----

    /// The run that a root belongs to; none for what is no root.
    #[inline(always)]
    pub fn order_of(&self, index: u32) -> Option<Arc<InOrder>> {
        // Relaxed: a run counts itself before it registers its first root.
        if self.runs.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.orders.get(index as usize).and_then(|order| lock(order).clone())
    }

    /// Says that a root belongs to a run, or no more.
    pub fn set_order(&self, index: u32, order: Option<Arc<InOrder>>) {
        *lock(&self.orders[index as usize]) = order;
    }

    // ---- the ends of roots ----

    /// Frees an ended root whose result nobody wants.
    pub fn discard(&self, index: u32) {
        let (outcome, ..) = self.correlation.outcome(index);
        match outcome {
            Outcome::Block { source, block } => self.link_of(source).end.release(block),
            Outcome::Heap => drop(self.take_payload(index)),
            _ => {}
        }
        self.free(index);
    }

    /// The lane of one life of a worker.
    pub fn link_of(&self, source: Source) -> &Link {
        let seat = self.lanes[usize::from(source.lane)].seat();
        seat.and_then(|seat| seat.life(source.incarnation)).expect("a life that was begun")
    }

    /// The lane of a worker's latest life.
    pub fn link(&self, lane: u16) -> &Link {
        self.lanes[usize::from(lane)].link().expect("the lane of a worker")
    }

    /// Keeps the payload of a root that is ending.
    pub fn keep_payload(&self, index: u32, payload: Box<[u8]>) {
        *lock(&self.heap[index as usize]) = Some(payload);
    }

    /// Takes the payload that is kept for an ended root.
    pub fn take_payload(&self, index: u32) -> Option<Box<[u8]>> {
        lock(&self.heap[index as usize]).take()
    }

    /// Frees a root whose outcome has been taken.
    #[inline]
    pub fn free(&self, index: u32) {
        // The exchange that gives the place back stands for a fence, as every access of that list does: see
        // `Shared::begin_waiting_for_room`.
        self.correlation.free(index);
        self.room_came_free();
    }

    // ---- room ----

    /// Somebody is about to sleep for room, and tries once more after this. Forbidden: that try finds none *and*
    /// who makes some does not see that it is waited for; both sides fence between their store and their load.
    pub fn begin_waiting_for_room(&self) {
        self.waiting_for_room.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// It has room, or has given up.
    pub fn end_waiting_for_room(&self) {
        self.waiting_for_room.fetch_sub(1, Ordering::SeqCst);
    }

    /// Tells those who wait for room that there may be some. A full fence stands between the making of it and
    /// this.
    #[inline(always)]
    pub fn room_came_free(&self) {
        if self.waiting_for_room.load(Ordering::SeqCst) != 0 {
            self.room_made.fetch_add(1, Ordering::SeqCst);
            self.links().for_each(|link| link.wake_for_room(&self.correlation));
            if !self.room_waiters.is_empty() {
                self.bell.ring();
            }
        }
    }

    /// A failure on its way to its caller: whoever listens is told first.
    pub fn told(&self, failure: Failure) -> Failure {
        tell(self.failure_listener.as_ref(), &failure);
        failure
    }

    /// Tells what has happened to the worker of a lane.
    pub fn tell(&self, lane: u16, pid: i32, event: WorkerEvent) {
        let group = self.link(lane).group;
        let process = lane - self.routes[usize::from(group.0)].first;
        let (group, at_ns) = (self.group_name(group), clock::monotonic_ns());
        self.recipe.telling.tell(WorkerNotice { group, process, pid, at_ns, event });
    }

    /// A failure that is on its way to no caller is told like an event.
    pub fn tell_later(&self, failure: Failure) {
        let listener = self.failure_listener.clone();
        self.recipe.telling.queue.push(move || tell(listener.as_ref(), &failure));
    }

    /// Why a lane is dead, for a request that was not sent.
    pub fn cause_of(&self, link: &Link) -> Cause {
        link.cause_of_loss().unwrap_or(Cause::Exit(0))
    }
}

/// Tells a failure to whoever listens.
fn tell(listener: Option<&FailureListener>, failure: &Failure) {
    // Subscribers and listeners are the user's; what they do changes nothing here.
    #[cfg(feature = "tracing")]
    contain(|| {
        tracing::warn!(
            target: "handbell",
            group = failure.group(),
            category = failure.category().name(),
            cause = ?failure.cause(),
            started = failure.started(),
            "handoff_failure"
        );
    });
    if let Some(listener) = listener {
        contain(|| listener(failure));
    }
}

/// Spreads keys evenly, the same way in every profile and process. Source: the finalizer of MurmurHash3 (Austin
/// Appleby, public domain).
fn spread(key: u64) -> u64 {
    let key = (key ^ key >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let key = (key ^ key >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    key ^ key >> 33
}

/// Requests in flight, as a relaxed figure; exact when no call is inside the engine.
pub(super) fn in_flight(correlation: &Correlation) -> u64 {
    let counters = correlation.all_counters();
    counters.registered.saturating_sub(counters.ended())
}
