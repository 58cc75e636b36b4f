//! What a worker is started with, and what it is told of that.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use zeroize::Zeroizing;

use super::error::StartError;
use super::event::{Telling, WorkerEvent, WorkerNotice};
use super::launch::Launch;
use super::output::OutputSink;
use crate::auth::{CREDENTIALS_BYTES, Life, Secret};
use crate::base::ids::GroupId;
use crate::base::limits::BUNDLE_BYTES;
use crate::base::refusal::StartStep;
use crate::base::waiting::Waiting;
use crate::doorbell::Listener;
use crate::os::clock;
use crate::os::owner::Owner;
use crate::plan::error::PlanError;
use crate::plan::loopback::Loopback;
use crate::plan::placement::{PlacedGroup, Placement};
use crate::shm::segment::SegmentError;
use crate::wire::bootstrap::{Bundle, BundleGroup, BundleNode, Message};
use crate::wire::geometry::Geometry;
use crate::wire::segment::layout_digest;

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
    /// Its number in the plan: that of its lane.
    pub worker: u16,
    pub incarnation: u64,
    /// The engine that starts it.
    pub owner: Owner,
    /// Where its listener is opened.
    pub doorbell: Loopback,
    /// For development: in place of random bytes.
    pub secret: Option<&'a Secret>,
    /// How long a node may go on after STOP, in milliseconds.
    pub stop_grace_ms: u32,
    /// Variables for all groups, beside the inherited few; the group's own win.
    pub env: &'a [(OsString, OsString)],
    /// From the start of the first worker until the last is ready.
    pub start_timeout: Duration,
    /// Rung by the worker for an armed reply.
    pub bell: BorrowedFd<'a>,
    /// Takes what it prints.
    pub sink: Option<OutputSink>,
    /// Is told of its start.
    pub telling: &'a Telling,
    /// Raised when the start is not wanted any more.
    pub cancelled: Option<&'a AtomicBool>,
}

impl WorkerSpec<'_> {
    pub(super) fn placed(&self) -> &PlacedGroup {
        &self.placement.groups[usize::from(self.group.0)]
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|cancelled| cancelled.load(Ordering::SeqCst))
    }

    pub(super) fn tell(&self, pid: i32, event: WorkerEvent) {
        let (group, process) = (self.placed().name.as_str().into(), self.process);
        self.telling.tell(WorkerNotice { group, process, pid, at_ns: clock::monotonic_ns(), event });
    }

    pub(super) fn life(&self) -> Life {
        Life { worker: self.worker.into(), incarnation: self.incarnation }
    }

    pub(super) fn system(&self, step: StartStep) -> impl FnOnce(io::Error) -> StartError {
        let group = self.placed().name.clone();
        move |error| StartError::System { group, step, error }
    }

    pub(super) fn segment(&self, step: StartStep) -> impl FnOnce(SegmentError) -> StartError {
        let group = self.placed().name.clone();
        move |error| StartError::Segment { group, step, error }
    }
}

/// What one worker needs, as far as it can be refused before any process is started.
pub(super) struct Prepared {
    pub launch: Launch,
    pub bundle: Bundle,
}

impl Prepared {
    pub fn new(spec: &WorkerSpec<'_>) -> Result<Self, StartError> {
        let bundle = bundle(spec);
        let bytes = Message::Bundle(Box::new(bundle.clone())).encode().len();
        if bytes > BUNDLE_BYTES {
            return Err(PlanError::TooLarge { bytes, limit: BUNDLE_BYTES }.into());
        }
        Ok(Self { launch: Launch::new(spec.placed(), spec.env)?, bundle })
    }
}

/// The datagram that hands everything over: the bundle, and behind it the credentials.
pub(super) fn datagram(bundle: Bundle, listener: &Listener) -> Zeroizing<Vec<u8>> {
    let bundle = Message::Bundle(Box::new(Bundle { doorbell: listener.local(), ..bundle })).encode();
    // Of the right size from the start: growing would leave a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bundle.len() + CREDENTIALS_BYTES));
    bytes.extend(bundle);
    let mut credentials = Zeroizing::new([0; CREDENTIALS_BYTES]);
    listener.credentials().expect("gone with the handshake").write(&mut credentials);
    bytes.extend(credentials.iter());
    bytes
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
        worker: spec.worker,
        incarnation: spec.incarnation,
        // Known when it listens.
        doorbell: (spec.doorbell.address(), 0).into(),
        stop_grace_ms: spec.stop_grace_ms,
        layout_digest: layout_digest(),
        geometry: spec.geometry,
        waiting: spec.waiting,
        pin: spec.placed().process.pin.map(|processor| processor as u16).or(spec.pin),
        group: spec.group,
        groups: groups.collect(),
        nodes: nodes.collect(),
    }
}
