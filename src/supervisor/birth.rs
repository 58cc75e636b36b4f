//! From nothing to READY, at the engine's side, for any number of workers.
//!
//! Each: segments → socket pair → spawn → limits → bundle and descriptors. Then each: MAPPED → close the reply
//! segment for writers → SEALED. Then each: READY. So the nodes of all workers are built side by side, and
//! none waits for another's. What fails first in this order is named; all that was started is ended in reverse
//! order, each with its group, and reaped.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::error::{StartError, StartStep};
use super::launch::{Launch, refused};
use super::output::{Capture, OutputSink, Speaker, Stream};
use super::worker::Worker;
use crate::base::failure::{Cause, KilledFor};
use crate::base::ids::GroupId;
use crate::base::limits::BUNDLE_BYTES;
use crate::base::waiting::Waiting;
use crate::lane::EngineEnd;
use crate::os::child::{self, Exit, Spawned};
use crate::os::clock;
use crate::os::poll::readable_within;
use crate::os::socket::{self, Received, receive_within};
use crate::plan::error::PlanError;
use crate::plan::placement::{PlacedGroup, Placement};
use crate::shm::segment::{Created, SegmentError};
use crate::wire::bootstrap::{BOOTSTRAP_VERSION, Bundle, BundleGroup, BundleNode, Message, Refusal};
use crate::wire::geometry::Geometry;
use crate::wire::segment::{Side, layout_digest};

/// How long a child that has closed its socket may take to show its exit status.
const EXIT_GRACE_MS: u32 = 1_000;

/// What to start: one process of a group.
pub(crate) struct WorkerSpec<'a> {
    pub group: GroupId,
    /// Which of the group's processes, from 0 on.
    pub process: u16,
    pub placement: &'a Placement,
    pub geometry: Geometry,
    pub waiting: Waiting,
    /// For all groups; the group's own wins.
    pub pin: Option<u16>,
    pub incarnation: u64,
    /// Variables for all groups, beside the inherited few; the group's own win.
    pub env: &'a [(OsString, OsString)],
    /// From the start of the first worker until the last is ready.
    pub start_timeout: Duration,
    /// Rung by the worker for an armed reply.
    pub bell: BorrowedFd<'a>,
    /// Takes what it prints.
    pub sink: Option<OutputSink>,
}

impl WorkerSpec<'_> {
    fn placed(&self) -> &PlacedGroup {
        &self.placement.groups[usize::from(self.group.0)]
    }

    fn system(&self, step: StartStep) -> impl FnOnce(io::Error) -> StartError {
        let group = self.placed().name.clone();
        move |error| StartError::System { group, step, error }
    }

    fn segment(&self, step: StartStep) -> impl FnOnce(SegmentError) -> StartError {
        let group = self.placed().name.clone();
        move |error| StartError::Segment { group, step, error }
    }
}

/// A worker that is ready, and its lane.
pub(crate) struct Started {
    pub worker: Worker,
    pub lane: EngineEnd,
}

