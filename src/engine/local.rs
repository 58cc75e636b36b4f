//! A group that runs in this process: every group in the memory profile, `local()` ones in both.
//!
//! Owns: one process's worth of states (behind a lock that is held for one request), and the queue in front of
//! them. Requests run in the order in which they were taken. Who waits for a request runs what stands before
//! it; what nobody waits for is run by a thread of the engine's, the runner. The executor is the one that
//! workers use; its frames go straight to the correlation table.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use super::correlation::{Admission, Admitted, Branch, Correlation, Refused, RootKey, Source};
use super::dispatch::{NotTaken, Outbound, Payload};
use super::forward::Wakes;
use super::local_port::LocalPort;
use super::pending::{CallError, take};
use super::reply::Reply;
use super::shared::{Lane, Shared};
use crate::base::clock::has_passed;
use crate::base::ids::{GroupId, Identity, NodeId, Ticket};
use crate::node::executor::{self, Executor};
use crate::node::request::Cancellation;
use crate::os::clock;

/// A request that waits for its states, or has them.
pub(super) struct Job<'a> {
    /// Its place in the order of this lane's requests, from 0.
    position: u64,
    cancelled: bool,
    pub root: RootKey,
    pub ticket: Ticket,
    target: u16,
    pub identity: Identity,
    pub deadline_ns: u64,
    payload: Cow<'a, [u8]>,
    /// It came from another group, and its bytes are counted as held between groups.
    forwarded: bool,
}

impl<'a> Job<'a> {
    #[inline(always)]
    fn new(outbound: &Outbound, admitted: &Admitted, position: u64, payload: Cow<'a, [u8]>) -> Self {
        Self {
            position,
            cancelled: false,
            root: admitted.root(),
            ticket: admitted.ticket,
            target: outbound.target.node().0,
            identity: Identity { trace_id: admitted.trace_id, ..outbound.identity },
            deadline_ns: outbound.deadline_ns,
            payload,
            forwarded: false,
        }
    }
}

impl Job<'static> {
    /// What a branch of an open root is to run.
    pub fn of(branch: &Branch<'_>, target: NodeId, payload: Vec<u8>, correlation: &Correlation) -> Self {
        Self {
            position: 0,
            cancelled: false,
            root: branch.root,
            ticket: branch.ticket,
            target: target.0,
            identity: correlation.identity(branch.root.index),
            deadline_ns: correlation.deadline_ns(branch.root.index),
            payload: payload.into(),
            forwarded: true,
        }
    }
}

/// One process's worth of a group, in this process.
pub(super) struct Local {
    pub source: Source,
    pub group: GroupId,
    executor: Mutex<Executor>,
    queue: Mutex<VecDeque<Job<'static>>>,
    /// Its length, and more while one is about to come in.
    waiting: AtomicU64,
    /// Requests that have ever come in.
    count: AtomicU64,
    /// Requests that have been begun.
    begun: AtomicU64,
    /// Requests that have been run to their end, or skipped. Only who holds the executor changes it.
    ended: AtomicU64,
    /// The latest request, + 1, that was cancelled after it had left the queue.
    cancelled: AtomicU64,
    /// How many new requests may wait.
    capacity: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Panics of nodes are caught inside the executor; what the lock guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Local {
    pub fn new(source: Source, group: GroupId, executor: Executor, capacity: usize) -> Self {
        Self {
            source,
            group,
            executor: Mutex::new(executor),
            queue: Mutex::default(),
            waiting: AtomicU64::new(0),
            count: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            capacity,
        }
    }

    /// Takes a request, or says why not.
    pub fn submit<'a>(
        &self,
        correlation: &Correlation,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        let mut queue = lock(&self.queue);
        if queue.len() >= self.capacity {
            return Err(NotTaken::Busy(payload));
        }
        let admitted = match self.register(correlation, outbound) {
            Ok(admitted) => admitted,
            Err(Refused::Full) => return Err(NotTaken::Busy(payload)),
            Err(Refused::TraceInFlight) => return Err(NotTaken::TraceInFlight),
        };
        let position = self.place();
        correlation.placed(admitted.ticket, position);
        fence(Ordering::SeqCst);
        correlation.published(admitted.root(), outbound.deadline_ns);
        let job = Job::new(outbound, &admitted, position, payload.into_vec().into());
        // Who ends the root after the fence finds the request in the queue, once this lets go of it.
        queue.push_back(Job { cancelled: !correlation.is_open(admitted.root()), ..job });
        Ok(admitted)
    }

