//! The end of an engine: refuse new → drain → cut off → stop, term, kill the worker → reap → join.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::drain::{Course, Patience, Step};
use super::shared::{Shared, in_flight};
use super::summary::Summary;
use crate::base::clock::ns;
use crate::base::failure::Cause;
use crate::os::child::Exit;
use crate::os::clock;
use crate::os::thread::Helper;
use crate::supervisor::{Capture, EventThread, Worker, WorkerEvent};

/// How long a stop waits for what is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drain(pub(super) Duration);

impl Drain {
    /// At most this long.
    pub fn within(duration: Duration) -> Self {
        Self(duration)
    }
}

/// How a worker was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StopMode {
    /// It ended by itself when told to.
    Graceful,
    /// It had to be killed, or had died before.
    Forced,
}

/// How one worker ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerStop {
    /// Its group.
    pub group: String,
    /// Its process.
    pub pid: i32,
    /// How it was stopped.
    pub mode: StopMode,
    /// What the kernel says.
    pub cause: Cause,
}

/// What a stop did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StopReport {
    /// Each worker, once.
    pub workers: Vec<WorkerStop>,
    /// Requests that the stop cut off.
    pub cut_off: u64,
}

pub(super) struct Parts {
    /// The engine's own, and the runner if a group runs in this process.
    pub threads: Vec<Helper>,
    pub capture: Option<Capture>,
    /// Ended last: the others hand in what it tells.
    pub events: EventThread,
}

/// What ends with the last handle.
pub(super) struct Life {
    pub shared: Arc<Shared>,
    pub summary: Summary,
    pub term_timeout: Duration,
    /// The process that started it.
    pub process: u32,
    /// `None` once stopped.
    pub parts: Mutex<Option<Parts>>,
}

/// Batches read from each lane before the drain begins: a worker that never stops talking holds nothing up.
const TURNS: u32 = 64;
/// How often a drain looks at what is in flight.
const DRAIN_LOOK: Duration = Duration::from_micros(500);

impl Life {
    pub fn stop(&self, drain: Duration) -> StopReport {
        if std::process::id() != self.process {
            // A copy in a forked child: the workers and threads are the parent's.
            return StopReport::default();
        }
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        shared.links().for_each(|link| link.wake_everybody(&shared.correlation));
        // For those who wait for room without a thread.
        shared.bell.ring();
        let Some(parts) = self.parts.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return StopReport::default();
        };
        // A listener, a sink, a waker, a node that runs in this process: one of the engine's threads asks.
        let is_own = shared.recipe.owner.is_current();
        let end = End { shared: Arc::clone(shared), term_timeout: self.term_timeout, parts };
        match is_own {
            false => end.run(drain),
            true => end.run_elsewhere(drain),
        }
    }
}

/// An engine's end.
struct End {
    shared: Arc<Shared>,
    term_timeout: Duration,
    parts: Parts,
}

impl End {
    /// In a thread of its own: one of the engine's cannot wait for its own end.
    fn run_elsewhere(self, drain: Duration) -> StopReport {
        let shared = Arc::clone(&self.shared);
        let name = std::thread::Builder::new().name("handbell-stop".into());
        if name.spawn(move || self.run(drain)).is_err() {
            // Without a thread nobody can be waited for; the caller reaps when it goes on.
            shared.stopping_workers.store(true, Ordering::SeqCst);
            shared.ending.store(true, Ordering::SeqCst);
            each_worker(&shared, Worker::kill);
        }
        StopReport::default()
    }

