//! A worker in the care of the engine's thread: heard, watched, killed when it must be, settled when it is dead,
//! and followed by another where its group says so. Each step of its life is told to whoever listens.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::correlation::Source;
use super::forward::{Forward, Onward, Wakes};
use super::link::Link;
use super::revival::{self, Revived};
use super::shared::Shared;
use super::stop::{StopMode, WorkerStop};
use crate::base::failure::{Cause, Failure, KilledFor};
use crate::base::ids::{NodeId, Ticket};
use crate::base::refusal::{RefusedFor, StartStep};
use crate::doorbell::{Ended, Report};
use crate::lane::{EngineEnd, Read};
use crate::os::child::Exit;
use crate::os::clock;
use crate::os::poll::Poller;
use crate::plan::restart::{Lives, Restart};
use crate::supervisor::{Capture, Finding, Liveness, Patience, StartError, Work, Worker, WorkerEvent};

/// The number is the same on every processor that this crate supports.
const SIGKILL: i32 = 9;
/// A worker whose connection has ended is dying, or is killed after this.
const END_GRACE_NS: u64 = 100_000_000;

/// What follows a death.
enum Succession {
    /// Nothing, for ever.
    None,
    /// A start, at this time.
    DueAt(u64),
    /// A start that has begun.
    Underway,
}

/// A process of a group, in its present life or between two.
pub(super) struct Ward {
    lane: u16,
    /// `None` while it is dead.
    worker: Option<Arc<Worker>>,
    /// The process number of its latest life.
    pid: i32,
    patience: Patience,
    liveness: Liveness,
    lives: Lives,
    succession: Succession,
    /// Former lives whose memory somebody still holds, by incarnation.
    former: Vec<u64>,
    /// Drains the output of a successor; the first life's is the engine's.
    capture: Option<Capture>,
    /// When a connection ended while the process lived.
    connection_ended_ns: Option<u64>,
    /// It has said, as it was asked to, that serving has ended: silence is what follows.
    has_left: bool,
}

impl Ward {
    /// A worker that is ready.
    pub fn new(lane: u16, worker: Arc<Worker>, patience: Patience, restart: Restart) -> Self {
        Self {
            lane,
            pid: worker.pid(),
            worker: Some(worker),
            patience,
            liveness: Liveness::new(patience, clock::monotonic_ns()),
            lives: Lives::new(restart),
            succession: Succession::None,
            former: Vec::new(),
            capture: None,
            connection_ended_ns: None,
            has_left: false,
        }
    }

    /// Its number in the plan.
    pub fn lane(&self) -> u16 {
        self.lane
    }

    /// Whether it is dead and reaped, and nothing follows.
    pub fn is_over(&self) -> bool {
        self.worker.is_none() && matches!(self.succession, Succession::None)
    }

    /// When [`Ward::look`] has something to do of its own accord.
    pub fn next_ns(&self) -> Option<u64> {
        let Some(worker) = &self.worker else {
            return if let Succession::DueAt(due_ns) = self.succession { Some(due_ns) } else { None };
        };
        let grace = self.connection_ended_ns.map(|ended_ns| ended_ns + END_GRACE_NS);
        [worker.next_ns(), grace, Some(self.liveness.next_ns())].into_iter().flatten().min()
    }

    /// Its descriptors, for the poller: process, socket, doorbell.
    pub fn watch(&self, poller: &Poller, token: u64) -> std::io::Result<()> {
        let Some(worker) = &self.worker else { return Ok(()) };
        poller.add(worker.pidfd(), token)?;
        poller.add(worker.socket(), token + 1)?;
        worker.with_doorbell(|doorbell| poller.add(doorbell, token + 2)).unwrap_or(Ok(()))
    }

    fn tell(&self, shared: &Shared, event: WorkerEvent) {
        shared.tell(self.lane, self.pid, event);
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
    pub fn look(&mut self, shared: &Arc<Shared>, now_ns: u64) {
        let Some(worker) = self.worker.clone() else {
            return self.look_for_successor(shared, now_ns);
        };
        if worker.next_ns().is_some_and(|next_ns| next_ns <= now_ns) {
            self.hear(shared);
        }
        let link = shared.link(self.lane);
        if link.broken_rule().is_some() {
            worker.kill();
        }
        let ended_ns = self.connection_ended_ns.unwrap_or(u64::MAX);
        if now_ns >= ended_ns.saturating_add(END_GRACE_NS) && worker.exit().is_none() {
            // How it ends will be told: killing it would only hide that. One that was told to end has the time that
            // the stop gives it.
            let is_ending = worker.is_ending();
            self.connection_ended_ns = is_ending.then_some(now_ns);
            if !is_ending && !self.has_left {
                link.die(Cause::Killed(KilledFor::ConnectionLost));
                worker.kill();
            }
        }
        if now_ns >= self.liveness.next_ns() {
            self.judge(shared, &worker, now_ns);
        }
    }

    fn judge(&mut self, shared: &Shared, worker: &Worker, now_ns: u64) {
        self.give_memory_back(shared);
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
            // The kernel's word about it is on its way, and counts.
            Some(Finding::Kill(_)) if worker.exit().is_some() => {}
            Some(Finding::Kill(reason)) => {
                link.die(Cause::Killed(reason));
                worker.kill();
            }
            None => {}
        }
    }

