//! From nothing to READY, at the engine's side.
//!
//! segments → socket pair → spawn → pidfd → bundle and descriptors → MAPPED → close the reply segment for
//! writers → SEALED → READY. A step that fails ends the child with its group, reaps it, and is named.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::output::{Capture, OutputSink, Stream};
use super::spawner::on_spawner;
use super::worker::Worker;
use crate::base::failure::Cause;
use crate::base::ids::GroupId;
use crate::base::limits::BUNDLE_BYTES;
use crate::base::waiting::Waiting;
use crate::lane::EngineEnd;
use crate::node::BuildError;
use crate::os::child::{self, Exit, Spawn, Spawned};
use crate::os::clock;
use crate::os::poll::readable_within;
use crate::os::socket::{self, Received, receive_within};
use crate::plan::budget::BudgetError;
use crate::plan::error::PlanError;
use crate::plan::placement::Placement;
use crate::plan::settings::SettingsError;
use crate::shm::segment::{Created, SegmentError};
use crate::wire::bootstrap::{BOOTSTRAP_VERSION, Bundle, BundleGroup, BundleNode, Message, Refusal};
use crate::wire::geometry::Geometry;
use crate::wire::segment::{Side, layout_digest};
use crate::worker::MARKER;

/// What a worker's environment keeps of the engine's; everything else must be stated.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "LLVM_PROFILE_FILE",
];

/// How long a child that has closed its socket may take to show its exit status.
const EXIT_GRACE_MS: u32 = 1_000;

/// Which step of a start failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StartStep {
    /// Starting the process.
    Spawn,
    /// Handing over bundle and descriptors.
    Bundle,
    /// Waiting until the worker had mapped its segments.
    Mapped,
    /// Waiting until the worker had built its nodes.
    Ready,
}

impl StartStep {
    fn name(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::Bundle => "bundle",
            Self::Mapped => "mapped",
            Self::Ready => "ready",
        }
    }
}