    #[inline(always)]
    fn register(&self, correlation: &Correlation, outbound: &Outbound) -> Result<Admitted, Refused> {
        correlation.register(&Admission {
            identity: outbound.identity,
            deadline_ns: outbound.deadline_ns,
            home: self.source.lane,
            target: Some(self.source),
            group: self.group,
        })
    }

    /// The place of a request that is about to come into the queue. By who has locked it.
    fn place(&self) -> u64 {
        // In this order: see `place_at_once`.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.count.fetch_add(1, Ordering::SeqCst)
    }

    /// The place of a request that is run at once, if none waits before it. By who holds the executor.
    ///
    /// Forbidden: a request has a place before this one, and has not been begun. Who takes a place in the queue counts
    /// itself first; so either it is seen here, or its place is taken after this look, and the exchange fails unless it
    /// comes before.
    fn place_at_once(&self) -> Option<u64> {
        let count = self.count.load(Ordering::SeqCst);
        let is_next = !self.is_waited_for()
            && self.count.compare_exchange(count, count + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        is_next.then_some(count)
    }

    /// Takes a branch that another group handed on.
    pub fn push(&self, branch: &Branch<'_>, job: Job<'static>, correlation: &Correlation) {
        let mut queue = lock(&self.queue);
        let position = self.place();
        branch.place(position);
        fence(Ordering::SeqCst);
        queue.push_back(Job { position, cancelled: !correlation.is_open(branch.root), ..job });
    }

    /// Says that the request at `position` is not wanted any more.
    pub fn cancel(&self, position: u64) {
        let mut queue = lock(&self.queue);
        match queue.iter_mut().find(|job| job.position == position) {
            Some(job) => job.cancelled = true,
            None => drop(self.cancelled.fetch_max(position + 1, Ordering::Relaxed)),
        }
    }

    /// Whether the request at `position` has been begun.
    pub fn started(&self, position: u64) -> bool {
        self.begun.load(Ordering::Acquire) > position
    }

    /// Requests that wait or run.
    pub fn load(&self) -> u64 {
        // Read in this order: what has ended has come in before.
        let ended = self.ended.load(Ordering::Acquire);
        self.count.load(Ordering::SeqCst) - ended
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) != 0
    }

