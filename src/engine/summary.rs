//! What was started, for showing to a person.

use std::fmt;
use std::net::IpAddr;

use super::shared::Shared;
use crate::base::waiting::Waiting;
use crate::plan::settings::{Profile, Settings};

/// A group as it was started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupSummary {
    /// Its name.
    pub name: String,
    /// Its nodes, in the plan's order.
    pub nodes: Vec<String>,
    /// How many processes it has, or would have.
    pub processes: usize,
    /// The worker processes; none where the group runs in the engine.
    pub worker_pids: Vec<i32>,
    /// It runs in the engine in either profile.
    pub is_local: bool,
    /// It is reached only with a key.
    pub is_keyed: bool,
}

/// What was started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// Where the groups run.
    pub profile: Profile,
    /// How both sides wait.
    pub waiting: Waiting,
    /// Groups in the plan's order.
    pub groups: Vec<GroupSummary>,
    /// Nodes in the plan's order.
    pub nodes: Vec<String>,
    /// The workers' processes, in the order of groups.
    pub worker_pids: Vec<i32>,
    /// Shared memory of one lane.
    pub lane_bytes: usize,
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
    /// Branches of one request in its life.
    pub max_branches: usize,
    /// Payload bytes that may wait between groups.
    pub forward_bytes: usize,
    /// Where the workers' control connections are.
    pub doorbell_address: IpAddr,
    /// The secret is a stated one, for development.
    pub has_development_secret: bool,
    /// Groups for which the two profiles are not promised to give the same bytes, each in a sentence.
    pub notes: Vec<String>,
}

impl Summary {
    /// `pids` in the order of lanes.
    pub(super) fn of(
        settings: &Settings,
        shared: &Shared,
        pids: &[i32],
        has_development_secret: bool,
    ) -> Self {
        let mut pids = pids.iter().copied();
        let placement = &shared.placement;
        let nodes_of = |number: usize| {
            let nodes = placement.nodes.iter().filter(|node| usize::from(node.group.0) == number);
            nodes.map(|node| node.name.clone()).collect()
        };
        let mut groups = Vec::new();
        for (number, group) in placement.groups.iter().enumerate() {
            let has_workers = settings.profile == Profile::ProcessSupervisor && !group.local;
            let workers = if has_workers { usize::from(group.processes) } else { 0 };
            groups.push(GroupSummary {
                name: group.name.clone(),
                nodes: nodes_of(number),
                processes: usize::from(group.processes),
                worker_pids: pids.by_ref().take(workers).collect(),
                is_local: group.local,
                is_keyed: group.keyed,
            });
        }
        let worker_pids: Vec<i32> = groups.iter().flat_map(|group| group.worker_pids.clone()).collect();
        let lane_bytes = shared.geometry.total();
        Self {
            profile: settings.profile,
            waiting: settings.waiting,
            groups,
            nodes: placement.nodes.iter().map(|node| node.name.clone()).collect(),
            lane_bytes,
            mapped_bytes: lane_bytes * worker_pids.len(),
            worker_pids,
            slots: settings.slots,
            slot_bytes: settings.slot_bytes,
            max_payload: shared.max_payload(),
            max_in_flight: settings.max_in_flight,
            max_branches: settings.max_branches,
            forward_bytes: settings.forward_bytes,
            doorbell_address: settings.doorbell_address,
            has_development_secret,
            notes: placement.notes(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "profile    {}, waiting {:?}", self.profile.name(), self.waiting)?;
        for group in &self.groups {
            let kind = match (group.is_local, group.is_keyed) {
                (true, _) => ", local",
                (_, true) => ", keyed",
                _ => "",
            };
            write!(f, "group      {} ({}{kind})", group.name, group.nodes.join(" → "))?;
            match group.worker_pids.as_slice() {
                [] => writeln!(f, ": in this process, {} of it", group.processes)?,
                pids => writeln!(f, ": workers {pids:?}")?,
            }
        }
        let workers = self.worker_pids.len();
        writeln!(
            f,
            "memory     {} bytes mapped: {workers} lanes of {} bytes",
            self.mapped_bytes, self.lane_bytes
        )?;
        write!(
            f,
            "limits     {} slots of {} bytes, payload {} bytes, {} requests in flight, {} branches each, {} bytes between groups",
            self.slots,
            self.slot_bytes,
            self.max_payload,
            self.max_in_flight,
            self.max_branches,
            self.forward_bytes
        )?;
        if !self.worker_pids.is_empty() {
            let secret = if self.has_development_secret {
                "A STATED SECRET, FOR DEVELOPMENT ONLY"
            } else {
                "fresh secrets"
            };
            write!(
                f,
                "\nsecurity   doorbell on {}, {secret}; segments sealed, one writer each",
                self.doorbell_address
            )?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\nnote       {note}"))
    }
}
