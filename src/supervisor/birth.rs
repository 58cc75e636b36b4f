//! From nothing to READY, at the engine's side, for any number of workers.
//!
//! Each: secrets, listener, segments → socket pair → spawn → limits → bundle and descriptors. Then each: MAPPED →
//! close the reply segment for writers → SEALED → the handshake on the doorbell. Then all: READY, and when the
//! last has said so, GO. So the nodes of all workers are built side by side, and none waits for another's. All
//! that was started is ended in reverse order if one fails, each with its group, and reaped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::error::StartError;
use super::event::WorkerEvent;
use super::launch::refused;
use super::output::{Capture, Speaker, Stream};
use super::spec::{Prepared, WorkerSpec, datagram};
use super::start_time::{LOOK_MS, StartTime};
use super::worker::Worker;
use crate::auth::Credentials;
use crate::base::clock::ns;
use crate::base::failure::{Cause, KilledFor};
use crate::base::ids::NodeId;
use crate::base::limits::{BUNDLE_BYTES, HANDSHAKE_NS};
use crate::base::refusal::{RefusedFor, StartStep};
use crate::doorbell::{Connection, EngineSession, EngineTerms, Listener, Reject, Timing, Turn};
use crate::lane::EngineEnd;
use crate::os::child::{self, Exit, Spawned};
use crate::os::owner::Owner;
use crate::os::poll::{Poller, readable_within};
use crate::os::socket::{self, Received, receive_within};
use crate::os::{clock, random};
use crate::shm::segment::Created;
use crate::wire::bootstrap::{BOOTSTRAP_VERSION, Message, Refusal};
use crate::wire::segment::{Side, layout_digest};

/// How long a child that has closed its socket may take to show its exit status, and one that refuses to print why.
const EXIT_GRACE_MS: u32 = 10_000;
/// How long one that went silent may take to show that it has died.
const NOT_THERE_MS: u32 = 200;
/// How often a handshake looks whether the child still lives.
const HANDSHAKE_LOOK_MS: u32 = 20;
/// Many times what a handshake takes. Whoever has had less of a processor was kept from it.
const HANDSHAKE_WORK_NS: u64 = 100_000_000;

/// A worker that is ready, and its lane.
pub(crate) struct Started {
    pub worker: Worker,
    pub lane: EngineEnd,
}

/// Starts one worker for each of `specs`, in their order, and waits until all are ready.
pub(crate) fn start(specs: &[WorkerSpec<'_>]) -> Result<(Vec<Started>, Capture), StartError> {
    let timeout_ns = specs.first().map_or(0, |spec| ns(spec.start_timeout));
    let time = StartTime::new(clock::monotonic_ns(), timeout_ns);
    let prepared = specs.iter().map(Prepared::new).collect::<Result<Vec<_>, _>>()?;
    // From the first line on: what a worker prints while it builds its nodes must not hold it up, and if it
    // refuses to begin, it prints why. Declared before `births`, so that it is drained after the end of those.
    let owner = specs.first().map_or_else(Owner::new, |spec| spec.owner);
    let capture = Capture::start(owner).map_err(|error| match specs.first() {
        Some(spec) => spec.system(StartStep::Spawn)(error),
        None => StartError::System { group: "?".into(), step: StartStep::Spawn, error },
    })?;
    let mut births = Births(Vec::with_capacity(specs.len()));
    for (spec, prepared) in specs.iter().zip(prepared) {
        births.0.push(Unborn::spawn(spec, prepared, &capture, &time)?);
    }
    births.0.iter_mut().try_for_each(Unborn::seal)?;
    all_ready(&mut births.0, &time)?;
    let started = std::mem::take(&mut births.0).into_iter().map(Unborn::born).collect();
    Ok((started, capture))
}

/// Waits until all have said READY. What any of them says meanwhile is heard: one that takes long to build its
/// nodes must not leave another's messages lying until they are too old.
fn all_ready(births: &mut [Unborn<'_>], time: &StartTime) -> Result<(), StartError> {
    let Some(first) = births.first() else { return Ok(()) };
    let system = |error| first.spec.system(StartStep::Ready)(error);
    let poller = Poller::new().map_err(system)?;
    for (token, unborn) in births.iter().enumerate() {
        let connection = unborn.connection.as_ref().expect("shaken hands");
        poller.add(connection.as_fd(), token as u64).map_err(unborn.spec.system(StartStep::Ready))?;
        poller.add(unborn.socket(), token as u64).map_err(unborn.spec.system(StartStep::Ready))?;
        poller.add(unborn.worker().pidfd(), token as u64).map_err(unborn.spec.system(StartStep::Ready))?;
    }
    let mut tokens = Vec::new();
    loop {
        births.iter_mut().try_for_each(Unborn::turn)?;
        let Some(awaited) = births.iter_mut().position(|unborn| !unborn.is_ready()) else { return Ok(()) };
        let awaited = &births[awaited];
        let now_ns = clock::monotonic_ns();
        if time.is_over(now_ns) || awaited.spec.is_cancelled() {
            return Err(awaited.late(StartStep::Ready));
        }
        let next_ns = births.iter().filter_map(|unborn| unborn.connection.as_ref()?.next_ns()).min();
        let look_ns = now_ns + u64::from(LOOK_MS) * 1_000_000;
        let until_ns = next_ns.unwrap_or(u64::MAX).min(time.until_ns(now_ns)).min(look_ns);
        poller.wait(&mut tokens, Some(until_ns)).map_err(awaited.spec.system(StartStep::Ready))?;
    }
}

/// The workers that were started; if they are not taken, they are ended in reverse order.
struct Births<'a>(Vec<Unborn<'a>>);

impl Drop for Births<'_> {
    fn drop(&mut self) {
        while let Some(unborn) = self.0.pop() {
            drop(unborn);
        }
    }
}

