//! A worker in the care of the engine's thread: heard, watched, killed when it must be, and settled when it is
//! dead. Each step of its life is told to whoever listens.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::forward::Wakes;
use super::link::Link;
use super::shared::Shared;
use super::stop::{StopMode, WorkerStop};
use crate::base::failure::{Cause, KilledFor};
use crate::doorbell::{Ended, Report};
use crate::os::child::Exit;
use crate::os::clock;
use crate::os::poll::Poller;
use crate::supervisor::{self, Finding, Liveness, Patience, Work, Worker, WorkerEvent, WorkerNotice};

/// A worker whose connection has ended is dying, or is killed after this.
const END_GRACE_NS: u64 = 100_000_000;

/// A worker, and the lane that it serves.
pub(super) struct Ward {
    lane: u16,
    /// `None` once it has been reaped.
    worker: Option<Arc<Worker>>,
    liveness: Liveness,
    /// When a connection ended while the process lived.
    connection_ended_ns: Option<u64>,
    /// It has said, as it was asked to, that serving has ended: silence is what follows.
    has_left: bool,
}

impl Ward {
    /// A worker that is ready.
    pub fn new(lane: u16, worker: Arc<Worker>, patience: Patience) -> Self {
        let liveness = Liveness::new(patience, clock::monotonic_ns());
        Self { lane, worker: Some(worker), liveness, connection_ended_ns: None, has_left: false }
    }

    /// Whether it is dead and reaped.
    pub fn is_over(&self) -> bool {
        self.worker.is_none()
    }

    /// When [`Ward::look`] has something to do of its own accord.
    pub fn next_ns(&self) -> Option<u64> {
        let worker = self.worker.as_ref()?;
        let grace = self.connection_ended_ns.map(|ended_ns| ended_ns + END_GRACE_NS);
        [worker.next_ns(), grace, Some(self.liveness.next_ns())].into_iter().flatten().min()
    }

    fn tell(&self, shared: &Shared, event: WorkerEvent) {
        let Some(worker) = &self.worker else { return };
        let group = shared.group_name(shared.link(self.lane).group);
        let (process, pid) = (worker.process(), worker.pid());
        let notice = WorkerNotice { group, process, pid, at_ns: clock::monotonic_ns(), event };
        supervisor::tell(shared.listener.as_ref(), &notice);
    }

    /// The bootstrap socket is readable: nothing is said there, so it has ended.
    pub fn look_at_socket(&mut self, poller: &Poller) {
        let Some(worker) = &self.worker else { return };
        if worker.has_hung_up() {
            poller.remove(worker.socket());
            self.connection_ended_ns.get_or_insert_with(clock::monotonic_ns);
        }
    }

    /// Hears what the worker says on the doorbell.
    pub fn hear(&mut self, shared: &Shared) {
        let Some(worker) = &self.worker else { return };
        let heard = worker.hear();
        for report in heard.reports {
            match report {
                Report::Drained => self.tell(shared, WorkerEvent::Drained),
                Report::Stopped => self.has_left = true,
                // From one who was not asked it is a connection that ends.
                Report::Bye if shared.stopping_workers.load(Ordering::SeqCst) => self.has_left = true,
                Report::Bye => {
                    self.connection_ended_ns.get_or_insert_with(clock::monotonic_ns);
                }
                Report::Ready | Report::Heartbeat => {}
            }
        }
        if let Some(ended) = heard.ended {
            if let Ended::Rejected(reason) = ended {
                self.tell(shared, WorkerEvent::DoorbellReject(reason.name()));
            }
            if !self.has_left {
                // It is dying, or is killed after a grace.
                self.connection_ended_ns.get_or_insert_with(clock::monotonic_ns);
            }
        }
    }

