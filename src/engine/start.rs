//! Starting an engine: everything checked, then segments and workers, then the threads.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use super::builder::EngineBuilder;
use super::correlation::{Correlation, Sizes, Source};
use super::handle::Engine;
use super::in_order::InOrder;
use super::local::{Local, Runner};
use super::order::Reach;
use super::revival::Recipe;
use super::room::RoomWaiters;
use super::seat::Seat;
use super::shared::{Lane, Route, Shared, Workers};
use super::stop::{Life, Parts};
use super::summary::Summary;
use super::thread::EngineThread;
use crate::base::clock::ns;
use crate::base::ids::GroupId;
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::base::refusal::StartStep;
use crate::node::BuildError;
use crate::node::executor::Executor;
use crate::node::registry::{Registry, Unbuilt};
use crate::os::owner::Owner;
use crate::os::poll::EventFd;
use crate::os::thread::Helper;
use crate::os::{child, clock, cpu, limits, random};
use crate::plan::budget::{self, Supply};
use crate::plan::error::PlanError;
use crate::plan::loopback::Loopback;
use crate::plan::placement::Placement;
use crate::plan::restart::Restart;
use crate::plan::settings::Profile;
use crate::supervisor::{
    self, Capture, EventThread, Patience, StartError, Started, Telling, Worker, WorkerEvent, WorkerNotice,
    WorkerSpec,
};
use crate::wire::geometry::Geometry;

/// Starts what the builder states.
pub(super) fn start(builder: EngineBuilder) -> Result<Engine, StartError> {
    if crate::worker::is_inside_worker() {
        return Err(StartError::InsideWorker);
    }
    let geometry = builder.settings.check()?;
    builder.settings.check_pin(&cpu::allowed())?;
    let placement = builder.plan.check()?;
    placement.check_pins(&cpu::allowed())?;
    let in_memory = builder.settings.profile == Profile::Memory;
    let mut needed = placement.nodes.iter().filter(|node| in_memory || !placement.runs_a_command(node));
    if let Some(node) = needed.find(|node| !builder.registry.contains(&node.name)) {
        return Err(PlanError::NotRegistered { node: node.name.clone() }.into());
    }
    #[cfg(feature = "testing")]
    let placement = placement.with_unserved(&builder.unserved);
    let start = Start { in_memory, geometry, placement: &placement, builder: &builder };
    let bell = EventFd::new().map_err(start.system(StartStep::Spawn))?;
    // Declared before all that tells: if the start comes to nothing, that is told too.
    let events = start.events()?;
    let mut recipe = start.recipe(&events)?;
    let (started, capture) = start.workers(&bell, &recipe)?;
    if placement.groups.iter().all(|group| group.restart == Restart::never()) {
        // Nobody will be started any more.
        recipe.secret = None;
    }
    let mut workers = Vec::new();
    let mut ends = Vec::new();
    for Started { worker, lane } in started {
        workers.push(Arc::new(worker));
        ends.push(lane);
    }
    let abandoned = Abandoned { start: &start, workers: &workers, telling: recipe.telling.clone() };
    let lanes = start.lanes(ends)?;
    let shared = Arc::new(start.shared(bell, lanes, recipe)?);
    let threads = start.threads(&shared, &workers)?;
    abandoned.forget();
    // Of their births.
    events.flush(builder.settings.start_timeout);
    let pids: Vec<i32> = workers.iter().map(|worker| worker.pid()).collect();
    let life = Life {
        summary: Summary::of(&builder.settings, &shared, &pids, builder.secret.is_some()),
        shared,
        term_timeout: builder.settings.term_timeout,
        process: std::process::id(),
        parts: Mutex::new(Some(Parts { threads, capture, events })),
    };
    Ok(Engine { life: Arc::new(life) })
}

/// Workers of an engine that comes to nothing after all: ended and reaped, the latest first.
struct Abandoned<'a> {
    start: &'a Start<'a>,
    workers: &'a [Arc<Worker>],
    telling: Telling,
}

impl Abandoned<'_> {
    /// They are not.
    fn forget(mut self) {
        self.workers = &[];
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        let processes: Vec<_> = self.start.processes().collect();
        for (worker, (group, process)) in self.workers.iter().zip(processes).rev() {
            worker.end();
            self.telling.tell(WorkerNotice {
                group: self.start.placement.group_name(group).into(),
                process,
                pid: worker.pid(),
                at_ns: clock::monotonic_ns(),
                event: WorkerEvent::Stopped { gracefully: false },
            });
        }
    }
}