/// A worker that has not said READY: ended and reaped if it never does.
struct Unborn<'a> {
    spec: &'a WorkerSpec<'a>,
    /// `None` once it is born.
    worker: Option<Worker>,
    /// Where it is to call; closed after the handshake.
    listener: Listener,
    connection: Option<Connection<EngineSession>>,
    /// Request and reply; `None` once they are the lane's.
    segments: Option<(Created, Created)>,
    lane: Option<EngineEnd>,
    /// That of its start.
    time: &'a StartTime,
}

impl<'a> Unborn<'a> {
    /// Starts the process and hands it all that it needs.
    fn spawn(
        spec: &'a WorkerSpec<'a>,
        prepared: Prepared,
        capture: &Capture,
        time: &'a StartTime,
    ) -> Result<Self, StartError> {
        // What each of many takes is no pause.
        time.missed_ns(clock::monotonic_ns());
        let create = |side| {
            let created = Created::new(side, &spec.geometry, spec.incarnation);
            created.map_err(spec.segment(StartStep::Spawn))
        };
        let (request, reply) = (create(Side::Request)?, create(Side::Reply)?);
        let system = |step| spec.system(step);
        let credentials = match spec.secret {
            Some(secret) => Credentials::with_static(secret, random::fill),
            None => Credentials::generate(random::fill),
        };
        let listener = credentials.and_then(|credentials| Listener::open(spec.doorbell, credentials));
        let listener = listener.map_err(system(StartStep::Spawn))?;
        let (ours, theirs) = socket::pair().map_err(system(StartStep::Spawn))?;
        socket::set_send_buffer(ours.as_fd(), BUNDLE_BYTES * 2).map_err(system(StartStep::Spawn))?;
        let datagram = datagram(prepared.bundle, &listener);
        let Spawned { pid, pidfd, stdout, stderr } = prepared.launch.spawn(theirs)?;
        // Whatever fails from here on ends it.
        let unborn = Self {
            spec,
            worker: Some(Worker::new(pid, pidfd, ours)),
            listener,
            connection: None,
            segments: Some((request, reply)),
            lane: None,
            time,
        };
        spec.tell(pid, WorkerEvent::Started);
        let group = spec.placed();
        let speaker = Speaker {
            group: group.name.as_str().into(),
            process: spec.process,
            pid,
            sink: spec.sink.clone(),
            tail: unborn.worker().tail().clone(),
        };
        capture.add(&speaker, Stream::Stdout, stdout).map_err(system(StartStep::Spawn))?;
        capture.add(&speaker, Stream::Stderr, stderr).map_err(system(StartStep::Spawn))?;
        // Before the bundle, without which it builds nothing.
        unborn.limit()?;
        let (request, reply) = unborn.segments.as_ref().expect("just put there");
        let fds = [request.fd(), reply.fd(), spec.bell];
        unborn.say(&datagram, &fds)?;
        Ok(unborn)
    }