    /// The worker has ended: lane dead → reply ring read to its end → group killed → reaped → request ring closed
    /// → what is still open ends, or goes to the successor.
    /// Whether a SIGKILL that nobody here sent was the kernel's, for want of memory, is asked of `was_oom`.
    pub fn settle_death(&mut self, shared: &Shared, poller: &Poller, mut was_oom: impl FnMut(u64) -> bool) {
        let Some(worker) = self.worker.clone() else { return };
        let Some(exit) = worker.exit() else { return };
        let link = shared.link(self.lane);
        let asked_to = shared.stopping_workers.load(Ordering::SeqCst);
        let now_ns = clock::monotonic_ns();
        let by_kernel = match exit {
            Exit::Code(code) => Cause::Exit(code),
            // Only what nobody here killed can have been killed for that.
            Exit::Signal(SIGKILL) if link.cause().is_none() && !asked_to && was_oom(now_ns) => {
                Cause::OutOfMemory
            }
            Exit::Signal(signal) => Cause::Signal(signal),
        };
        let may_follow = !asked_to && !link.is_final();
        let due_ns = may_follow.then(|| self.lives.after_death(now_ns)).flatten();
        if due_ns.is_none() {
            link.give_up(None);
        }
        let was_born_in_vain = link.cause() == Some(Cause::Stopped);
        link.die(if asked_to { Cause::Stopped } else { by_kernel });
        read_to_the_end(shared, link);
        // Its last words may lie on the doorbell still.
        self.hear(shared);
        worker.kill();
        worker.reap();
        poller.remove(worker.pidfd());
        poller.remove(worker.socket());
        let cause = link.cause().expect("latched above");
        link.end.end_claims();
        if due_ns.is_some() {
            take_back(shared, link);
        }
        end_what_is_open(shared, link, due_ns.is_some(), cause, now_ns);
        let gracefully = asked_to && exit == Exit::Code(0);
        let stop = WorkerStop {
            group: shared.group_name(link.group).to_string(),
            pid: worker.pid(),
            mode: if gracefully { StopMode::Graceful } else { StopMode::Forced },
            cause: by_kernel,
        };
        // A stop may have settled it, because this thread was long away.
        let is_told = !shared.workers.settle(self.lane, &worker, stop);
        if asked_to && !gracefully && !was_born_in_vain && !is_told {
            let overrun = Cause::Killed(KilledFor::StopOverrun);
            let was_executing = link.end.executing().is_some();
            shared.tell_later(Failure::new(shared.group_name(link.group), overrun, was_executing, None));
        }
        if !is_told {
            let event =
                if asked_to { WorkerEvent::Stopped { gracefully } } else { WorkerEvent::Crashed(cause) };
            self.tell(shared, event);
        }
        if may_follow && due_ns.is_none() && self.lives.has_policy() {
            self.tell(shared, WorkerEvent::GivenUp);
        }
        self.worker = None;
        self.connection_ended_ns = None;
        self.succession = due_ns.map_or(Succession::None, Succession::DueAt);
    }

    // ---- between two lives ----

    fn look_for_successor(&mut self, shared: &Arc<Shared>, now_ns: u64) {
        let Succession::DueAt(due_ns) = self.succession else { return };
        if shared.stopping_workers.load(Ordering::SeqCst) {
            return self.give_up(shared, Cause::Stopped);
        }
        if now_ns < due_ns {
            return;
        }
        let seat = shared.lanes[usize::from(self.lane)].seat().expect("the lane of a worker");
        let incarnation = seat.next_incarnation().expect("a final life has no successor");
        self.succession = Succession::Underway;
        revival::begin(shared, self.lane, incarnation, self.capture.take());
    }

    /// A start has come to its end.
    pub fn settle_revival(
        &mut self,
        shared: &Arc<Shared>,
        poller: &Poller,
        token: u64,
        result: Result<Revived, StartError>,
    ) {
        let now_ns = clock::monotonic_ns();
        self.succession = Succession::None;
        let taken_on = result.and_then(|revived| self.take_on(shared, revived, poller, token));
        let (lane, worker) = match taken_on {
            Ok(taken_on) => taken_on,
            Err(refused) => return self.settle_refusal(shared, &refused, now_ns),
        };
        let seat = shared.lanes[usize::from(self.lane)].seat().expect("the lane of a worker");
        let former = seat.link();
        seat.begin_life(lane, true);
        self.liveness = Liveness::new(self.patience, now_ns);
        self.has_left = false;
        shared.workers.lock().living.insert(self.lane, Arc::clone(&worker));
        if shared.stopping_workers.load(Ordering::SeqCst) {
            // It has served nothing, and whoever stops the workers may have found none and be gone.
            seat.link().die(Cause::Stopped);
            return worker.kill();
        }
        self.tell(shared, WorkerEvent::Restarted);
        // Behind a full fence: who looked for room at the former life, or queued for this one, is found.
        fence(Ordering::SeqCst);
        let mut wakes = Wakes::new();
        shared.flush(seat.link(), &mut wakes);
        shared.wake(wakes);
        former.wake_everybody(&shared.correlation);
        shared.room_came_free();
        self.former.push(former.source.incarnation);
        self.give_memory_back(shared);
    }