    fn pop(&self) -> Option<Job<'static>> {
        let job = lock(&self.queue).pop_front()?;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Some(job)
    }

    // ---- running ----

    /// Runs a request in the thread that calls, if nothing stands before it. `None`: nothing has happened.
    pub fn call(
        &self,
        shared: &Arc<Shared>,
        outbound: &Outbound,
        bytes: &[u8],
    ) -> Option<Result<Reply, CallError>> {
        if self.is_waited_for() {
            return None;
        }
        let mut executor = self.executor.try_lock().ok()?;
        let correlation = &shared.correlation;
        let admitted = self.register(correlation, outbound).ok()?;
        let Some(position) = self.place_at_once() else {
            correlation.withdraw(admitted.root());
            return None;
        };
        // Without a fence: who ends it now may find no place of it yet to be cancelled, and it is run all the same.
        correlation.placed(admitted.ticket, position);
        let job = Job::new(outbound, &admitted, position, bytes.into());
        let mut port = LocalPort::new(self.source, self.group, shared, &job);
        self.run(&mut executor, &job, &mut port);
        let end = port.finish_own(&admitted);
        self.count_end();
        drop(executor);
        let end = match end {
            Ok(reply) => {
                // Its exchange stands for the fence behind the states that have come free.
                correlation.free_own(&admitted);
                shared.room_came_free();
                self.leave_to_runner(shared);
                Ok(reply)
            }
            Err(wakes) => {
                Self::has_run(shared, wakes);
                self.leave_to_runner(shared);
                // Until here its owner alone looked after its deadline. Behind the fence in `has_run`.
                correlation.published(admitted.root(), outbound.deadline_ns);
                shared.wait(admitted.root());
                take(shared, admitted.root())
            }
        };
        Some(end)
    }

    /// Runs the oldest request if nobody is running one; whether it did.
    pub fn help(&self, shared: &Shared) -> bool {
        let mut executor = match self.executor.try_lock() {
            Ok(executor) => executor,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // Whoever runs may have found the queue empty just before something came into it.
                self.leave_to_runner(shared);
                return false;
            }
        };
        let Some(wakes) = self.run_next(shared, &mut executor) else { return false };
        drop(executor);
        Self::has_run(shared, wakes);
        self.leave_to_runner(shared);
        true
    }

    /// Whoever found the states taken sleeps now; what it waits for must not be left standing.
    fn leave_to_runner(&self, shared: &Shared) {
        if self.is_waited_for() {
            shared.runner.kick();
        }
    }

    /// Runs what waits, for those who do not.
    fn run_all(&self, shared: &Shared) -> bool {
        let mut ran = false;
        loop {
            let mut executor = lock(&self.executor);
            let Some(wakes) = self.run_next(shared, &mut executor) else { return ran };
            drop(executor);
            Self::has_run(shared, wakes);
            ran = true;
        }
    }

    /// Runs the oldest request. Returns who must be told, once the states are free again.
    fn run_next(&self, shared: &Shared, executor: &mut Executor) -> Option<Wakes> {
        let job = self.pop()?;
        if job.forwarded {
            shared.forward_gone(&job.payload);
        }
        if job.deadline_ns != 0 {
            shared.expire_if_due(job.root, clock::monotonic_ns());
        }
        let mut port = LocalPort::new(self.source, self.group, shared, &job);
        self.run(executor, &job, &mut port);
        let wakes = port.finish();
        self.count_end();
        Some(wakes)
    }

    /// Runs a request, unless it is not wanted any more; its last frame is still held back.
    #[inline(always)]
    fn run(&self, executor: &mut Executor, job: &Job<'_>, port: &mut LocalPort<'_>) {
        let given_up = GivenUp { local: self, correlation: port.correlation(), job };
        if !job.cancelled && !given_up.is_told() {
            // Release: what made the request is older; pairs with `started`.
            self.begun.store(job.position + 1, Ordering::Release);
            let incoming = executor::Incoming {
                target: job.target,
                identity: &job.identity,
                deadline_ns: job.deadline_ns,
                payload: &job.payload,
            };
            executor.execute(&incoming, &given_up, port);
        }
    }

    /// A request has been run to its end. By who holds the executor.
    fn count_end(&self) {
        self.ended.store(self.ended.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// What follows once the states of a request are free.
    fn has_run(shared: &Shared, wakes: Wakes) {
        shared.wake(wakes);
        // The end of a request makes room in the queue.
        fence(Ordering::SeqCst);
        shared.room_came_free();
    }
}

/// The engine's second thread: runs what nobody waits for.
#[derive(Default)]
pub(super) struct Runner {
    kicked: Mutex<bool>,
    changed: Condvar,
    ending: AtomicBool,
}

impl Runner {
    /// Tells the runner that there is something to run.
    pub fn kick(&self) {
        *lock(&self.kicked) = true;
        self.changed.notify_one();
    }

    /// Ends [`Runner::run`].
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.kick();
    }

    /// The runner's life.
    pub fn run(&self, shared: &Shared) {
        loop {
            {
                let mut kicked = lock(&self.kicked);
                while !*kicked {
                    kicked = self.changed.wait(kicked).unwrap_or_else(PoisonError::into_inner);
                }
                *kicked = false;
            }
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            let locals = || shared.lanes.iter().filter_map(Lane::local);
            while locals().fold(false, |ran, local| local.run_all(shared) | ran) {}
        }
    }
}

/// Whether a request has been cancelled, as in a worker, or its deadline has passed: the thread that would end
/// it may be the one that runs the node.
struct GivenUp<'a> {
    local: &'a Local,
    correlation: &'a Correlation,
    job: &'a Job<'a>,
}

impl GivenUp<'_> {
    /// Whether whoever ended it has said so.
    fn is_told(&self) -> bool {
        self.local.cancelled.load(Ordering::Relaxed) == self.job.position + 1
    }
}

