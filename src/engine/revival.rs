//! Starting the successor of a dead worker, in a thread of its own: a start may take as long as `start_timeout`,
//! and the engine's thread has others to look after.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::shared::Shared;
use crate::auth::Secret;
use crate::base::ids::GroupId;
use crate::base::refusal::StartStep;
use crate::os::owner::Owner;
use crate::os::poll::EventFd;
use crate::plan::loopback::Loopback;
use crate::plan::placement::Placement;
use crate::supervisor::{self, Capture, OutputSink, StartError, Started, Telling, WorkerSpec};
use crate::wire::geometry::Geometry;

/// What the starts of all workers have in common.
pub(super) struct Recipe {
    /// The engine.
    pub owner: Owner,
    pub env: Vec<(OsString, OsString)>,
    pub sink: Option<OutputSink>,
    pub secret: Option<Arc<Secret>>,
    pub doorbell: Loopback,
    pub pin: Option<u16>,
    pub start_timeout: Duration,
    pub stop_grace_ms: u32,
    pub telling: Telling,
    pub waiting: crate::base::waiting::Waiting,
}

/// A worker that is ready, and who drains its output.
pub(super) struct Revived {
    pub started: Started,
    pub capture: Capture,
}

impl Recipe {
    /// What is to be started as one life of one process.
    #[expect(clippy::too_many_arguments, reason = "all that differs from start to start")]
    pub fn spec<'a>(
        &'a self,
        placement: &'a Placement,
        geometry: Geometry,
        bell: &'a EventFd,
        group: GroupId,
        process: u16,
        worker: u16,
        incarnation: u64,
    ) -> WorkerSpec<'a> {
        WorkerSpec {
            group,
            process,
            placement,
            geometry,
            waiting: self.waiting,
            pin: self.pin,
            worker,
            incarnation,
            owner: self.owner,
            doorbell: self.doorbell,
            secret: self.secret.as_deref(),
            stop_grace_ms: self.stop_grace_ms,
            env: &self.env,
            start_timeout: self.start_timeout,
            bell: bell.as_fd(),
            sink: self.sink.clone(),
            telling: &self.telling,
            cancelled: None,
        }
    }
}

/// Begins to start the next life of the process behind `lane`. The engine's thread is rung when there is a result.
/// `former` drained the output of the life before, and is let go of there.
pub(super) fn begin(shared: &Arc<Shared>, lane: u16, incarnation: u64, former: Option<Capture>) {
    let started = {
        let shared = Arc::clone(shared);
        let revive = move || {
            shared.recipe.owner.adopt();
            drop(former);
            let result = revive(&shared, lane, incarnation);
            shared.revived.lock().unwrap_or_else(PoisonError::into_inner).push((lane, result));
            shared.bell.ring();
        };
        std::thread::Builder::new().name("handbell-revive".into()).spawn(revive)
    };
    if let Err(error) = started {
        let group = shared.group_name(shared.link(lane).group).to_string();
        let refused = StartError::System { group, step: StartStep::Spawn, error };
        shared.revived.lock().unwrap_or_else(PoisonError::into_inner).push((lane, Err(refused)));
        shared.bell.ring();
    }
}

fn revive(shared: &Shared, lane: u16, incarnation: u64) -> Result<Revived, StartError> {
    let group = shared.link(lane).group;
    let process = lane - shared.routes[usize::from(group.0)].first;
    let recipe = &shared.recipe;
    let (placement, geometry) = (&shared.placement, shared.geometry);
    let spec = recipe.spec(placement, geometry, &shared.bell, group, process, lane, incarnation);
    let spec = WorkerSpec { cancelled: Some(&shared.stopping_workers), ..spec };
    let (mut started, capture) = supervisor::start(&[spec])?;
    Ok(Revived { started: started.pop().expect("one was asked for"), capture })
}