/// Why an engine does not start. Everything that was started has been ended again.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting breaks its rule.
    #[error("setting {0}")]
    Settings(#[from] SettingsError),
    /// The plan is not sound.
    #[error("plan: {0}")]
    Plan(#[from] PlanError),
    /// Not enough memory or descriptors.
    #[error("budget: {0}")]
    Budget(#[from] BudgetError),
    /// This process is itself a worker.
    #[error("an engine cannot be started inside a worker; call serve_if_worker first in main")]
    InsideWorker,
    /// A segment could not be made.
    #[error("{0}")]
    Segment(#[from] SegmentError),
    /// A node's state could not be built (memory profile).
    #[error("node '{node}' cannot be built: {error}")]
    NotBuilt {
        /// The node.
        node: String,
        /// What its factory said.
        error: BuildError,
    },
    /// The operating system refused.
    #[error("start refused at step {} for group '{group}': {error}", step.name())]
    System {
        /// The group whose worker was being started.
        group: String,
        /// The step.
        step: StartStep,
        /// What the system said.
        error: io::Error,
    },
    /// The worker refused to begin.
    #[error("start refused by the worker of group '{group}': {reason}")]
    Refused {
        /// The group.
        group: String,
        /// What the worker objects to.
        reason: String,
    },
    /// The worker ended before it was ready.
    #[error("the worker of group '{group}' ended at step {}: {cause:?}", step.name())]
    Died {
        /// The group.
        group: String,
        /// The step.
        step: StartStep,
        /// How it ended.
        cause: Cause,
    },
    /// The worker was not ready in time.
    #[error("the worker of group '{group}' did not reach step {} within start_timeout = {timeout:?}", step.name())]
    Timeout {
        /// The group.
        group: String,
        /// The step that was waited for.
        step: StartStep,
        /// The setting.
        timeout: Duration,
    },
}

/// What to start.
pub(crate) struct WorkerSpec<'a> {
    pub group: GroupId,
    pub placement: &'a Placement,
    pub geometry: Geometry,
    pub waiting: Waiting,
    pub pin: Option<u16>,
    pub incarnation: u64,
    /// Variables of the group, beside the inherited few.
    pub env: &'a [(OsString, OsString)],
    pub start_timeout: Duration,
    /// Rung by the worker for an armed reply.
    pub bell: BorrowedFd<'a>,
    /// Takes what it prints.
    pub sink: Option<OutputSink>,
}

/// A worker that is ready, its lane, and who drains its output.
pub(crate) struct Started {
    pub worker: Worker,
    pub lane: EngineEnd,
    pub capture: Capture,
}

/// Starts one worker and waits until it is ready.
pub(crate) fn start(spec: &WorkerSpec<'_>) -> Result<Started, StartError> {
    let group: Arc<str> = spec.placement.group_name(spec.group).into();
    let request = Created::new(Side::Request, &spec.geometry, spec.incarnation)?;
    let reply = Created::new(Side::Reply, &spec.geometry, spec.incarnation)?;
    let bundle = Message::Bundle(Box::new(bundle(spec))).encode();
    if bundle.len() > BUNDLE_BYTES {
        return Err(PlanError::TooLarge { bytes: bundle.len(), limit: BUNDLE_BYTES }.into());
    }
    let system = |step| {
        let group = group.to_string();
        move |error| StartError::System { group, step, error }
    };
    let (ours, theirs) = socket::pair().map_err(system(StartStep::Spawn))?;
    socket::set_send_buffer(ours.as_fd(), BUNDLE_BYTES * 2).map_err(system(StartStep::Spawn))?;
    let env = environment(spec.env);
    let spawned = on_spawner(move || {
        child::spawn(Spawn { program: child::exec_path(), args: &[], env: &env, stdin: theirs })
    })
    .map_err(system(StartStep::Spawn))?;
    let Spawned { pid, pidfd, stdout, stderr } = spawned;
    let pipes = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    let pipes = pipes.map(|(stream, fd)| (Arc::clone(&group), pid, stream, fd));
    // From the first line on: what a worker prints while it builds its nodes must not hold it up, and if it
    // refuses to begin, it prints why. Declared before `unborn`, so that it is drained after the end of that.
    let capture;
    let mut unborn = Unborn {
        worker: Some(Worker::new(pid, pidfd, ours)),
        group: &group,
        placement: spec.placement,
        until_ns: clock::monotonic_ns().saturating_add(ns(spec.start_timeout)),
        timeout: spec.start_timeout,
    };
    capture = Capture::start(pipes.into(), spec.sink.clone()).map_err(system(StartStep::Spawn))?;
    let fds = [request.fd(), reply.fd(), spec.bell];
    socket::send(unborn.socket(), &bundle, &fds).map_err(system(StartStep::Bundle))?;
    unborn.expect(&Message::Mapped, StartStep::Mapped)?;
    reply.close_for_writing()?;
    socket::send(unborn.socket(), &Message::Sealed.encode(), &[]).map_err(system(StartStep::Bundle))?;
    unborn.expect(&Message::Ready, StartStep::Ready)?;
    let worker = unborn.worker.take().expect("taken once");
    let lane = EngineEnd::new(request.into_view(), reply.into_view(), spec.geometry);
    Ok(Started { worker, lane, capture })
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn environment(stated: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let inherited = INHERITED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    let marker = (OsString::from(MARKER), OsString::from("1"));
    inherited.chain(stated.iter().cloned()).chain([marker]).collect()
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
        pin: spec.pin,
        group: spec.group,
        groups: groups.collect(),
        nodes: nodes.collect(),
    }
}

/// A worker that has not said READY: ended and reaped if it never does.
struct Unborn<'a> {
    worker: Option<Worker>,
    group: &'a str,
    placement: &'a Placement,
    until_ns: u64,
    timeout: Duration,
}

impl Unborn<'_> {
    fn worker(&self) -> &Worker {
        self.worker.as_ref().expect("taken only when it is ready")
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.worker().socket()
    }

    /// Waits for one message.
    fn expect(&self, expected: &Message, step: StartStep) -> Result<(), StartError> {
        let group = self.group.to_owned();
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
                Err(StartError::Timeout { group, step, timeout: self.timeout })
            }
            Err(error) => Err(StartError::System { group, step, error }),
        }
    }

    fn reason(&self, refusal: Refusal) -> String {
        let node = |number: u16| self.placement.nodes.get(usize::from(number)).map_or("?", |node| &node.name);
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
            None => Cause::Killed(crate::base::failure::KilledFor::ConnectionLost),
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
