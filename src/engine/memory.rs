//! The memory profile: the same executor, run by whoever waits, in this process.
//!
//! Owns: the group's states (behind a lock that is held for one request), the queue in front of them, and
//! payloads too large for a root's cell. Requests run in the order in which they were taken. Who waits for a
//! request runs what stands before it; what nobody waits for is run by a thread of the engine's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use super::correlation::{
    Admission, Admitted, Correlation, Outcome, Phase, Refused, RootKey, Source, Verdict,
};
use super::dispatch::{NotTaken, Outbound, Payload};
use super::shared::Shared;
use crate::base::clock::has_passed;
use crate::base::failure::ExecutionClass;
use crate::base::ids::{GroupId, Identity, Ticket};
use crate::base::limits::LONGEST_SLEEP_NS;
use crate::base::sync;
use crate::lane::LastMark;
use crate::node::EmitError;
use crate::node::executor::{self, Executor, Port, Reply};
use crate::node::request::Cancellation;
use crate::os::clock;
use crate::wire::envelope::{Envelope, kind, status};
use crate::wire::error;

/// The one state of the profile stands where lane 0 would.
const SOURCE: Source = Source { lane: 0, incarnation: 1 };

struct Job {
    root: RootKey,
    ticket: Ticket,
    target: u16,
    identity: Identity,
    deadline_ns: u64,
    payload: Vec<u8>,
}

/// One group in this process.
pub(super) struct MemoryGroup {
    group: GroupId,
    executor: Mutex<Executor>,
    queue: Mutex<VecDeque<Job>>,
    capacity: usize,
    max_request: usize,
    max_reply: usize,
    runner: Mutex<bool>,
    kicked: Condvar,
    ending: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Panics of nodes are caught inside the executor; what the lock guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryGroup {
    pub fn new(
        group: GroupId,
        executor: Executor,
        capacity: usize,
        max_request: usize,
        max_reply: usize,
    ) -> Self {
        Self {
            group,
            executor: Mutex::new(executor),
            queue: Mutex::new(VecDeque::with_capacity(capacity)),
            capacity,
            max_request,
            max_reply,
            runner: Mutex::new(false),
            kicked: Condvar::new(),
            ending: AtomicBool::new(false),
        }
    }

    pub fn max_request(&self) -> usize {
        self.max_request
    }

    pub fn submit<'a>(
        &self,
        correlation: &Correlation,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        let size = match &payload {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Block(_, len) | Payload::Staged(_, len) => *len,
        };
        if size > self.max_request {
            return Err(NotTaken::TooLarge { size, limit: self.max_request });
        }
        let mut queue = lock(&self.queue);
        if queue.len() >= self.capacity {
            return Err(NotTaken::Busy(payload));
        }
        let admission = Admission {
            identity: outbound.identity,
            deadline_ns: outbound.deadline_ns,
            target: SOURCE,
            group: self.group,
        };
        let admitted = match correlation.register(&admission) {
            Ok(admitted) => admitted,
            Err(Refused::Full) => return Err(NotTaken::Busy(payload)),
            Err(Refused::TraceInFlight) => return Err(NotTaken::TraceInFlight),
        };
        fence(Ordering::SeqCst);
        correlation.published(admitted.root, outbound.deadline_ns);
        let payload = match payload {
            Payload::Bytes(bytes) => bytes.to_vec(),
            Payload::Block(block, len) => block[..len].to_vec(),
            Payload::Staged(bytes, len) => {
                let mut bytes = bytes.into_vec();
                bytes.truncate(len);
                bytes
            }
        };
        queue.push_back(Job {
            root: admitted.root,
            ticket: admitted.ticket,
            target: outbound.target.0,
            identity: Identity { trace_id: admitted.trace_id, ..outbound.identity },
            deadline_ns: outbound.deadline_ns,
            payload,
        });
        Ok(admitted)
    }

    // ---- running ----

    /// Runs the oldest request if nobody is running one; whether it did.
    pub fn help(&self, shared: &Shared) -> bool {
        let mut executor = match self.executor.try_lock() {
            Ok(executor) => executor,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(job) = lock(&self.queue).pop_front() else { return false };
        self.run(shared, &mut executor, &job);
        drop(executor);
        // Whoever found the lock taken sleeps now; what it waits for must not be left standing.
        if !lock(&self.queue).is_empty() {
            self.kick();
        }
        true
    }

    fn run(&self, shared: &Shared, executor: &mut Executor, job: &Job) {
        let correlation = &shared.correlation;
        if job.deadline_ns != 0 {
            shared.expire_if_due(job.root, clock::monotonic_ns());
        }
        let replied = Cell::new(false);
        let mut port = MemoryPort { group: self, shared, job, replied: &replied };
        if correlation.is_open(job.root) {
            correlation.placed(job.ticket, 0);
            let incoming = executor::Incoming {
                target: job.target,
                identity: job.identity,
                deadline_ns: job.deadline_ns,
                payload: &job.payload,
            };
            executor.execute(&incoming, &GivenUp { correlation, job, replied: &replied }, &mut port);
        }
        port.finish();
    }

    /// Waits until the root has ended, running what stands before it.
    pub fn wait(&self, shared: &Shared, key: RootKey) {
        let correlation = &shared.correlation;
        while correlation.phase(key) != Phase::Ended {
            if self.help(shared) {
                continue;
            }
            // Whoever holds the states may have found the queue empty just before this request came into it.
            if !lock(&self.queue).is_empty() {
                self.kick();
            }
            let deadline_ns = correlation.deadline_ns(key.index);
            let now_ns = shared.read_clock();
            shared.expire_if_due(key, now_ns);
            let word = correlation.wake_word(key.index);
            let expected = word.load();
            if correlation.fall_asleep(key.index) {
                let longest_ns = now_ns + LONGEST_SLEEP_NS;
                let until_ns = if deadline_ns == 0 { longest_ns } else { deadline_ns.min(longest_ns) };
                word.wait(expected, Some(until_ns));
            }
            correlation.wake_up(key.index);
        }
    }

    // ---- the engine's second thread ----

    /// Tells the runner that there is something nobody waits for.
    pub fn kick(&self) {
        *lock(&self.runner) = true;
        self.kicked.notify_one();
    }

    /// Ends [`MemoryGroup::run_unattended`].
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.kick();
    }