impl Cancellation for GivenUp<'_> {
    fn is_cancelled(&self) -> bool {
        self.is_told()
            || self.job.deadline_ns != 0
                && self.correlation.is_open(self.job.root)
                && has_passed(self.job.deadline_ns, clock::monotonic_ns())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::base::failure::NodeError;
    use crate::engine::{Drain, Engine, EngineBuilder};
    use crate::node::registry::Registry;
    use crate::node::{Node, Output, Request};
    use crate::plan::plan::Plan;
    use crate::plan::settings::Profile;

    fn engine<F>(run: F) -> Engine
    where
        F: Fn(&Request<'_>, &mut Output<'_>) -> Result<(), NodeError> + Clone + Send + Sync + 'static,
    {
        let mut registry = Registry::default();
        let build = move || Ok(Box::new(run.clone()) as Box<dyn Node>);
        registry.add(["node".to_owned()], Arc::new(build));
        let plan = Plan::new().group("g", ["node"]);
        EngineBuilder::new(registry, plan).profile(Profile::Memory).start().unwrap()
    }

    #[test]
    fn reply_04_a_cancelled_request_is_skipped_though_its_place_is_used_again() {
        let (entered, is_inside) = channel();
        let (open, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let ran = Arc::new(Mutex::new(Vec::new()));
        let engine = engine({
            let ran = Arc::clone(&ran);
            move |request, output| {
                lock(&ran).push(request.payload().to_vec());
                if request.payload() == b"gate" {
                    entered.send(()).unwrap();
                    lock(&gate).recv().unwrap();
                }
                Ok(output.reply(request.payload())?)
            }
        });
        let node = engine.node("node").unwrap();
        let dispatch = |payload: &[u8]| engine.request(node).dispatch(payload).unwrap();
        let first = dispatch(b"gate");
        is_inside.recv().unwrap();
        drop(dispatch(b"given up"));
        let last = dispatch(b"wanted");
        open.send(()).unwrap();
        assert_eq!(*last.wait().unwrap().bytes(), *b"wanted");
        first.wait().unwrap();
        assert_eq!(*lock(&ran), [b"gate".to_vec(), b"wanted".to_vec()]);
        engine.stop(Drain::within(std::time::Duration::from_secs(5)));
    }

    #[test]
    fn parity_01_one_at_a_time_whoever_runs_it() {
        let is_busy = Arc::new(AtomicBool::new(false));
        let engine = engine({
            let is_busy = Arc::clone(&is_busy);
            move |request, output| {
                assert!(!is_busy.swap(true, Ordering::SeqCst));
                if request.payload()[0] % 16 == 0 {
                    std::thread::yield_now();
                }
                is_busy.store(false, Ordering::SeqCst);
                Ok(output.reply(request.payload())?)
            }
        });
        let node = engine.node("node").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let engine = &engine;
                scope.spawn(move || {
                    for turn in 0..=255u8 {
                        let payload = [turn, thread];
                        let reply = match (turn ^ thread) % 3 {
                            0 => engine.request(node).dispatch(&payload).unwrap().wait(),
                            _ => engine.request(node).call(&payload),
                        };
                        assert_eq!(*reply.unwrap().bytes(), payload);
                    }
                });
            }
        });
        let (counters, audit) = (engine.counters(), engine.audit());
        assert!(
            counters.completed() == 1024 && counters.balances(0) && audit.free > 0 && audit.not_taken == 0
        );
        engine.stop(Drain::within(std::time::Duration::from_secs(5)));
    }

    #[test]
    fn parity_01_a_node_that_has_replied_is_not_cancelled() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let engine = engine({
            let seen = Arc::clone(&seen);
            move |request, output| {
                let before = request.is_cancelled();
                output.reply(b"")?;
                lock(&seen).push((before, request.is_cancelled()));
                Ok(())
            }
        });
        let node = engine.node("node").unwrap();
        engine.request(node).call(b"").unwrap();
        engine.stop(Drain::within(std::time::Duration::from_secs(5)));
        assert_eq!(*lock(&seen), [(false, false)]);
    }
}
