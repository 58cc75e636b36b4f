//! The engine's one thread: the last of those who wait.
//!
//! One epoll over the event descriptor (which the workers ring), the worker's pidfd and its bootstrap socket.
//! It reads the lane only for requests that nobody waits for, ends what is due among them, and settles a
//! worker's death. While there is nothing of that kind it sleeps without a time-out.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::link::Link;
use super::shared::Shared;
use super::stop::{StopMode, WorkerStop};
use crate::base::failure::{Cause, KilledFor};
use crate::os::child::Exit;
use crate::os::clock;
use crate::os::poll::Poller;
use crate::supervisor::{Heard, Worker};

/// How often what nobody waits for is looked after.
const TICK_NS: u64 = 10_000_000;
/// Ticks without anything to look after before the thread sleeps without a time-out again.
const QUIET_TICKS: u32 = 50;
/// A worker whose connection has ended is dying, or is killed after this.
const END_GRACE_NS: u64 = 100_000_000;

const BELL: u64 = 0;
const PIDFD: u64 = 1;
const SOCKET: u64 = 2;

/// The thread's own things.
pub(super) struct EngineThread {
    shared: Arc<Shared>,
    poller: Poller,
    /// `None` once it has been reaped.
    worker: Option<Arc<Worker>>,
    /// When the connection ended while the process lived.
    connection_ended_ns: Option<u64>,
    quiet_ticks: u32,
    /// When the bell was armed last.
    armed_ns: u64,
}

impl EngineThread {
    pub fn new(shared: Arc<Shared>, worker: Arc<Worker>) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(shared.bell.as_fd().as_fd(), BELL)?;
        poller.add(worker.pidfd(), PIDFD)?;
        poller.add(worker.socket(), SOCKET)?;
        Ok(Self {
            shared,
            poller,
            worker: Some(worker),
            connection_ended_ns: None,
            quiet_ticks: 0,
            armed_ns: 0,
        })
    }

    /// Lives until the engine is stopped and its worker is reaped.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let link = shared.link.as_ref().expect("the thread serves a lane");
        let mut tokens = Vec::new();
        loop {
            if shared.ending.load(Ordering::SeqCst) && self.worker.is_none() {
                return;
            }
            if self.poller.wait(&mut tokens, self.next_look_ns()).is_err() {
                // epoll fails only for want of memory in the kernel; looking again is all one can do.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            for token in &tokens {
                match *token {
                    BELL => shared.bell.clear(),
                    PIDFD => self.settle_death(link),
                    _ => self.hear(),
                }
            }
            self.kill_if_broken(link);
            self.look_after(link);
        }
    }

    fn next_look_ns(&self) -> Option<u64> {
        let now_ns = clock::monotonic_ns();
        let tick = self.shared.ticking.load(Ordering::SeqCst).then_some(now_ns + TICK_NS);
        let grace = self.connection_ended_ns.map(|ended_ns| ended_ns + END_GRACE_NS);
        let due = tick.and_then(|_| self.shared.correlation.earliest_deadline());
        [tick, grace, due].into_iter().flatten().min()
    }

    /// Reads what nobody reads, ends what is due, and arms the bell for what is still to come.
    fn look_after(&mut self, link: &Link) {
        let shared = &self.shared;
        if !shared.ticking.load(Ordering::SeqCst) {
            return;
        }
        while shared.read(link) {}
        link.stop_looking(&shared.correlation);
        shared.expire(clock::monotonic_ns());
        let now_ns = clock::monotonic_ns();
        if link.unattended.load(Ordering::SeqCst) > 0 {
            self.quiet_ticks = 0;
            // Once a tick at most: callers who dispatch ahead read for themselves, and a bell costs the worker
            // a system call and them a processor.
            if now_ns >= self.armed_ns.saturating_add(TICK_NS) {
                self.armed_ns = now_ns;
                link.end.arm_bell();
            }
            return;
        }
        self.quiet_ticks += 1;
        if self.quiet_ticks > QUIET_TICKS {
            self.quiet_ticks = 0;
            shared.ticking.store(false, Ordering::SeqCst);
            // Somebody who counted up before it saw the flag fall must not be forgotten.
            if link.unattended.load(Ordering::SeqCst) > 0 {
                shared.ticking.store(true, Ordering::SeqCst);
            }
        }
    }

    fn hear(&mut self) {
        let Some(worker) = &self.worker else { return };
        if worker.hear() == Heard::End && self.connection_ended_ns.is_none() {
            self.poller.remove(worker.socket());
            self.connection_ended_ns = Some(clock::monotonic_ns());
        }
    }

    /// Kills a worker that broke a rule of the lane, or whose connection ended while it lives.
    fn kill_if_broken(&mut self, link: &Link) {
        let Some(worker) = &self.worker else { return };
        if link.broken_rule().is_some() {
            worker.kill();
        }
        let ended_ns = self.connection_ended_ns.unwrap_or(u64::MAX);
        if clock::monotonic_ns() >= ended_ns.saturating_add(END_GRACE_NS) && worker.exit().is_none() {
            self.connection_ended_ns = None;
            link.die(Cause::Killed(KilledFor::ConnectionLost));
            worker.kill();
        }
    }

    /// The worker has ended: lane dead → reply ring read to its end → group killed → reaped → what is still
    /// open ends.
    fn settle_death(&mut self, link: &Link) {
        let shared = Arc::clone(&self.shared);
        let Some(worker) = &self.worker else { return };
        let Some(exit) = worker.exit() else { return };
        let by_kernel = match exit {
            Exit::Code(code) => Cause::Exit(code),
            Exit::Signal(signal) => Cause::Signal(signal),
        };
        let asked_to = shared.stopping_workers.load(Ordering::SeqCst);
        link.die(if asked_to { Cause::Stopped } else { by_kernel });
        self.read_to_the_end(link);
        worker.kill();
        worker.reap();
        self.poller.remove(worker.pidfd());
        if self.connection_ended_ns.take().is_none() {
            self.poller.remove(worker.socket());
        }
        let cause = link.cause().expect("latched above");
        let started = |_lane, position| link.end.started(position);
        shared.after_all(shared.correlation.end_all_of(link.source, cause, clock::monotonic_ns(), started));
        link.wake_everybody(&shared.correlation);
        let mode = if asked_to && exit == Exit::Code(0) { StopMode::Graceful } else { StopMode::Forced };
        let stop = WorkerStop {
            group: shared.group_name(link.group).to_string(),
            pid: worker.pid(),
            mode,
            cause: by_kernel,
        };
        self.worker = None;
        shared.exits.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(stop);
        shared.exits.changed.notify_all();
    }

    /// Every reply that was published before the end is delivered, unless the ring is corrupt.
    fn read_to_the_end(&self, link: &Link) {
        let shared = &self.shared;
        if link.broken_rule().is_some() {
            link.end.close();
            return;
        }
        let now_ns = clock::coarse_ns();
        let mut wakes = Vec::new();
        // What is behind a frame that breaks a rule ends with the lane; it is dead already, and its first cause stays.
        let _ = link.end.read_out(|frame| {
            wakes.extend(shared.judge(link, frame, now_ns)?);
            Ok(())
        });
        wakes.into_iter().for_each(|index| super::link::wake(shared.correlation.wake_word(index)));
    }
}