    /// The runner's life.
    pub fn run_unattended(&self, shared: &Shared) {
        loop {
            {
                let mut kicked = lock(&self.runner);
                while !*kicked {
                    kicked = self.kicked.wait(kicked).unwrap_or_else(PoisonError::into_inner);
                }
                *kicked = false;
            }
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            loop {
                let mut executor = lock(&self.executor);
                let Some(job) = lock(&self.queue).pop_front() else { break };
                self.run(shared, &mut executor, &job);
            }
        }
    }
}

/// A request is given up when its root has ended otherwise than by a reply of its own, as in a worker, or its
/// deadline has passed: the thread that would end it may be the one that runs the node.
struct GivenUp<'a> {
    correlation: &'a Correlation,
    job: &'a Job,
    replied: &'a Cell<bool>,
}

impl Cancellation for GivenUp<'_> {
    fn is_cancelled(&self) -> bool {
        !self.replied.get()
            && (!self.correlation.is_open(self.job.root)
                || self.job.deadline_ns != 0 && has_passed(self.job.deadline_ns, clock::monotonic_ns()))
    }
}

/// Hands frames straight to the correlation table.
struct MemoryPort<'a> {
    group: &'a MemoryGroup,
    shared: &'a Shared,
    job: &'a Job,
    /// A frame of this request has ended it.
    replied: &'a Cell<bool>,
}

impl MemoryPort<'_> {
    fn frame(
        &self,
        kind: u8,
        status: u8,
        last: LastMark,
        outcome: Outcome,
        fill: impl FnOnce(&[sync::AtomicU64]),
    ) {
        let now_ns = if self.job.deadline_ns == 0 { clock::coarse_ns() } else { clock::monotonic_ns() };
        if has_passed(self.job.deadline_ns, now_ns) {
            // The node was not interrupted, but what comes after the deadline is late.
            self.shared.expire_if_due(self.job.root, now_ns);
        }
        let identity = self.job.identity;
        let envelope = Envelope {
            trace_id: identity.trace_id.to_words(),
            ticket: self.job.ticket.0,
            reply_to: identity.reply_to,
            run: identity.run,
            scenario: identity.scenario,
            kind,
            status,
            ..Envelope::default()
        };
        let verdict = self.shared.correlation.frame(SOURCE, &envelope, last, outcome, now_ns, fill);
        match verdict.expect("the memory profile's own frames keep the rules") {
            Verdict::Ended(index, aftermath) => {
                self.replied.set(true);
                self.shared.after(index, aftermath);
            }
            Verdict::Dropped => {}
        }
    }

    fn finish(&self) {
        self.frame(kind::DONE, status::SUCCESS, LastMark::Ended, Outcome::Inline { len: 0 }, |_| {});
    }

    fn check(&self, len: usize) -> Result<(), EmitError> {
        let limit = self.group.max_reply;
        if len <= limit { Ok(()) } else { Err(EmitError::TooLarge { size: len, limit }) }
    }

    fn cell_bytes(&self) -> usize {
        8 * self.shared.correlation.cell(self.job.root.index).len()
    }

    fn reply_heap(&self, payload: Box<[u8]>) {
        let index = self.job.root.index;
        let keep = |_: &[sync::AtomicU64]| self.shared.keep_payload(index, payload);
        self.frame(kind::TERMINAL, status::SUCCESS, LastMark::No, Outcome::Heap, keep);
    }
}

/// Puts bytes into a root's cell. Relaxed: published by the end of the root.
pub(super) fn fill_cell(cell: &[sync::AtomicU64], payload: &[u8]) {
    for (word, bytes) in cell.iter().zip(payload.chunks(8)) {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(value), Ordering::Relaxed);
    }
}

impl Port for MemoryPort<'_> {
    fn max_payload(&self) -> usize {
        self.group.max_reply
    }

    fn reply(&mut self, _reply: Reply, payload: &[u8]) -> Result<(), EmitError> {
        self.check(payload.len())?;
        if payload.len() > self.cell_bytes() {
            self.reply_heap(payload.into());
        } else {
            let outcome = Outcome::Inline { len: payload.len() as u32 };
            self.frame(kind::TERMINAL, status::SUCCESS, LastMark::No, outcome, |cell| {
                fill_cell(cell, payload)
            });
        }
        Ok(())
    }

    fn reply_with(
        &mut self,
        reply: Reply,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        self.check(len)?;
        let mut payload = vec![0; len];
        fill(&mut payload);
        if len > self.cell_bytes() {
            self.reply_heap(payload.into());
            return Ok(());
        }
        self.reply(reply, &payload)
    }

    fn fail(&mut self, _reply: Reply, class: ExecutionClass, code: u32, text: &str) {
        let mut payload = [0; error::MAX_BYTES];
        let len = error::encode(class, code, text, self.cell_bytes(), &mut payload);
        if class == ExecutionClass::Misrouted {
            self.shared.correlation.misrouted(SOURCE.lane);
        }
        let outcome = Outcome::Error { len: len as u32 };
        self.frame(kind::TERMINAL, status::ERROR, LastMark::No, outcome, |cell| {
            fill_cell(cell, &payload[..len])
        });
    }

    fn progress(&mut self) {}
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