    /// Bounds what it may use, as its group says.
    fn limit(&self) -> Result<(), StartError> {
        let group = self.spec.placed();
        // It is not reaped, so the number is its own.
        let pid = self.worker().pid();
        for &(resource, value) in &group.process.limits {
            let stated = format!("{resource:?} {value}");
            child::limit(pid, resource, value).map_err(refused(&group.name, "limit", stated))?;
        }
        Ok(())
    }

    /// Waits until it has mapped its segments, takes the right to do so from everybody else, and awaits its call.
    fn seal(&mut self) -> Result<(), StartError> {
        let port = self.mapped()?;
        // Once more: a program that is being replaced by another one, as every child is at first, ends that with the
        // stack limit that it began it with.
        self.limit()?;
        let terms = EngineTerms {
            life: self.spec.life(),
            pid: self.worker().pid() as u32,
            layout_digest: layout_digest(),
            timing: Timing::default(),
        };
        let announced_ns = clock::monotonic_ns();
        let missed_ns = self.time.missed_ns(announced_ns);
        self.listener.announce(port, terms, announced_ns);
        let (request, reply) = self.segments.take().expect("sealed once");
        reply.close_for_writing().map_err(self.spec.segment(StartStep::Mapped))?;
        self.say(&Message::Sealed.encode(), &[])?;
        self.lane = Some(EngineEnd::new(request.into_view(), reply.into_view(), self.spec.geometry));
        self.shake_hands(missed_ns)
    }

