//! Why an engine does not start.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::base::failure::Cause;
use crate::node::BuildError;
use crate::plan::budget::BudgetError;
use crate::plan::error::PlanError;
use crate::plan::settings::SettingsError;
use crate::shm::segment::SegmentError;

/// Which step of a start failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StartStep {
    /// Starting the process.
    Spawn,
    /// Handing over bundle and descriptors.
    Bundle,
    /// Waiting until the worker had mapped its segments.
    Mapped,
    /// The handshake on the doorbell.
    Handshake,
    /// Waiting until the worker had built its nodes.
    Ready,
}

impl StartStep {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::Bundle => "bundle",
            Self::Mapped => "mapped",
            Self::Handshake => "handshake",
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
    #[error("start refused at step {} for group '{group}': {error}", step.name())]
    Segment {
        /// The group whose worker was being started.
        group: String,
        /// The step.
        step: StartStep,
        /// What went wrong.
        error: SegmentError,
    },
    /// A node's state could not be built (memory profile).
    #[error("node '{node}' cannot be built: {error}")]
    NotBuilt {
        /// The node.
        node: String,
        /// What its factory said.
        error: BuildError,
    },
    /// What the plan states of a group's processes cannot be had here.
    #[error("start refused at step spawn for group '{group}': {field} = {value}: {error}")]
    Process {
        /// The group.
        group: String,
        /// What was stated: `command`, `cwd` or `limit`.
        field: &'static str,
        /// Its value; of a command the program alone.
        value: String,
        /// What the system said.
        error: io::Error,
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
        /// The setting; it is for all workers together.
        timeout: Duration,
    },
}
