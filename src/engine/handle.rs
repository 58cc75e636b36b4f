//! The public face: building an engine, calling it, stopping it.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::correlation::{Audit, Correlation, Counters, Event, Sizes, Source};
use super::link::Link;
use super::memory::MemoryGroup;
use super::pending::{CallError, Reply};
use super::request::RequestBuilder;
use super::shared::{Exits, Shared, in_flight};
use super::thread::EngineThread;
use crate::base::clock::Deadline;
use crate::base::failure::Cause;
use crate::base::ids::{GroupId, NodeId};
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::base::waiting::Waiting;
use crate::node::BuildError;
use crate::node::executor::Executor;
use crate::node::registry::{Registry, Unbuilt};
use crate::os::poll::EventFd;
use crate::os::{child, clock, cpu, limits, random};
use crate::plan::budget::{self, Supply};
use crate::plan::placement::{Placement, Plan, PlanError};
use crate::plan::settings::{Profile, Settings};
use crate::supervisor::{self, Capture, OutputLine, StartError, StartStep, Worker, WorkerSpec};
use crate::wire::geometry::Geometry;

/// States an engine: the plan, and every setting with a default.
#[must_use = "an engine builder does nothing until it is started"]
pub struct EngineBuilder {
    registry: Registry,
    plan: Plan,
    settings: Settings,
    env: Vec<(OsString, OsString)>,
    sink: Option<supervisor::OutputSink>,
    /// Groups of the plan that nobody serves.
    #[cfg(feature = "testing")]
    pub(crate) unserved: Vec<(String, Vec<String>)>,
}

macro_rules! setting {
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        pub fn $name(mut self, $name: $type) -> Self {
            self.settings.$name = $name;
            self
        }
    };
}

impl EngineBuilder {
    pub(crate) fn new(registry: Registry, plan: Plan) -> Self {
        Self {
            registry,
            plan,
            settings: Settings::default(),
            env: Vec::new(),
            sink: None,
            #[cfg(feature = "testing")]
            unserved: Vec::new(),
        }
    }

    setting!(
        /// Where the groups run. Default: [`Profile::ProcessSupervisor`].
        profile: Profile
    );
    setting!(
        /// How both sides wait. Default: [`Waiting::Adaptive`].
        waiting: Waiting
    );
    setting!(
        /// Slots of each ring: a power of two, 2 to 65,536. Default: 1,024.
        slots: usize
    );
    setting!(
        /// Bytes of a slot, envelope (64) included: a power of two, 128 to 4,096. Default: 256.
        slot_bytes: usize
    );
    setting!(
        /// Bytes for requests that do not fit a slot: a power of two, 4 KiB to 64 GiB. Also the largest request.
        /// Default: 256 KiB.
        request_arena_bytes: usize
    );
    setting!(
        /// Bytes for replies that do not fit a slot: a power of two, 4 KiB to 64 GiB. Also the largest reply.
        /// Default: 256 KiB.
        reply_arena_bytes: usize
    );
    setting!(
        /// Requests that may be in flight or wait to be taken: 1 to 1,048,576. Default: 1,024.
        max_in_flight: usize
    );
    setting!(
        /// Open branches of one request: 1 to 16. Default: 8.
        max_branches: usize
    );
    setting!(
        /// Latest requests among which a second answer is known as a duplicate: 1 to 16,777,216. Default: 65,536.
        completed_history: usize
    );
    setting!(
        /// How long a worker may take to start and build its nodes. Default: 30 s.
        start_timeout: Duration
    );
    setting!(
        /// How long a worker may take to obey each step of a stop. Default: 2 s.
        term_timeout: Duration
    );

    /// Refuses to start when the plan would map more bytes than this. Default: no limit but the machine's.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// Keeps the workers' serving threads to this processor. Default: any.
    pub fn pin(mut self, processor: usize) -> Self {
        self.settings.pin = Some(processor);
        self
    }