    /// `missed_ns` as it was when its place was announced.
    fn shake_hands(&mut self, mut missed_ns: u64) -> Result<(), StartError> {
        let pid = self.worker().pid();
        let processor_ns = child::processor_ns(pid);
        loop {
            let now_ns = clock::monotonic_ns();
            // Its time is for what it does; in what the machine withholds from it or from us it can do nothing.
            let newly_missed_ns = self.time.missed_ns(now_ns) - missed_ns;
            missed_ns += newly_missed_ns;
            if newly_missed_ns > 0 {
                self.listener.forgive(newly_missed_ns, now_ns + HANDSHAKE_NS);
            } else if self.listener.next_ns().is_some_and(|until_ns| until_ns <= now_ns)
                && (child::wants_processor(pid) || child::is_stopped(pid))
                && child::processor_ns(pid)
                    .zip(processor_ns)
                    .is_some_and(|(now, then)| now < then + HANDSHAKE_WORK_NS)
            {
                self.listener.put_off(now_ns + u64::from(HANDSHAKE_LOOK_MS) * 1_000_000);
            }
            let turn = self.listener.turn(now_ns);
            match turn.map_err(self.spec.system(StartStep::Handshake))? {
                Turn::Done(connection) => {
                    self.connection = Some(*connection);
                    return Ok(());
                }
                Turn::Late => return Err(self.not_there(StartStep::Handshake)),
                Turn::Waiting => {}
            }
            // The listener closes by itself when the time is over.
            let now_ns = clock::monotonic_ns();
            let left_ns =
                self.listener.next_ns().unwrap_or(0).min(self.time.until_ns(now_ns)).saturating_sub(now_ns);
            let left_ms = u32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX);
            let died = readable_within(self.worker().pidfd(), Some(0)).unwrap_or(false);
            let heard = readable_within(self.listener.as_fd(), Some(left_ms.min(HANDSHAKE_LOOK_MS)));
            heard.map_err(self.spec.system(StartStep::Handshake))?;
            if died || left_ns == 0 && self.is_over() {
                return Err(self.not_there(StartStep::Handshake));
            }
        }
    }

    /// Hears what it says on the doorbell, and whether it refuses.
    fn turn(&mut self) -> Result<(), StartError> {
        let connection = self.connection.as_mut().expect("shaken hands");
        if connection.turn(clock::monotonic_ns(), |_| {}).is_err() {
            return Err(self.refusal().unwrap_or_else(|| self.not_there(StartStep::Ready)));
        }
        // What it said comes first. Its connections need not end with it: a child of its own may hold them.
        match self.refusal() {
            None if self.worker().exit().is_some() => Err(self.not_there(StartStep::Ready)),
            refusal => refusal.map_or(Ok(()), Err),
        }
    }

    fn is_ready(&mut self) -> bool {
        self.connection.as_mut().is_some_and(|connection| connection.session().is_ready())
    }

    /// What it says on the bootstrap socket, where nothing but a refusal can come now.
    fn refusal(&self) -> Option<StartError> {
        let readable = readable_within(self.socket(), Some(0)).unwrap_or(true);
        readable.then(|| self.hear(StartStep::Ready, |_| None::<()>).err()).flatten()
    }

    /// It is ready.
    fn born(mut self) -> Started {
        let (Some(worker), Some(lane), Some(mut connection)) =
            (self.worker.take(), self.lane.take(), self.connection.take())
        else {
            unreachable!("it is born once, after it was sealed")
        };
        connection.session().go();
        self.tell_of_rejects(worker.pid());
        self.spec.tell(worker.pid(), WorkerEvent::Ready);
        worker.take_over(connection, *self.listener.rejects(), clock::monotonic_ns());
        Started { worker, lane }
    }

    /// Tells what was refused where it was to call, once for each reason: however many strangers come, that is one thing
    /// to know. How many there were is counted.
    fn tell_of_rejects(&self, pid: i32) {
        let rejects = self.listener.rejects();
        for reason in Reject::ALL.into_iter().filter(|reason| rejects.of(*reason) > 0) {
            self.spec.tell(pid, WorkerEvent::DoorbellReject(reason.name()));
        }
    }

    /// Whether it comes too late.
    fn is_over(&self) -> bool {
        self.time.is_over(clock::monotonic_ns())
    }

    fn worker(&self) -> &Worker {
        self.worker.as_ref().expect("taken only when it is ready")
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.worker().socket()
    }

    fn say(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), StartError> {
        match socket::send(self.socket(), message, fds) {
            // It is gone, or has closed its socket: waiting for its answer will tell how it ended.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            sent => sent.map_err(self.spec.system(StartStep::Bundle)),
        }
    }

    /// Waits for MAPPED: the port that it will call from.
    fn mapped(&mut self) -> Result<u16, StartError> {
        // Until it is announced, whoever calls is a stranger, and is sent away so that it finds a place.
        while !readable_within(self.socket(), Some(HANDSHAKE_LOOK_MS))
            .map_err(self.spec.system(StartStep::Mapped))?
            && !self.is_over()
            && !self.spec.is_cancelled()
        {
            let turn = self.listener.turn(clock::monotonic_ns());
            turn.map_err(self.spec.system(StartStep::Mapped))?;
        }
        self.hear(StartStep::Mapped, |message| match message {
            Message::Mapped(port) => Some(*port),
            _ => None,
        })
    }

    /// Waits for one message that is `expected`.
    fn hear<T>(
        &self,
        step: StartStep,
        expected: impl FnOnce(&Message) -> Option<T>,
    ) -> Result<T, StartError> {
        let group = self.spec.placed().name.clone();
        let mut buffer = [0; 64];
        let received = loop {
            let now_ns = clock::monotonic_ns();
            let left_ms = self.time.until_ns(now_ns).saturating_sub(now_ns).div_ceil(1_000_000);
            let look_ms = u32::try_from(left_ms).unwrap_or(u32::MAX).min(LOOK_MS);
            match receive_within(self.socket(), &mut buffer, 0, look_ms) {
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut
                        && !self.is_over()
                        && !self.spec.is_cancelled() => {}
                received => break received,
            }
        };
        match received {
            Ok(Received::Message { bytes, .. }) => match Message::decode(&buffer[..bytes]) {
                Ok(Message::Refused(refusal)) => {
                    // It prints why and ends by itself.
                    let _ = readable_within(self.worker().pidfd(), Some(EXIT_GRACE_MS));
                    let (reason, text) = (Self::reason(refusal), self.text(refusal));
                    Err(StartError::Refused { group, step, reason, text })
                }
                message => {
                    let message = message.ok().as_ref().and_then(expected);
                    let text = "it said something unexpected".into();
                    message.ok_or(StartError::Refused { group, step, reason: RefusedFor::NoAnswer, text })
                }
            },
            Ok(Received::End) => Err(StartError::Died { group, step, cause: self.cause() }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(self.late(step)),
            Err(error) => Err(StartError::System { group, step, error }),
        }
    }

    fn late(&self, step: StartStep) -> StartError {
        StartError::Timeout { group: self.spec.placed().name.clone(), step, timeout: self.spec.start_timeout }
    }

    /// It cannot be talked to any more: it has died, or has not done its part.
    fn not_there(&self, step: StartStep) -> StartError {
        let group = self.spec.placed().name.clone();
        if self.dies_within(NOT_THERE_MS) {
            return StartError::Died { group, step, cause: self.cause() };
        }
        if self.is_over() {
            return self.late(step);
        }
        let rejects = self.listener.rejects().total();
        let text = format!("it did not do its part at step {} ({rejects} messages rejected)", step.name());
        StartError::Refused { group, step, reason: RefusedFor::NoAnswer, text }
    }

    /// Waits for its death. One that has begun to end is given more time.
    fn dies_within(&self, ms: u32) -> bool {
        let until_ns = clock::monotonic_ns() + u64::from(ms) * 1_000_000;
        while !readable_within(self.worker().pidfd(), Some(LOOK_MS)).unwrap_or(false) {
            let is_over = self.is_over();
            if clock::monotonic_ns() >= until_ns && (is_over || !self.worker().is_ending()) {
                return false;
            }
        }
        true
    }

    fn reason(refusal: Refusal) -> RefusedFor {
        match refusal {
            Refusal::Bundle => RefusedFor::Bundle,
            Refusal::Version(worker) => RefusedFor::Version { engine: BOOTSTRAP_VERSION, worker },
            Refusal::Layout => RefusedFor::Layout,
            Refusal::Segment => RefusedFor::Segment,
            Refusal::NotRegistered(node) => RefusedFor::NotRegistered(NodeId(node)),
            Refusal::NotBuilt(node) => RefusedFor::NotBuilt(NodeId(node)),
        }
    }

    fn text(&self, refusal: Refusal) -> String {
        let node =
            |number: u16| self.spec.placement.nodes.get(usize::from(number)).map_or("?", |node| &node.name);
        match refusal {
            Refusal::Bundle => "the start bundle is malformed".into(),
            Refusal::Version(theirs) => {
                format!("the engine's bootstrap version is {BOOTSTRAP_VERSION}, the worker's is {theirs}")
            }
            Refusal::Layout => "engine and worker were built with different layouts".into(),
            Refusal::Segment => "a segment was not as announced".into(),
            Refusal::NotRegistered(number) => {
                format!("node '{}' is not registered in its executable", node(number))
            }
            Refusal::NotBuilt(number) => format!("node '{}' could not be built", node(number)),
        }
    }

    /// How it ended, after its socket has.
    fn cause(&self) -> Cause {
        self.dies_within(EXIT_GRACE_MS);
        match self.worker().exit() {
            Some(Exit::Code(code)) => Cause::Exit(code),
            Some(Exit::Signal(signal)) => Cause::Signal(signal),
            None => Cause::Killed(KilledFor::ConnectionLost),
        }
    }
}

impl Drop for Unborn<'_> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end();
            self.tell_of_rejects(worker.pid());
            self.spec.tell(worker.pid(), WorkerEvent::Stopped { gracefully: false });
        }
    }
}
