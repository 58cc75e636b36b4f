//! The engine's one thread: the last of those who wait.
//!
//! One epoll over the event descriptor (which the workers ring), the workers' pidfds and bootstrap sockets. It
//! reads lanes only for requests that nobody waits for, ends what is due among them, and settles a worker's
//! death. While there is nothing of that kind it sleeps without a time-out.

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError};

use super::forward::Wakes;
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
/// Tokens of a worker: its pidfd, and behind that its socket.
const FIRST_PIDFD: u64 = 1;

/// The thread's own things.
pub(super) struct EngineThread {
    shared: Arc<Shared>,
    poller: Poller,
    wards: Vec<Ward>,
    quiet_ticks: u32,
    /// When bells were armed last for what nobody waits for.
    armed_ns: u64,
}

/// A worker that the thread watches, and the lane that it serves.
struct Ward {
    lane: u16,
    /// `None` once it has been reaped.
    worker: Option<Arc<Worker>>,
    /// When the connection ended while the process lived.
    connection_ended_ns: Option<u64>,
}

impl EngineThread {
    /// `workers` in the order of their lanes.
    pub fn new(shared: Arc<Shared>, workers: &[Arc<Worker>]) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(shared.bell.as_fd(), BELL)?;
        let mut wards = Vec::new();
        for (worker, link) in workers.iter().zip(shared.links()) {
            let token = FIRST_PIDFD + 2 * wards.len() as u64;
            poller.add(worker.pidfd(), token)?;
            poller.add(worker.socket(), token + 1)?;
            let lane = link.source.lane;
            wards.push(Ward { lane, worker: Some(Arc::clone(worker)), connection_ended_ns: None });
        }
        Ok(Self { shared, poller, wards, quiet_ticks: 0, armed_ns: 0 })
    }

    /// Lives until the engine is stopped and its workers are reaped.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut tokens = Vec::new();
        loop {
            if shared.ending.load(Ordering::SeqCst) && self.wards.iter().all(|ward| ward.worker.is_none()) {
                return;
            }
            if self.poller.wait(&mut tokens, self.next_look_ns()).is_err() {
                // epoll fails only for want of memory in the kernel; looking again is all one can do.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            for token in &tokens {
                let Some(token) = token.checked_sub(FIRST_PIDFD) else {
                    shared.bell.clear();
                    continue;
                };
                let ward = &mut self.wards[token as usize / 2];
                match token % 2 {
                    0 => ward.settle_death(&shared, &self.poller),
                    _ => ward.hear(&self.poller),
                }
            }
            self.wards.iter_mut().for_each(|ward| ward.kill_if_broken(&shared));
            self.look_after();
        }
    }

    fn next_look_ns(&self) -> Option<u64> {
        let now_ns = clock::monotonic_ns();
        let tick = self.shared.ticking.load(Ordering::SeqCst).then_some(now_ns + TICK_NS);
        let ended = self.wards.iter().filter_map(|ward| ward.connection_ended_ns).min();
        let grace = ended.map(|ended_ns| ended_ns + END_GRACE_NS);
        let due = tick.and_then(|_| self.shared.correlation.earliest_deadline());
        [tick, grace, due].into_iter().flatten().min()
    }

    /// Reads what nobody reads, ends what is due, and arms bells for what is still to come.
    fn look_after(&mut self) {
        let shared = Arc::clone(&self.shared);
        if !shared.ticking.load(Ordering::SeqCst) {
            return;
        }
        loop {
            self.read_all();
            shared.expire(clock::monotonic_ns());
            if self.all_armed() {
                break;
            }
        }
        if shared.unattended.load(Ordering::SeqCst) > 0 {
            self.quiet_ticks = 0;
            return;
        }
        self.quiet_ticks += 1;
        if self.quiet_ticks > QUIET_TICKS {
            self.quiet_ticks = 0;
            shared.ticking.store(false, Ordering::SeqCst);
            // Somebody who counted up before it saw the flag fall must not be forgotten.
            if shared.unattended.load(Ordering::SeqCst) > 0 {
                shared.ticking.store(true, Ordering::SeqCst);
            }
        }
    }

    fn read_all(&self) {
        let shared = &self.shared;
        loop {
            let mut found = false;
            for link in shared.links() {
                while shared.read(link) {
                    found = true;
                }
                link.stop_looking(&shared.correlation);
            }
            // What one lane has replied may have gone on to another.
            if !found {
                return;
            }
        }
    }

    /// Arms the bell of every lane with something that nobody waits for; false if a reply is there already.
    fn all_armed(&mut self) -> bool {
        let shared = &self.shared;
        let is_awaited = shared.awaited.load(Ordering::SeqCst) > 0;
        if !is_awaited {
            // Once a tick at most: callers who dispatch ahead read for themselves, and a bell costs the worker a
            // system call and them a processor.
            let now_ns = clock::monotonic_ns();
            let is_due = now_ns >= self.armed_ns.saturating_add(TICK_NS);
            if !is_due || shared.unattended.load(Ordering::SeqCst) == 0 {
                return true;
            }
            self.armed_ns = now_ns;
        }
        let mut armed = true;
        for link in shared.links().filter(|link| link.is_live() && link.load() > 0) {
            // Without somebody to be told, a reply that is there already can wait for the next tick.
            armed &= link.end.arm_bell() || !is_awaited;
        }
        armed
    }
}

impl Ward {
    fn hear(&mut self, poller: &Poller) {
        let Some(worker) = &self.worker else { return };
        if worker.hear() == Heard::End && self.connection_ended_ns.is_none() {
            poller.remove(worker.socket());
            self.connection_ended_ns = Some(clock::monotonic_ns());
        }
    }

    /// Kills a worker that broke a rule of the lane, or whose connection ended while it lives.
    fn kill_if_broken(&mut self, shared: &Shared) {
        let Some(worker) = &self.worker else { return };
        let link = shared.link(self.lane);
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
    fn settle_death(&mut self, shared: &Shared, poller: &Poller) {
        let Some(worker) = &self.worker else { return };
        let Some(exit) = worker.exit() else { return };
        let by_kernel = match exit {
            Exit::Code(code) => Cause::Exit(code),
            Exit::Signal(signal) => Cause::Signal(signal),
        };
        let link = shared.link(self.lane);
        let asked_to = shared.stopping_workers.load(Ordering::SeqCst);
        link.die(if asked_to { Cause::Stopped } else { by_kernel });
        read_to_the_end(shared, link);
        worker.kill();
        worker.reap();
        poller.remove(worker.pidfd());
        if self.connection_ended_ns.take().is_none() {
            poller.remove(worker.socket());
        }
        let cause = link.cause().expect("latched above");
        let now_ns = clock::monotonic_ns();
        shared.after(shared.correlation.end_all_of(link.source, cause, now_ns, shared.started()));
        shared.purge(link);
        link.wake_everybody(&shared.correlation);
        // What stood in front of the lane may have kept new requests of any group out.
        fence(Ordering::SeqCst);
        shared.room_came_free();
        let mode = if asked_to && exit == Exit::Code(0) { StopMode::Graceful } else { StopMode::Forced };
        let stop = WorkerStop {
            group: shared.group_name(link.group).to_string(),
            pid: worker.pid(),
            mode,
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