    /// What is to be done now: something to say, somebody to kill.
    pub fn look(&mut self, shared: &Shared, now_ns: u64) {
        let Some(worker) = self.worker.clone() else { return };
        if worker.next_ns().is_some_and(|next_ns| next_ns <= now_ns) {
            self.hear(shared);
        }
        let link = shared.link(self.lane);
        if link.broken_rule().is_some() {
            worker.kill();
        }
        let ended_ns = self.connection_ended_ns.unwrap_or(u64::MAX);
        if now_ns >= ended_ns.saturating_add(END_GRACE_NS) && worker.exit().is_none() {
            self.connection_ended_ns = None;
            link.die(Cause::Killed(KilledFor::ConnectionLost));
            worker.kill();
        }
        if now_ns >= self.liveness.next_ns() {
            self.judge(shared, &worker, now_ns);
        }
    }

    fn judge(&mut self, shared: &Shared, worker: &Worker, now_ns: u64) {
        // What has come meanwhile is heard before its silence is judged.
        self.hear(shared);
        let link = shared.link(self.lane);
        if !link.is_live() || self.has_left || self.connection_ended_ns.is_some() {
            // It is dying, ends by itself, or has its grace: silence says nothing about it any more.
            return self.liveness.skip(now_ns);
        }
        let work = link.end.executing();
        let work = work.map(|(position, deadline_ns, progress)| Work { position, deadline_ns, progress });
        let heard_ns = worker.heard_ns();
        match self.liveness.look(now_ns, heard_ns, work, || worker.is_stopped()) {
            Some(Finding::Suspect) => self.tell(shared, WorkerEvent::Suspect),
            Some(Finding::Paused) => self.tell(shared, WorkerEvent::StoppedBySignal),
            Some(Finding::Recovered) => self.tell(shared, WorkerEvent::Recovered),
            Some(Finding::Kill(reason)) => {
                link.die(Cause::Killed(reason));
                worker.kill();
            }
            None => {}
        }
    }

    /// The worker has ended: lane dead → reply ring read to its end → group killed → reaped → what is still
    /// open ends.
    pub fn settle_death(&mut self, shared: &Shared, poller: &Poller) {
        let Some(worker) = self.worker.clone() else { return };
        let Some(exit) = worker.exit() else { return };
        let by_kernel = match exit {
            Exit::Code(code) => Cause::Exit(code),
            Exit::Signal(signal) => Cause::Signal(signal),
        };
        let link = shared.link(self.lane);
        let asked_to = shared.stopping_workers.load(Ordering::SeqCst);
        link.die(if asked_to { Cause::Stopped } else { by_kernel });
        read_to_the_end(shared, link);
        // Its last words may lie on the doorbell still.
        self.hear(shared);
        worker.kill();
        worker.reap();
        poller.remove(worker.pidfd());
        poller.remove(worker.socket());
        let cause = link.cause().expect("latched above");
        let now_ns = clock::monotonic_ns();
        shared.after(shared.correlation.end_all_of(link.source, cause, now_ns, shared.started()));
        shared.purge(link);
        link.wake_everybody(&shared.correlation);
        let gracefully = asked_to && exit == Exit::Code(0);
        self.tell(
            shared,
            if asked_to { WorkerEvent::Stopped { gracefully } } else { WorkerEvent::Crashed(cause) },
        );
        let stop = WorkerStop {
            group: shared.group_name(link.group).to_string(),
            pid: worker.pid(),
            mode: if gracefully { StopMode::Graceful } else { StopMode::Forced },
            cause: by_kernel,
        };
        self.worker = None;
        shared.exits.ended.lock().unwrap_or_else(PoisonError::into_inner).push(stop);
        shared.exits.changed.notify_all();
    }
}

/// Every reply that was published before the end is delivered, unless the ring is corrupt.
fn read_to_the_end(shared: &Shared, link: &Link) {
    if link.broken_rule().is_some() {
        link.end.close();
        return;
    }
    let now_ns = clock::coarse_ns();
    let mut wakes = Wakes::new();
    // What is behind a frame that breaks a rule ends with the lane; it is dead already, and its first cause stays.
    let _ = link.end.read_out(|frame| shared.judge(link, frame, now_ns, &mut wakes));
    shared.wake(wakes);
}
