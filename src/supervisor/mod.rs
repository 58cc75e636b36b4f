//! Real processes: start them, hear them, end them.
//!
//! Knows nothing of requests: what becomes of those when a worker dies is the engine's.

mod birth;
mod error;
mod event;
mod event_thread;
mod launch;
mod liveness;
mod output;
mod spawner;
mod spec;
mod start_time;
mod toll;
mod worker;

pub use error::StartError;
pub use event::{WorkerEvent, WorkerNotice};
pub use output::{OutputLine, OutputSink, Stream};

pub(crate) use birth::{Started, start};
pub(crate) use event::{Listener, Telling};
pub(crate) use event_thread::EventThread;
pub(crate) use liveness::{Finding, Liveness, Patience, Work};
pub(crate) use output::{Capture, Tail};
pub(crate) use spec::WorkerSpec;
pub(crate) use toll::Toll;
pub(crate) use worker::Worker;