struct Start<'a> {
    in_memory: bool,
    geometry: Geometry,
    placement: &'a Placement,
    builder: &'a EngineBuilder,
}

impl Start<'_> {
    /// What the system refuses while nothing of a worker is concerned is told of the first group.
    fn system(&self, step: StartStep) -> impl Fn(std::io::Error) -> StartError {
        let group = self.placement.group_name(GroupId(0)).to_owned();
        move |error| StartError::System { group: group.clone(), step, error }
    }

    /// Groups with the number of their processes, in the plan's order.
    fn groups(&self) -> impl Iterator<Item = (GroupId, u16)> {
        let groups = self.placement.groups.iter().enumerate();
        groups.map(|(number, group)| (GroupId(number as u16), group.processes))
    }

    /// The processes to start, each with its group, in the plan's order.
    fn processes(&self) -> impl Iterator<Item = (GroupId, u16)> {
        let groups = self.groups().filter(|(group, _)| !self.is_local(*group));
        groups.flat_map(|(group, count)| (0..count).map(move |process| (group, process)))
    }

    /// The lane of one process.
    fn lane_of(&self, group: GroupId, process: u16) -> u16 {
        let before = self.groups().take_while(|(before, _)| *before != group);
        before.map(|(_, processes)| processes).sum::<u16>() + process
    }

    fn is_local(&self, group: GroupId) -> bool {
        self.in_memory || self.placement.groups[usize::from(group.0)].local
    }

    fn events(&self) -> Result<EventThread, StartError> {
        let EngineBuilder { listener, failure_listener, settings, .. } = self.builder;
        let is_heard = listener.is_some() || failure_listener.is_some() || cfg!(feature = "tracing");
        let thread = EventThread::start(Owner::new(), is_heard, settings.term_timeout);
        thread.map_err(self.system(StartStep::Spawn))
    }

    fn recipe(&self, events: &EventThread) -> Result<Recipe, StartError> {
        let settings = &self.builder.settings;
        Ok(Recipe {
            owner: events.owner(),
            env: self.builder.env.clone(),
            sink: self.builder.sink.clone(),
            secret: self.builder.secret.clone(),
            doorbell: Loopback::check("doorbell_address", settings.doorbell_address)?,
            pin: settings.pin.map(|processor| processor as u16),
            start_timeout: settings.start_timeout,
            stop_grace_ms: (settings.term_timeout / 2).as_millis().min(u128::from(u32::MAX)) as u32,
            telling: Telling { listener: self.builder.listener.clone(), queue: events.queue().clone() },
            waiting: settings.waiting,
        })
    }

    /// The engine's end of every worker's lane, in the order of lanes.
    fn workers(
        &self,
        bell: &EventFd,
        recipe: &Recipe,
    ) -> Result<(Vec<Started>, Option<Capture>), StartError> {
        let settings = &self.builder.settings;
        let spec = |(group, process)| {
            let worker = self.lane_of(group, process);
            recipe.spec(self.placement, self.geometry, bell, group, process, worker, FIRST_LIFE)
        };
        let specs: Vec<WorkerSpec<'_>> = self.processes().map(spec).collect();
        if specs.is_empty() {
            return Ok((Vec::new(), None));
        }
        let refused = self.system(StartStep::Spawn);
        let supply = Supply {
            memory: [limits::memory_headroom(), limits::memory_available()].into_iter().flatten().min(),
            descriptors_open: child::descriptors_open().map_err(refused)? as u64,
            descriptor_limit: limits::descriptor_limit(),
        };
        budget::check(&self.geometry, specs.len() as u64, settings.memory_limit, supply)?;
        let (started, capture) = supervisor::start(&specs)?;
        Ok((started, Some(capture)))
    }

    /// One lane for each process, and for each that would be one.
    fn lanes(&self, ends: Vec<crate::lane::EngineEnd>) -> Result<Box<[Lane]>, StartError> {
        let mut ends = ends.into_iter();
        let mut lanes = Vec::new();
        for (group, processes) in self.groups() {
            for _ in 0..processes {
                let source = Source { lane: lanes.len() as u16, incarnation: FIRST_LIFE };
                lanes.push(if self.is_local(group) {
                    let executor = executor(&self.builder.registry, self.placement, group)?;
                    let capacity = self.builder.settings.slots;
                    Lane::Local(Box::new(Local::new(source, group, executor, capacity)))
                } else {
                    let end = ends.next().expect("one for each process");
                    let restart = self.placement.groups[usize::from(group.0)].restart;
                    Lane::Worker(Box::new(Seat::new(source.lane, group, restart, end)))
                });
            }
        }
        Ok(lanes.into())
    }

    fn shared(&self, bell: EventFd, lanes: Box<[Lane]>, recipe: Recipe) -> Result<Shared, StartError> {
        let settings = &self.builder.settings;
        let mut seed = [0; 8];
        random::fill(&mut seed).map_err(self.system(StartStep::Spawn))?;
        let sizes = Sizes {
            roots: settings.max_in_flight,
            max_branches: settings.max_branches,
            completed_history: settings.completed_history,
            lanes: lanes.len(),
            inline_bytes: self.geometry.inline_bytes().max(INLINE_REPLY_BYTES),
        };
        let mut first = 0;
        let route = |(_, processes): (GroupId, u16)| {
            // Frames of a group that nobody serves go to the first lane.
            let route =
                if processes == 0 { Route { first: 0, processes: 1 } } else { Route { first, processes } };
            first += processes;
            route
        };
        let routes = self.groups().map(route).collect();
        let reach = if self.placement.has_circle() {
            Reach::new(vec![], vec![])
        } else {
            InOrder::reach(self.placement)
        };
        Ok(Shared {
            group_names: self.placement.groups.iter().map(|group| group.name.as_str().into()).collect(),
            placement: self.placement.clone(),
            waiting: settings.waiting,
            geometry: self.geometry,
            correlation: Correlation::new(sizes, u64::from_le_bytes(seed) | 1),
            has_local: lanes.iter().any(|lane| lane.local().is_some()),
            lanes,
            routes,
            heap: places(settings.max_in_flight),
            wakers: places(settings.max_in_flight),
            orders: places(settings.max_in_flight),
            reach: Arc::new(reach),
            runs: AtomicU32::new(0),
            clock_ns: AtomicU64::new(clock::monotonic_ns()),
            waiting_for_room: AtomicU32::new(0),
            room_made: AtomicU64::new(0),
            forwarded_bytes: AtomicU64::new(0),
            forward_bytes: settings.forward_bytes as u64,
            unattended: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            bell,
            ticking: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            stopping_workers: AtomicBool::new(false),
            workers: Workers::default(),
            revived: Mutex::default(),
            recipe,
            failure_listener: self.builder.failure_listener.clone(),
            runner: Runner::default(),
            room_waiters: RoomWaiters::default(),
        })
    }

    /// The engine's own thread, and the runner if it has something to run. If only the first of them starts, it
    /// ends with the workers.
    fn threads(&self, shared: &Arc<Shared>, workers: &[Arc<Worker>]) -> Result<Vec<Helper>, StartError> {
        let refused = self.system(StartStep::Spawn);
        let lanes = shared.links().map(|link| link.source.lane);
        shared.workers.lock().living = lanes.zip(workers.iter().cloned()).collect();
        let mut threads = Vec::new();
        if shared.has_local {
            let runner = Arc::clone(shared);
            let run = move || {
                runner.recipe.owner.adopt();
                runner.runner.run(&runner);
            };
            threads.push(Helper::start("handbell-runner", run).map_err(&refused)?);
        }
        let patience = Patience {
            heartbeat_timeout_ns: ns(self.builder.settings.heartbeat_timeout),
            hung_after_ns: ns(self.builder.settings.hung_after),
        };
        let thread = EngineThread::new(Arc::clone(shared), workers, patience).map_err(&refused);
        let thread = thread
            .and_then(|thread| Helper::start("handbell-engine", move || thread.run()).map_err(&refused));
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                shared.runner.end();
                return Err(error);
            }
        }
        Ok(threads)
    }
}

/// The incarnation of workers that are started with their engine.
const FIRST_LIFE: u64 = 1;

fn places<T>(count: usize) -> Box<[Mutex<Option<T>>]> {
    (0..count).map(|_| Mutex::new(None)).collect()
}

/// The states of one process of a group, built here.
fn executor(registry: &Registry, placement: &Placement, group: GroupId) -> Result<Executor, StartError> {
    let names = placement.nodes.iter().filter(|node| node.group == group).map(|node| node.name.as_str());
    let built = registry.build(names).map_err(|Unbuilt { node, error }| StartError::NotBuilt {
        node,
        error: error.unwrap_or_else(|| BuildError::new("it is not registered")),
    })?;
    Ok(Executor::new(placement.clone(), group, built))
}