    /// An environment variable for the workers. They inherit only a short list (PATH, HOME, LANG, TZ and the like).
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Who gets the lines that workers print. Default: this process's standard error, behind the group's name.
    pub fn on_output(mut self, sink: impl Fn(OutputLine<'_>) + Send + Sync + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Checks everything, then starts the workers and waits until they are ready.
    pub fn start(self) -> Result<Engine, StartError> {
        if crate::worker::is_inside_worker() {
            return Err(StartError::InsideWorker);
        }
        let geometry = self.settings.check()?;
        self.settings.check_pin(&cpu::allowed())?;
        let placement = self.plan.check()?;
        if let Some(node) = placement.nodes.iter().find(|node| !self.registry.contains(&node.name)) {
            return Err(PlanError::NotRegistered { node: node.name.clone() }.into());
        }
        #[cfg(feature = "testing")]
        let placement = crate::testing::with_unserved(placement, &self.unserved);
        match self.settings.profile {
            Profile::Memory => self.start_memory(geometry, placement),
            Profile::ProcessSupervisor => self.start_processes(geometry, placement),
        }
    }

    fn start_memory(self, geometry: Geometry, placement: Placement) -> Result<Engine, StartError> {
        let group = GroupId(0);
        let names = placement.nodes.iter().filter(|node| node.group == group).map(|node| node.name.as_str());
        let built = self.registry.build(names).map_err(|Unbuilt { node, error }| StartError::NotBuilt {
            node,
            error: error.unwrap_or_else(|| BuildError::new("it is not registered")),
        })?;
        let executor = Executor::new(placement.clone(), group, built);
        let memory = MemoryGroup::new(
            group,
            executor,
            self.settings.slots,
            // The same limit on both profiles: what is refused in one is refused in the other.
            geometry.request_arena_bytes.min(geometry.reply_arena_bytes),
            self.settings.max_in_flight,
        );
        let shared = Arc::new(self.shared(geometry, placement, None, Some(memory))?);
        let runner = {
            let shared = Arc::clone(&shared);
            let run = move || {
                if let Some(memory) = &shared.memory {
                    memory.run_unattended(&shared);
                }
            };
            std::thread::Builder::new().name("handbell-memory".into()).spawn(run)
        };
        let runner = runner.map_err(|error| self.system(&shared.placement, StartStep::Spawn, error))?;
        Ok(self.engine(geometry, shared, None, None, runner))
    }

    fn start_processes(self, geometry: Geometry, placement: Placement) -> Result<Engine, StartError> {
        let group = GroupId(0);
        let refused = |error| self.system(&placement, StartStep::Spawn, error);
        let supply = Supply {
            memory: [limits::memory_headroom(), limits::memory_available()].into_iter().flatten().min(),
            descriptors_open: child::descriptors_open().map_err(refused)? as u64,
            descriptor_limit: limits::descriptor_limit(),
        };
        budget::check(&geometry, 1, self.settings.memory_limit, supply)?;
        let bell = EventFd::new().map_err(refused)?;
        let started = supervisor::start(&WorkerSpec {
            group,
            placement: &placement,
            geometry,
            waiting: self.settings.waiting,
            pin: self.settings.pin.map(|processor| processor as u16),
            incarnation: 1,
            env: &self.env,
            start_timeout: self.settings.start_timeout,
            bell: bell.as_fd().as_fd(),
        })?;
        let worker = Arc::new(started.worker);
        let abandon = |error| {
            worker.kill();
            let _ = crate::os::poll::readable_within(worker.pidfd(), None);
            worker.reap();
            error
        };
        let group_name: Arc<str> = placement.group_name(group).into();
        let pipes = started.pipes.into_iter();
        let pipes = pipes.map(|(stream, fd)| (Arc::clone(&group_name), worker.pid(), stream, fd)).collect();
        let capture = Capture::start(pipes, self.sink.clone()).map_err(refused).map_err(abandon)?;
        let link = Link::new(started.lane, Source { lane: 0, incarnation: 1 }, group);
        let mut shared = self.shared(geometry, placement.clone(), Some(link), None).map_err(abandon)?;
        shared.bell = bell;
        let shared = Arc::new(shared);
        let thread = EngineThread::new(Arc::clone(&shared), Arc::clone(&worker))
            .and_then(|thread| {
                std::thread::Builder::new().name("handbell-engine".into()).spawn(move || thread.run())
            })
            .map_err(refused)
            .map_err(abandon)?;
        Ok(self.engine(geometry, shared, Some(worker), Some(capture), thread))
    }

    fn shared(
        &self,
        geometry: Geometry,
        placement: Placement,
        link: Option<Link>,
        memory: Option<MemoryGroup>,
    ) -> Result<Shared, StartError> {
        let refused = |error| self.system(&placement, StartStep::Spawn, error);
        let mut seed = [0; 8];
        random::fill(&mut seed).map_err(refused)?;
        let bell = EventFd::new().map_err(refused)?;
        let sizes = Sizes {
            roots: self.settings.max_in_flight,
            max_branches: self.settings.max_branches,
            completed_history: self.settings.completed_history,
            lanes: 1,
            inline_bytes: geometry.inline_bytes().max(INLINE_REPLY_BYTES),
        };
        Ok(Shared {
            group_names: placement.groups.iter().map(|group| group.name.as_str().into()).collect(),
            placement,
            waiting: self.settings.waiting,
            correlation: Correlation::new(sizes, u64::from_le_bytes(seed) | 1),
            link,
            memory,
            room_made: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            bell,
            ticking: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            stopping_workers: AtomicBool::new(false),
            exits: Exits::default(),
        })
    }

    fn system(&self, placement: &Placement, step: StartStep, error: std::io::Error) -> StartError {
        StartError::System { group: placement.group_name(GroupId(0)).to_owned(), step, error }
    }

    fn engine(
        self,
        geometry: Geometry,
        shared: Arc<Shared>,
        worker: Option<Arc<Worker>>,
        capture: Option<Capture>,
        thread: JoinHandle<()>,
    ) -> Engine {
        let summary = Summary {
            profile: self.settings.profile,
            waiting: self.settings.waiting,
            groups: shared.placement.groups.iter().map(|group| group.name.clone()).collect(),
            nodes: shared.placement.nodes.iter().map(|node| node.name.clone()).collect(),
            worker_pids: worker.iter().map(|worker| worker.pid()).collect(),
            mapped_bytes: shared.link.as_ref().map_or(0, |link| link.end.mapped_bytes()),
            slots: geometry.slots,
            slot_bytes: geometry.slot_bytes,
            max_payload: shared.max_payload(),
            max_in_flight: self.settings.max_in_flight,
        };
        let life = Life {
            shared,
            worker,
            summary,
            term_timeout: self.settings.term_timeout,
            parts: Mutex::new(Some(Parts { thread, capture })),
        };
        Engine { life: Arc::new(life) }
    }
}

/// What was started, for showing to a person.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// Where the groups run.
    pub profile: Profile,
    /// How both sides wait.
    pub waiting: Waiting,
    /// Groups in the plan's order.
    pub groups: Vec<String>,
    /// Nodes in the plan's order.
    pub nodes: Vec<String>,
    /// The workers' processes.
    pub worker_pids: Vec<i32>,
    /// Shared memory of all lanes.
    pub mapped_bytes: usize,
    /// Slots of each ring.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// The largest request.
    pub max_payload: usize,
    /// Requests that may be in flight or wait to be taken.
    pub max_in_flight: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "profile    {}, waiting {:?}", self.profile.name(), self.waiting)?;
        writeln!(f, "groups     {}", self.groups.join(", "))?;
        writeln!(f, "nodes      {}", self.nodes.join(" → "))?;
        writeln!(f, "workers    {:?}", self.worker_pids)?;
        writeln!(f, "memory     {} bytes mapped", self.mapped_bytes)?;
        write!(
            f,
            "limits     {} slots of {} bytes, payload {} bytes, {} requests in flight",
            self.slots, self.slot_bytes, self.max_payload, self.max_in_flight
        )
    }
}

