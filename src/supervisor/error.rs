//! Why an engine does not start.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::base::failure::Cause;
use crate::base::refusal::{RefusedFor, StartStep};
use crate::node::BuildError;
use crate::plan::budget::BudgetError;
use crate::plan::error::PlanError;
use crate::plan::settings::SettingsError;
use crate::shm::segment::SegmentError;

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
    #[error("start refused by the worker of group '{group}': {text}")]
    Refused {
        /// The group.
        group: String,
        /// How far its start came.
        step: StartStep,
        /// What it objects to, as data.
        reason: RefusedFor,
        /// What it objects to, in words.
        text: String,
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

impl StartError {
    /// At which step a worker's start failed, and why, as data; `None` of what is refused before it begins.
    pub fn refusal(&self) -> Option<(StartStep, RefusedFor)> {
        let of_system = |error: &io::Error| RefusedFor::System { errno: error.raw_os_error().unwrap_or(0) };
        Some(match self {
            Self::Segment { step, error: SegmentError::System { source, .. }, .. } => {
                (*step, of_system(source))
            }
            Self::Segment { step, .. } => (*step, RefusedFor::Segment),
            Self::Process { error, .. } => (StartStep::Spawn, of_system(error)),
            Self::System { step, error, .. } => (*step, of_system(error)),
            Self::Refused { step, reason, .. } => (*step, *reason),
            Self::Died { step, cause: Cause::Exit(code), .. } => (*step, RefusedFor::Exit(*code)),
            Self::Died { step, cause: Cause::Signal(signal), .. } => (*step, RefusedFor::Signal(*signal)),
            Self::Died { step, .. } => (*step, RefusedFor::NoAnswer),
            Self::Timeout { step, .. } => (*step, RefusedFor::Timeout),
            Self::Settings(_)
            | Self::Plan(_)
            | Self::Budget(_)
            | Self::InsideWorker
            | Self::NotBuilt { .. } => return None,
        })
    }
}
