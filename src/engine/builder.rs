//! Stating and starting an engine: settings checked, workers started, threads running.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::correlation::{Correlation, Sizes, Source};
use super::handle::Engine;
use super::link::Link;
use super::memory::MemoryGroup;
use super::shared::{Exits, Shared};
use super::stop::{Life, Parts};
use super::thread::EngineThread;
use crate::base::ids::GroupId;
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::base::waiting::Waiting;
use crate::node::BuildError;
use crate::node::executor::Executor;
use crate::node::registry::{Registry, Unbuilt};
use crate::os::poll::EventFd;
use crate::os::{child, clock, cpu, limits, random};
use crate::plan::budget::{self, Supply};
use crate::plan::error::PlanError;
use crate::plan::placement::Placement;
use crate::plan::plan::Plan;
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
        placement.check_pins(&cpu::allowed())?;
        let in_memory = self.settings.profile == Profile::Memory;
        let mut needed = placement.nodes.iter().filter(|node| in_memory || !placement.runs_a_command(node));
        if let Some(node) = needed.find(|node| !self.registry.contains(&node.name)) {
            return Err(PlanError::NotRegistered { node: node.name.clone() }.into());
        }
        #[cfg(feature = "testing")]
        let placement = placement.with_unserved(&self.unserved);
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
            // The same limits on both profiles: what is refused in one is refused in the other.
            geometry.request_arena_bytes,
            geometry.reply_arena_bytes,
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
        let (mut started, capture) = supervisor::start(&[WorkerSpec {
            group,
            process: 0,
            placement: &placement,
            geometry,
            waiting: self.settings.waiting,
            pin: self.settings.pin.map(|processor| processor as u16),
            incarnation: 1,
            env: &self.env,
            start_timeout: self.settings.start_timeout,
            bell: bell.as_fd().as_fd(),
            sink: self.sink.clone(),
        }])?;
        let started = started.pop().expect("one was asked for");
        let worker = Arc::new(started.worker);
        let abandon = |error| {
            worker.kill();
            let _ = crate::os::poll::readable_within(worker.pidfd(), None);
            worker.reap();
            error
        };
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
            heap: (0..self.settings.max_in_flight).map(|_| Mutex::new(None)).collect(),
            correlation: Correlation::new(sizes, u64::from_le_bytes(seed) | 1),
            link,
            memory,
            clock_ns: AtomicU64::new(clock::monotonic_ns()),
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
            process: std::process::id(),
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
