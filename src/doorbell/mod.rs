//! The doorbell: an authenticated control connection per worker, over loopback TCP.
//!
//! Control only: liveness and life cycle, never work. So a full ring cannot delay a stop, and work cannot be
//! taken for a command.
//!
//! ```text
//! engine                                             worker
//! Listener, bound before the worker is spawned
//!        ◀──── its port, on the bootstrap socket ──── Caller, bound
//! announced, says so ─────────────────────────────▶   connects
//!        ◀──── HELLO ────────────────────────────────
//!        ───── CHALLENGE ───────────────────────────▶   the listener is closed
//!        ◀──── HEARTBEAT, READY, DRAINED, STOPPED, BYE
//!        ───── GO, DRAIN, STOP ─────────────────────▶
//! ```
//!
//! [`EngineSession`] and [`WorkerSession`] are state machines over bytes: time is an argument, no socket, no
//! queue. What a session has to say is kept as facts, and a message is made of them when there is room to send
//! it, so a peer that does not read costs no memory. [`Connection`] ties a session to a socket that never
//! blocks. What needs an answer is said again, with a new time, until it has one; saying it twice changes
//! nothing. So a process that was stopped for longer than a message lives still obeys.

mod caller;
mod channel;
mod connection;
#[cfg(test)]
mod conversation;
mod engine_session;
mod errand;
#[cfg(test)]
mod hostile;
mod intake;
mod listener;
#[cfg(test)]
mod pair;
mod reject;
mod session;
mod worker_session;

pub use caller::{CallError, Caller};
pub use connection::{Connection, Ended};
pub use engine_session::{EngineSession, EngineTerms, Report};
pub use listener::{Listener, Turn};
pub use reject::{Reject, Rejects};
pub use session::{Session, Timing};
pub use worker_session::{Order, WorkerSession, WorkerTerms};
