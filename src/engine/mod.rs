//! The engine: what a program calls.
//!
//! ```text
//! handle.rs     the public face: Engine, its builder, stop
//! request.rs    what is sent: RequestBuilder, Loan          pending.rs  what comes back: Pending, Reply
//! shared.rs     dispatch and waiting over both profiles
//! link.rs       one lane with who waits on it               thread.rs   the last of those who wait
//! memory.rs     the memory profile                          correlation/ every request ends exactly once
//! ```

pub(crate) mod correlation;
mod handle;
mod link;
mod memory;
mod pending;
mod request;
mod shared;
mod thread;

pub use correlation::{Audit, Counters, Event, EventKind};
pub use handle::{Drain, Engine, EngineBuilder, StopMode, StopReport, Summary, UnknownNode, WorkerStop};
pub use pending::{CallError, Pending, Reply};
pub use request::{DispatchError, Loan, RequestBuilder, TryDispatchError};