/// Starts one worker for each of `specs`, in their order, and waits until all are ready.
pub(crate) fn start(specs: &[WorkerSpec<'_>]) -> Result<(Vec<Started>, Capture), StartError> {
    let begun_ns = clock::monotonic_ns();
    let prepared = specs.iter().map(Prepared::new).collect::<Result<Vec<_>, _>>()?;
    // From the first line on: what a worker prints while it builds its nodes must not hold it up, and if it
    // refuses to begin, it prints why. Declared before `births`, so that it is drained after the end of those.
    let capture = Capture::start().map_err(|error| match specs.first() {
        Some(spec) => spec.system(StartStep::Spawn)(error),
        None => StartError::System { group: "?".into(), step: StartStep::Spawn, error },
    })?;
    let mut births = Births(Vec::with_capacity(specs.len()));
    for (spec, prepared) in specs.iter().zip(prepared) {
        births.0.push(Unborn::spawn(spec, prepared, &capture, begun_ns)?);
    }
    births.0.iter_mut().try_for_each(Unborn::seal)?;
    births.0.iter().try_for_each(|unborn| unborn.expect(&Message::Ready, StartStep::Ready))?;
    let started = std::mem::take(&mut births.0).into_iter().map(Unborn::born).collect();
    Ok((started, capture))
}

/// What one worker needs, as far as it can be refused before any process is started.
struct Prepared {
    launch: Launch,
    bundle: Vec<u8>,
}

impl Prepared {
    fn new(spec: &WorkerSpec<'_>) -> Result<Self, StartError> {
        let bundle = Message::Bundle(Box::new(bundle(spec))).encode();
        if bundle.len() > BUNDLE_BYTES {
            return Err(PlanError::TooLarge { bytes: bundle.len(), limit: BUNDLE_BYTES }.into());
        }
        Ok(Self { launch: Launch::new(spec.placed(), spec.env)?, bundle })
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn bundle(spec: &WorkerSpec<'_>) -> Bundle {
    let nodes = spec.placement.nodes.iter().map(|node| BundleNode {
        name: node.name.clone(),
        group: node.group,
        edges: match node.group == spec.group {
            true => node.edges.iter().map(|edge| (edge.label.clone(), edge.to)).collect(),
            false => Vec::new(),
        },
    });
    let groups = spec.placement.groups.iter().map(|group| BundleGroup {
        name: group.name.clone(),
        keyed: group.keyed,
        local: group.local,
    });
    Bundle {
        incarnation: spec.incarnation,
        layout_digest: layout_digest(),
        geometry: spec.geometry,
        waiting: spec.waiting,
        pin: spec.placed().process.pin.map(|processor| processor as u16).or(spec.pin),
        group: spec.group,
        groups: groups.collect(),
        nodes: nodes.collect(),
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
    /// Request and reply; `None` once they are the lane's.
    segments: Option<(Created, Created)>,
    lane: Option<EngineEnd>,
    until_ns: u64,
}

impl<'a> Unborn<'a> {
    /// Starts the process and hands it all that it needs.
    fn spawn(
        spec: &'a WorkerSpec<'a>,
        prepared: Prepared,
        capture: &Capture,
        begun_ns: u64,
    ) -> Result<Self, StartError> {
        let create = |side| {
            let created = Created::new(side, &spec.geometry, spec.incarnation);
            created.map_err(spec.segment(StartStep::Spawn))
        };
        let (request, reply) = (create(Side::Request)?, create(Side::Reply)?);
        let system = |step| spec.system(step);
        let (ours, theirs) = socket::pair().map_err(system(StartStep::Spawn))?;
        socket::set_send_buffer(ours.as_fd(), BUNDLE_BYTES * 2).map_err(system(StartStep::Spawn))?;
        let Spawned { pid, pidfd, stdout, stderr } = prepared.launch.spawn(theirs)?;
        // Whatever fails from here on ends it.
        let unborn = Self {
            spec,
            worker: Some(Worker::new(pid, pidfd, ours)),
            segments: Some((request, reply)),
            lane: None,
            until_ns: begun_ns.saturating_add(ns(spec.start_timeout)),
        };
        let group = spec.placed();
        let speaker = Speaker {
            group: group.name.as_str().into(),
            process: spec.process,
            pid,
            sink: spec.sink.clone(),
        };
        capture.add(&speaker, Stream::Stdout, stdout).map_err(system(StartStep::Spawn))?;
        capture.add(&speaker, Stream::Stderr, stderr).map_err(system(StartStep::Spawn))?;
        // Before the bundle, without which it builds nothing. It is not reaped, so the number is its own.
        for &(resource, value) in &group.process.limits {
            let stated = format!("{resource:?} {value}");
            child::limit(pid, resource, value).map_err(refused(&group.name, "limit", stated))?;
        }
        let (request, reply) = unborn.segments.as_ref().expect("just put there");
        let fds = [request.fd(), reply.fd(), spec.bell];
        unborn.say(&prepared.bundle, &fds)?;
        Ok(unborn)
    }

    /// Waits until it has mapped its segments, and takes the right to do so from everybody else.
    fn seal(&mut self) -> Result<(), StartError> {
        self.expect(&Message::Mapped, StartStep::Mapped)?;
        let (request, reply) = self.segments.take().expect("sealed once");
        reply.close_for_writing().map_err(self.spec.segment(StartStep::Mapped))?;
        self.say(&Message::Sealed.encode(), &[])?;
        self.lane = Some(EngineEnd::new(request.into_view(), reply.into_view(), self.spec.geometry));
        Ok(())
    }

    /// It is ready.
    fn born(mut self) -> Started {
        let (Some(worker), Some(lane)) = (self.worker.take(), self.lane.take()) else {
            unreachable!("it is born once, after it was sealed")
        };
        Started { worker, lane }
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

    /// Waits for one message.
    fn expect(&self, expected: &Message, step: StartStep) -> Result<(), StartError> {
        let group = self.spec.placed().name.clone();
        let left_ms = self.until_ns.saturating_sub(clock::monotonic_ns()).div_ceil(1_000_000);
        let mut buffer = [0; 64];
        match receive_within(self.socket(), &mut buffer, 0, u32::try_from(left_ms).unwrap_or(u32::MAX)) {
            Ok(Received::Message { bytes, .. }) => match Message::decode(&buffer[..bytes]) {
                Ok(message) if message == *expected => Ok(()),
                Ok(Message::Refused(refusal)) => {
                    // It prints why and ends by itself.
                    let _ = readable_within(self.worker().pidfd(), Some(EXIT_GRACE_MS));
                    Err(StartError::Refused { group, reason: self.reason(refusal) })
                }
                _ => Err(StartError::Refused { group, reason: "it said something unexpected".into() }),
            },
            Ok(Received::End) => Err(StartError::Died { group, step, cause: self.cause() }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(StartError::Timeout { group, step, timeout: self.spec.start_timeout })
            }
            Err(error) => Err(StartError::System { group, step, error }),
        }
    }

    fn reason(&self, refusal: Refusal) -> String {
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
        let _ = readable_within(self.worker().pidfd(), Some(EXIT_GRACE_MS));
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
            worker.kill();
            let _ = readable_within(worker.pidfd(), None);
            worker.reap();
        }
    }
}
