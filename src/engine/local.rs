//! A group that runs in this process: every group in the memory profile, `local()` ones in both.
//!
//! Owns: one process's worth of states (behind a lock that is held for one request), and the queue in front of
//! them. Requests run in the order in which they were taken. Who waits for a request runs what stands before
//! it; what nobody waits for is run by a thread of the engine's, the runner. The executor is the one that
//! workers use; its frames go straight to the correlation table.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use super::correlation::{Admission, Admitted, Branch, Correlation, Refused, RootKey, Source};
use super::dispatch::{NotTaken, Outbound, Payload};
use super::forward::Wakes;
use super::local_port::LocalPort;
use super::shared::{Lane, Shared};
use crate::base::clock::has_passed;
use crate::base::ids::{GroupId, Identity, NodeId, Ticket};
use crate::node::executor::{self, Executor};
use crate::node::request::Cancellation;
use crate::os::clock;

/// A request that waits for its states.
pub(super) struct Job {
    /// Its place in the order of this lane's requests, from 0.
    position: u64,
    cancelled: bool,
    pub root: RootKey,
    pub ticket: Ticket,
    target: u16,
    pub identity: Identity,
    pub deadline_ns: u64,
    payload: Vec<u8>,
    /// It came from another group, and its bytes are counted as held between groups.
    forwarded: bool,
}

impl Job {
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
            payload,
            forwarded: true,
        }
    }
}

/// One process's worth of a group, in this process.
pub(super) struct Local {
    pub source: Source,
    pub group: GroupId,
    executor: Mutex<Executor>,
    queue: Mutex<Queue>,
    /// Requests that have been begun.
    begun: AtomicU64,
    /// Requests that have been run to their end, or skipped.
    ended: AtomicU64,
    /// The latest request, + 1, that was cancelled after it had left the queue.
    cancelled: AtomicU64,
    /// How many new requests may wait.
    capacity: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Requests that have ever come in.
    count: u64,
}

impl Queue {
    fn push(&mut self, job: Job) {
        self.jobs.push_back(Job { position: self.count, ..job });
        self.count += 1;
    }
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
        if queue.jobs.len() >= self.capacity {
            return Err(NotTaken::Busy(payload));
        }
        let admission = Admission {
            identity: outbound.identity,
            deadline_ns: outbound.deadline_ns,
            home: self.source.lane,
            target: Some(self.source),
            group: self.group,
        };
        let admitted = match correlation.register(&admission) {
            Ok(admitted) => admitted,
            Err(Refused::Full) => return Err(NotTaken::Busy(payload)),
            Err(Refused::TraceInFlight) => return Err(NotTaken::TraceInFlight),
        };
        correlation.placed(admitted.ticket, queue.count);
        fence(Ordering::SeqCst);
        correlation.published(admitted.root, outbound.deadline_ns);
        // Who ends the root after the fence finds the request in the queue, once this lets go of it.
        queue.push(Job {
            position: 0,
            cancelled: !correlation.is_open(admitted.root),
            root: admitted.root,
            ticket: admitted.ticket,
            target: outbound.target.0,
            identity: Identity { trace_id: admitted.trace_id, ..outbound.identity },
            deadline_ns: outbound.deadline_ns,
            payload: payload.into_vec(),
            forwarded: false,
        });
        Ok(admitted)
    }

    /// Takes a branch that another group handed on.
    pub fn push(&self, branch: &Branch<'_>, job: Job, correlation: &Correlation) {
        let mut queue = lock(&self.queue);
        branch.place(queue.count);
        fence(Ordering::SeqCst);
        queue.push(Job { cancelled: !correlation.is_open(branch.root), ..job });
    }

    /// Says that the request at `position` is not wanted any more.
    pub fn cancel(&self, position: u64) {
        let mut queue = lock(&self.queue);
        match queue.jobs.iter_mut().find(|job| job.position == position) {
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
        lock(&self.queue).count - self.ended.load(Ordering::SeqCst)
    }

    fn is_waited_for(&self) -> bool {
        !lock(&self.queue).jobs.is_empty()
    }

    fn pop(&self) -> Option<Job> {
        lock(&self.queue).jobs.pop_front()
    }

    // ---- running ----

    /// Runs the oldest request if nobody is running one; whether it did.
    pub fn help(&self, shared: &Shared) -> bool {
        let mut executor = match self.executor.try_lock() {
            Ok(executor) => executor,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // Whoever runs may have found the queue empty just before something came into it.
                if self.is_waited_for() {
                    shared.runner.kick();
                }
                return false;
            }
        };
        let Some(job) = self.pop() else { return false };
        let wakes = self.run(shared, &mut executor, &job);
        drop(executor);
        self.has_run(shared, wakes);
        // Whoever found the lock taken sleeps now; what it waits for must not be left standing.
        if self.is_waited_for() {
            shared.runner.kick();
        }
        true
    }

    /// Runs what waits, for those who do not.
    fn run_all(&self, shared: &Shared) -> bool {
        let mut ran = false;
        loop {
            let mut executor = lock(&self.executor);
            let Some(job) = self.pop() else { return ran };
            let wakes = self.run(shared, &mut executor, &job);
            drop(executor);
            self.has_run(shared, wakes);
            ran = true;
        }
    }

    /// Runs a request to its end. Returns who must be told, once the states are free again.
    fn run(&self, shared: &Shared, executor: &mut Executor, job: &Job) -> Wakes {
        let correlation = &shared.correlation;
        if job.forwarded {
            shared.forward_gone(&job.payload);
        }
        if job.deadline_ns != 0 {
            shared.expire_if_due(job.root, clock::monotonic_ns());
        }
        let mut port = LocalPort::new(self.source, self.group, shared, job);
        let given_up = GivenUp { local: self, correlation, job };
        if !job.cancelled && !given_up.is_cancelled() {
            // Release: what made the request is older; pairs with `started`.
            self.begun.store(job.position + 1, Ordering::Release);
            let incoming = executor::Incoming {
                target: job.target,
                identity: job.identity,
                deadline_ns: job.deadline_ns,
                payload: &job.payload,
            };
            executor.execute(&incoming, &given_up, &mut port);
        }
        port.finish()
    }

    /// A request has been run, and its states are free.
    fn has_run(&self, shared: &Shared, wakes: Wakes) {
        self.ended.fetch_add(1, Ordering::SeqCst);
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
    job: &'a Job,
}

impl Cancellation for GivenUp<'_> {
    fn is_cancelled(&self) -> bool {
        self.local.cancelled.load(Ordering::Relaxed) == self.job.position + 1
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