/// A name that no node of the plan has.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the plan has no node '{name}'")]
pub struct UnknownNode {
    /// The name.
    pub name: String,
}

/// How long a stop waits for what is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drain(Duration);

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

/// An engine: hands requests to its workers and brings the answers back.
///
/// `Clone + Send + Sync`: clones share one engine, any thread may call. When the last clone is dropped the
/// engine is stopped without waiting for what is in flight.
#[derive(Clone)]
pub struct Engine {
    life: Arc<Life>,
}

struct Parts {
    thread: JoinHandle<()>,
    capture: Option<Capture>,
}

/// What ends with the last handle.
struct Life {
    shared: Arc<Shared>,
    worker: Option<Arc<Worker>>,
    summary: Summary,
    term_timeout: Duration,
    /// `None` once stopped.
    parts: Mutex<Option<Parts>>,
}

impl Engine {
    #[inline(always)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.life.shared
    }

    /// Frames sent to and read from the worker.
    #[cfg(feature = "testing")]
    pub(crate) fn ring_positions(&self) -> Option<(u64, u64)> {
        self.shared().link.as_ref().map(|link| link.end.positions())
    }

    /// Whether the worker says that it has begun the request at this position of its ring.
    #[cfg(feature = "testing")]
    pub(crate) fn has_begun(&self, position: u64) -> bool {
        self.shared().link.as_ref().is_some_and(|link| link.end.started(position))
    }

    /// The node of this name. Resolve it once and keep it.
    pub fn node(&self, name: &str) -> Result<NodeId, UnknownNode> {
        self.shared().placement.node(name).ok_or_else(|| UnknownNode { name: name.to_owned() })
    }

    /// A request to a node, to be stated further.
    #[inline]
    pub fn request(&self, node: NodeId) -> RequestBuilder<'_> {
        RequestBuilder::new(self, node)
    }

    /// Sends `payload` to a node and waits for its reply: the short form of [`Engine::request`].
    #[inline]
    pub fn call(&self, node: NodeId, payload: &[u8], deadline: Deadline) -> Result<Reply, CallError> {
        self.request(node).deadline(deadline).call(payload)
    }

    /// Sends the bytes of `value` and takes the reply for a value of `R`.
    pub fn call_as<T, R>(&self, node: NodeId, value: &T, deadline: Deadline) -> Result<R, CallError>
    where
        T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized,
        R: zerocopy::TryFromBytes,
    {
        let reply = self.call(node, value.as_bytes(), deadline)?;
        reply.to_value().ok_or(CallError::NotAsExpected { size: reply.len(), expected: size_of::<R>() })
    }

    /// What was started.
    pub fn summary(&self) -> &Summary {
        &self.life.summary
    }

    /// The counters, summed over all lanes.
    pub fn counters(&self) -> Counters {
        self.shared().correlation.all_counters()
    }

    /// The counters of each lane, in the plan's order of groups.
    pub fn lane_counters(&self) -> Vec<Counters> {
        self.shared().correlation.lane_counters().collect()
    }

    /// Counts the tables themselves, beside the counters. Exact while no call is inside the engine.
    pub fn audit(&self) -> Audit {
        self.shared().correlation.audit()
    }

    /// The newest 256 ends and drops, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.shared().correlation.events()
    }

    /// Ends the engine: refuses new requests, waits for what is in flight, fails what remains with category
    /// `shutdown`, then tells the worker to end, and kills its process group if it does not.
    ///
    /// Further calls, also of other handles, answer `Stopped`. A second stop returns an empty report.
    pub fn stop(&self, drain: Drain) -> StopReport {
        self.life.stop(drain.0)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("summary", &self.life.summary).finish_non_exhaustive()
    }
}