    /// A successor could not be started: there is another try, or none any more.
    fn settle_refusal(&mut self, shared: &Shared, refused: &StartError, now_ns: u64) {
        if shared.stopping_workers.load(Ordering::SeqCst) {
            return self.give_up(shared, Cause::Stopped);
        }
        // What is refused before a start begins was refused to the first life.
        let never_begun = (StartStep::Spawn, RefusedFor::System { errno: 0 });
        let (step, reason) = refused.refusal().unwrap_or(never_begun);
        self.tell(shared, WorkerEvent::StartRefused { step, reason });
        match self.lives.after_death(now_ns) {
            Some(due_ns) => self.succession = Succession::DueAt(due_ns),
            None => self.give_up(shared, Cause::StartRefused { step, reason }),
        }
    }

    /// Gives back what the lanes of former lives hold, but for those in which somebody holds a reply or a loan.
    fn give_memory_back(&mut self, shared: &Shared) {
        let lane = self.lane;
        self.former
            .retain(|&incarnation| !shared.link_of(Source { lane, incarnation }).end.give_memory_back());
    }

    /// Watches a worker that is ready; one that cannot be watched is ended.
    fn take_on(
        &mut self,
        shared: &Shared,
        revived: Revived,
        poller: &Poller,
        token: u64,
    ) -> Result<(EngineEnd, Arc<Worker>), StartError> {
        let Revived { started, capture } = revived;
        let worker = self.worker.insert(Arc::new(started.worker));
        let worker = Arc::clone(worker);
        let dead = std::mem::replace(&mut self.pid, worker.pid());
        if let Err(error) = self.watch(poller, token) {
            worker.end();
            self.tell(shared, WorkerEvent::Stopped { gracefully: false });
            (self.worker, self.pid) = (None, dead);
            poller.remove(worker.pidfd());
            poller.remove(worker.socket());
            let group = shared.group_name(shared.link(self.lane).group).to_string();
            return Err(StartError::System { group, step: StartStep::Ready, error });
        }
        self.capture = Some(capture);
        Ok((started.lane, worker))
    }

    /// There is to be no successor after all.
    fn give_up(&mut self, shared: &Shared, cause: Cause) {
        self.succession = Succession::None;
        let link = shared.link(self.lane);
        link.give_up(Some(cause));
        fence(Ordering::SeqCst);
        end_what_is_open(shared, link, false, cause, clock::monotonic_ns());
        if cause != Cause::Stopped {
            self.tell(shared, WorkerEvent::GivenUp);
        }
    }
}

/// Ends what a dead worker owes; with a successor, what that is not to have.
fn end_what_is_open(shared: &Shared, link: &Link, has_successor: bool, cause: Cause, now_ns: u64) {
    let open = shared.correlation.end_all_of(link.source, has_successor, cause, now_ns, shared.started());
    shared.after(open);
    shared.purge(link);
    link.wake_everybody(&shared.correlation);
    // What stood in front of the lane may have kept new requests of any group out.
    fence(Ordering::SeqCst);
    shared.room_came_free();
}

/// What the dead worker had not begun, or what may run again, is to be had by its successor.
fn take_back(shared: &Shared, link: &Link) {
    let group = &shared.placement.groups[usize::from(link.group.0)];
    if !group.redispatch_unstarted || link.broken_rule().is_some() {
        return;
    }
    let mut back = Vec::new();
    for (position, envelope, payload) in link.end.unanswered() {
        if link.end.started(position) && !group.idempotent {
            continue;
        }
        let ticket = Ticket(envelope.ticket);
        let Some(root) = shared.correlation.root_key(&envelope) else { continue };
        let Some(branch) = shared.correlation.take_up(root, ticket) else { continue };
        if branch.take_back(link.source) {
            let onward = Onward { source: envelope.source, target: NodeId(envelope.target), key: None };
            back.push(Forward { root, ticket, onward, payload });
        }
    }
    shared.put_back(link, back);
}

/// Every reply that was published before the end is delivered, unless the ring is corrupt.
fn read_to_the_end(shared: &Shared, link: &Link) {
    let now_ns = clock::coarse_ns();
    let mut wakes = Wakes::new();
    // What is behind a frame that breaks a rule ends with the lane, and that rule says why.
    if let Read::Corrupt(rule) = link.end.read_out(|frame| shared.judge(link, frame, now_ns, &mut wakes)) {
        link.die_of(rule);
    }
    shared.wake(wakes);
}
