//! The engine's one thread: the last of those who wait.
//!
//! One epoll over the event descriptor (which the workers ring), the workers' pidfds, sockets and doorbells. It
//! reads lanes only for requests that nobody waits for, ends what is due among them, and looks after the workers
//! (`ward.rs`). While nobody leaves it anything it wakes for heartbeats and a look each half second.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::shared::Shared;
use super::ward::Ward;
use crate::os::clock;
use crate::os::limits::OomKills;
use crate::os::poll::Poller;
use crate::supervisor::{Patience, Toll, Worker};

/// How often what nobody waits for is looked after.
const TICK_NS: u64 = 10_000_000;
/// Ticks without anything to look after before the thread sleeps without a time-out again.
const QUIET_TICKS: u32 = 50;
/// Batches read from each lane before the workers are looked at again: one that never stops talking keeps
/// nobody from being heard, nor a death from being settled.
const TURNS: u32 = 64;
/// How often the kernel's count of kills for want of memory is looked at, while there is a worker to look after.
/// Reading a file of the kernel's that nobody else reads costs more than all else that an idle engine does in a look.
const TOLL_NS: u64 = 2_000_000_000;
const BELL: u64 = 0;
/// Tokens of a worker: its pidfd, its socket, its doorbell, in this order.
const FIRST_PIDFD: u64 = 1;
const TOKENS: u64 = 3;

/// The thread's own things.
pub(super) struct EngineThread {
    shared: Arc<Shared>,
    poller: Poller,
    wards: Vec<Ward>,
    quiet_ticks: u32,
    /// A lane had more to read than its turns.
    has_more: bool,
    /// When bells were armed last for what nobody waits for.
    armed_ns: u64,
    /// How often room had come free when those were woken who wait for it.
    room_seen: u64,
    /// Whom the kernel may have killed for want of memory, and when that was last asked.
    kills: OomKills,
    toll: Toll,
    toll_ns: u64,
}

impl EngineThread {
    /// `workers` in the order of their lanes.
    pub fn new(shared: Arc<Shared>, workers: &[Arc<Worker>], patience: Patience) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(shared.bell.as_fd(), BELL)?;
        let mut wards = Vec::new();
        for (worker, link) in workers.iter().zip(shared.links()) {
            let restart = shared.placement.groups[usize::from(link.group.0)].restart;
            let ward = Ward::new(link.source.lane, Arc::clone(worker), patience, restart);
            ward.watch(&poller, FIRST_PIDFD + TOKENS * wards.len() as u64)?;
            wards.push(ward);
        }
        let kills = OomKills::find();
        let toll = Toll::from(kills.count());
        Ok(Self {
            shared,
            poller,
            wards,
            quiet_ticks: 0,
            has_more: false,
            armed_ns: 0,
            room_seen: 0,
            kills,
            toll,
            toll_ns: clock::monotonic_ns(),
        })
    }

    /// Lives until the engine is stopped and its workers are reaped.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        shared.recipe.owner.adopt();
        let mut tokens = Vec::new();
        loop {
            if shared.ending.load(Ordering::SeqCst) && self.wards.iter().all(Ward::is_over) {
                return shared.wake_for_room(&mut self.room_seen, clock::monotonic_ns());
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
                let ward = &mut self.wards[(token / TOKENS) as usize];
                match token % TOKENS {
                    0 => ward.settle_death(&shared, &self.poller, |now_ns| {
                        self.toll.note(self.kills.count(), now_ns);
                        self.toll.claim()
                    }),
                    1 => ward.look_at_socket(&self.poller),
                    _ => ward.hear(&shared),
                }
            }
            self.settle_revivals();
            let now_ns = clock::monotonic_ns();
            self.wards.iter_mut().for_each(|ward| ward.look(&shared, now_ns));
            if now_ns >= self.toll_ns + TOLL_NS {
                self.toll_ns = now_ns;
                self.toll.note(self.kills.count(), now_ns);
            }
            self.look_after();
            shared.wake_for_room(&mut self.room_seen, clock::monotonic_ns());
        }
    }

    fn settle_revivals(&mut self) {
        let revived =
            std::mem::take(&mut *self.shared.revived.lock().unwrap_or_else(PoisonError::into_inner));
        for (lane, result) in revived {
            let number =
                self.wards.iter().position(|ward| ward.lane() == lane).expect("a ward for each worker");
            let token = FIRST_PIDFD + TOKENS * number as u64;
            self.wards[number].settle_revival(&self.shared, &self.poller, token, result);
        }
    }

    fn next_look_ns(&self) -> Option<u64> {
        if self.has_more {
            return Some(0);
        }
        let now_ns = clock::monotonic_ns();
        let tick = self.shared.ticking.load(Ordering::SeqCst).then_some(now_ns + TICK_NS);
        let due = tick.and_then(|_| self.shared.correlation.earliest_deadline());
        let wards = self.wards.iter().filter_map(Ward::next_ns).min();
        [tick, due, wards].into_iter().flatten().min()
    }

    /// Reads what nobody reads, ends what is due, and arms bells for what is still to come.
    fn look_after(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.has_more = false;
        if !shared.ticking.load(Ordering::SeqCst) {
            return;
        }
        let mut turns = 0..TURNS;
        let mut is_done = false;
        while !is_done && turns.next().is_some() {
            // What one lane has replied may have gone on to another.
            let has_read = self.read_all();
            shared.expire(clock::monotonic_ns());
            is_done = !has_read && self.all_armed();
        }
        self.has_more = !is_done;
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

    /// Reads a batch from each lane; whether there was one.
    fn read_all(&self) -> bool {
        let shared = &self.shared;
        let mut has_read = false;
        for link in shared.links() {
            has_read |= shared.read(link);
            link.stop_looking(&shared.correlation);
        }
        has_read
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