/// How often a drain looks at what is in flight.
const DRAIN_LOOK: Duration = Duration::from_micros(500);

impl Life {
    fn stop(&self, drain: Duration) -> StopReport {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        if let Some(link) = &shared.link {
            link.wake_everybody(&shared.correlation);
        }
        let Some(parts) = self.parts.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return StopReport::default();
        };
        self.drain(drain);
        let cut_off = self.cut_off();
        if let Some(worker) = &self.worker {
            self.end_worker(worker);
        }
        shared.ending.store(true, Ordering::SeqCst);
        shared.bell.ring();
        if let Some(memory) = &shared.memory {
            memory.end();
        }
        // A thread of ours that panicked has said so on standard error; there is nothing left to undo.
        let _ = parts.thread.join();
        drop(parts.capture);
        let workers = shared.exits.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        StopReport { workers, cut_off }
    }

    /// Lets what is in flight end; reads the lane meanwhile, because nobody else may.
    fn drain(&self, limit: Duration) {
        let shared = &self.shared;
        let begin = Instant::now();
        while in_flight(&shared.correlation) > 0 && begin.elapsed() < limit {
            if let Some(link) = &shared.link {
                if shared.read(link) {
                    link.stop_looking(&shared.correlation);
                    continue;
                }
                if !link.is_live() {
                    return;
                }
            }
            if let Some(memory) = &shared.memory {
                memory.kick();
            }
            shared.expire(clock::monotonic_ns());
            std::thread::sleep(DRAIN_LOOK);
        }
    }

    /// Fails what is still in flight with category `shutdown`.
    fn cut_off(&self) -> u64 {
        let shared = &self.shared;
        let source = Source { lane: 0, incarnation: 1 };
        let started = |_lane, position| shared.link.as_ref().is_none_or(|link| link.end.started(position));
        let ended = shared.correlation.end_all_of(source, Cause::Stopped, clock::monotonic_ns(), started);
        let count = ended.len() as u64;
        shared.after_all(ended);
        count
    }

    /// STOP, then SIGTERM (and SIGCONT), then SIGKILL, each to the whole process group.
    fn end_worker(&self, worker: &Worker) {
        self.shared.stopping_workers.store(true, Ordering::SeqCst);
        worker.tell_to_stop();
        if self.has_ended_within(self.term_timeout) {
            return;
        }
        worker.terminate();
        if self.has_ended_within(self.term_timeout) {
            return;
        }
        worker.kill();
        // SIGKILL cannot be refused; the engine's thread reaps and tells.
        while !self.has_ended_within(Duration::from_secs(1)) {
            worker.kill();
        }
    }

    fn has_ended_within(&self, limit: Duration) -> bool {
        let exits = &self.shared.exits;
        let ended = exits.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = exits.changed.wait_timeout_while(ended, limit, |ended| ended.is_empty());
        let (ended, _) = wait.unwrap_or_else(PoisonError::into_inner);
        !ended.is_empty()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
