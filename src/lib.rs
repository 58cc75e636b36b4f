//! Handbell hands work to supervised child processes and brings the answers back at the speed of the cache
//! lines between two cores, and it always knows what became of each request.
//!
//! A parent process (the *engine*) starts and supervises real child processes (*workers*), hands requests to
//! them as fixed-layout frames through lock-free rings in sealed shared memory, and gets each answer back
//! with certainty: every request ends exactly once, under every failure, with a stable category.
//!
//! Start at [`App`]: it registers the nodes, serves them in a worker, and builds an [`Engine`] for a [`Plan`].
//! `ARCHITECTURE.md` in the repository has the levels, the layouts, the life of a request and the threat
//! model.
//!
//! Linux 5.10 or later, on x86-64 and AArch64.

#[cfg(not(all(target_os = "linux", target_endian = "little", target_pointer_width = "64")))]
compile_error!("handbell runs on 64-bit little-endian Linux");

mod app;
mod auth;
mod base;
mod doorbell;
mod engine;
mod lane;
mod node;
mod os;
mod plan;
mod shm;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;
mod worker;

pub use app::App;
pub use base::clock::Deadline;
pub use base::failure::{Category, Cause, ExecutionClass, Failure, KilledFor, NodeError, Rule};
pub use base::ids::{Identity, NodeId, TraceId};
pub use base::refusal::{RefusedFor, StartStep};
pub use base::resource::Resource;
pub use base::waiting::Waiting;
pub use engine::{
    Audit, CallError, Counters, DispatchError, Drain, Engine, EngineBuilder, Event, EventBell, EventKind,
    GroupSummary, Loan, OnError, Pending, Reply, RequestBuilder, Run, RunBuilder, RunError, StopMode,
    StopReport, Summary, TryDispatchError, UnknownNode, WorkerStop,
};
pub use node::{BuildError, EmitError, Keyed, Node, Output, Request};
pub use plan::budget::BudgetError;
pub use plan::error::PlanError;
pub use plan::plan::Plan;
pub use plan::restart::Restart;
pub use plan::settings::{Profile, SettingsError};
pub use shm::block::InPlace;
pub use supervisor::{OutputLine, StartError, Stream, WorkerEvent, WorkerNotice};
