//! The engine: what a program calls.
//!
//! ```text
//! builder.rs    stating and starting one              stop.rs      ending it
//! handle.rs     the public face                       request.rs   what is sent     pending.rs  what comes back
//! dispatch.rs   the way out                           reader.rs    the way in
//! shared.rs     what both work on                     link.rs      one lane, with who waits on it
//! thread.rs     the last of those who wait            memory.rs    the memory profile
//! order.rs      when a frame of a run may enter a group
//! correlation/  every request ends exactly once
//! ```

mod builder;
pub(crate) mod correlation;
mod dispatch;
mod handle;
mod link;
mod memory;
// Its tests use all of it.
#[cfg_attr(any(not(test), loom), expect(dead_code, reason = "used by runs"))]
mod order;
mod pending;
mod reader;
mod request;
mod shared;
mod stop;
mod thread;

pub use builder::{EngineBuilder, Summary};
pub use correlation::{Audit, Counters, Event, EventKind};
pub use handle::{Engine, UnknownNode};
pub use pending::{CallError, Pending, Reply};
pub use request::{DispatchError, Loan, RequestBuilder, TryDispatchError};
pub use stop::{Drain, StopMode, StopReport, WorkerStop};