    /// Does what the course of a stop says. Each flag is raised at one place here, and says to others how far it is.
    fn run(self, drain: Duration) -> StopReport {
        let patience = Patience { drain_ns: ns(drain), term_ns: ns(self.term_timeout) };
        let shared = &self.shared;
        let mut course = Course::new(patience);
        let mut cut_off = 0;
        loop {
            let living = shared.workers.lock().living.len();
            match course.step(clock::monotonic_ns(), in_flight(&shared.correlation), living) {
                Step::Drain => {
                    // Since `Life::stop` nothing new is taken.
                    each_worker(shared, Worker::tell_to_drain);
                    // What has been published is delivered, however short the drain is.
                    (0..TURNS).take_while(|_| self.read()).for_each(drop);
                }
                Step::Finish { .. } => self.finish_some(),
                Step::CutOff => cut_off = self.cut_off(),
                Step::Stop => {
                    shared.stopping_workers.store(true, Ordering::SeqCst);
                    shared.bell.ring();
                    each_worker(shared, Worker::tell_to_stop);
                }
                Step::Terminate => {
                    self.settle_the_dead();
                    each_worker(shared, Worker::terminate);
                }
                Step::Kill => {
                    self.settle_the_dead();
                    each_worker(shared, Worker::kill);
                }
                Step::Await { until_ns } => self.wait_for_ends(until_ns),
                Step::Gone => break,
            }
        }
        let Self { shared, term_timeout, parts } = self;
        shared.ending.store(true, Ordering::SeqCst);
        shared.bell.ring();
        shared.runner.end();
        // One that is in code of the user's may never come back.
        for thread in parts.threads {
            thread.join_within(term_timeout);
        }
        if let Some(capture) = parts.capture {
            capture.end_within(term_timeout);
        }
        drop(parts.events);
        let workers = shared.workers.lock().ended.values().cloned().collect();
        StopReport { workers, cut_off }
    }

    /// Reads the lanes, because nobody else may; whether there was anything.
    fn read(&self) -> bool {
        let shared = &self.shared;
        let mut found = false;
        for link in shared.links() {
            found |= shared.read(link);
            link.stop_looking(&shared.correlation);
            shared.arm_for_awaited(link);
        }
        found
    }

    /// Lets what is in flight come on, and ends what is due.
    fn finish_some(&self) {
        if self.read() {
            return;
        }
        let shared = &self.shared;
        if shared.has_local {
            shared.runner.kick();
        }
        shared.expire(clock::monotonic_ns());
        std::thread::sleep(DRAIN_LOOK);
    }

    /// Fails what is still in flight with category `shutdown`.
    fn cut_off(&self) -> u64 {
        let shared = &self.shared;
        let now_ns = clock::monotonic_ns();
        let ended = shared.correlation.end_all(Cause::Stopped, now_ns, shared.started());
        let count = ended.len() as u64;
        shared.after(ended);
        count
    }

    /// Reaps who has ended in a step and was not settled in it: the engine's thread is in code of the user's, a waker,
    /// and may never come back. If it does, it settles what is left, and tells of it.
    fn settle_the_dead(&self) {
        let shared = &self.shared;
        let living = shared.workers.lock().living.clone();
        for (lane, worker) in living {
            let Some(exit) = worker.exit() else { continue };
            worker.kill();
            worker.reap();
            let gracefully = exit == Exit::Code(0);
            let stop = WorkerStop {
                group: shared.group_name(shared.link(lane).group).to_string(),
                pid: worker.pid(),
                mode: if gracefully { StopMode::Graceful } else { StopMode::Forced },
                cause: match exit {
                    Exit::Code(code) => Cause::Exit(code),
                    Exit::Signal(signal) => Cause::Signal(signal),
                },
            };
            if shared.workers.settle(lane, &worker, stop) {
                shared.tell(lane, worker.pid(), WorkerEvent::Stopped { gracefully });
            }
        }
    }

    fn wait_for_ends(&self, until_ns: u64) {
        let limit = Duration::from_nanos(until_ns.saturating_sub(clock::monotonic_ns()));
        let workers = &self.shared.workers;
        let wait = workers.changed.wait_timeout_while(workers.lock(), limit, |roll| !roll.living.is_empty());
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}

/// The latest in the plan first.
fn each_worker(shared: &Shared, step: fn(&Worker)) {
    let workers: Vec<_> = shared.workers.lock().living.values().cloned().collect();
    workers.iter().rev().for_each(|worker| step(worker));
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
