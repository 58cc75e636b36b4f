//! The engine: what a program calls.
//!
//! ```text
//! builder.rs    stating one                           start.rs     starting it       summary.rs  what was started
//! handle.rs     the public face                       stop.rs      ending it
//! request.rs    what is sent                          pending.rs   what comes back   bell.rs     for event loops
//! dispatch.rs   the way out                           reader.rs    the way in        wait.rs     until it ends
//! short_way.rs  both, where nothing stands in it  small.rs     a small reply's bytes
//! block_way.rs  the same with large payloads
//! forward.rs    the way on, from group to group       run.rs       streams           in_order.rs their frames held
//! order.rs      which frame may enter a group         answer.rs    which answer counts
//! shared.rs     what all of it works on               seat.rs      a process, over its lives
//! link.rs       a worker's lane                       local.rs     a group without worker
//! thread.rs     the last of those who wait            ward.rs      a worker in its care
//! revival.rs    a dead worker's successor            room.rs      waiting for it without a thread
//! correlation/  every request ends exactly once
//! ```

pub(crate) mod answer;
mod bell;
mod block_way;
mod builder;
pub(crate) mod correlation;
mod dispatch;
mod drain;
mod forward;
mod handle;
mod in_order;
mod link;
mod loan;
mod local;
mod local_port;
pub(crate) mod order;
mod pending;
mod reader;
mod reply;
mod request;
mod revival;
mod room;
mod run;
mod seat;
mod shared;
mod short_way;
mod spare;
mod start;
mod stop;
mod summary;
mod thread;
mod wait;
mod ward;

pub use bell::EventBell;
pub use builder::EngineBuilder;
pub use correlation::{Audit, Counters, Event, EventKind};
pub use handle::{Engine, UnknownNode};
pub use loan::Loan;
pub use pending::{CallError, Pending};
pub use reply::Reply;
pub use request::{DispatchError, RequestBuilder, TryDispatchError};
pub use run::{OnError, Run, RunBuilder, RunError};
pub use stop::{Drain, StopMode, StopReport, WorkerStop};
pub use summary::{GroupSummary, Summary};
