//! A lane: the link between the engine and one worker. Two segments, two rings, two arenas, one signal each way.
//!
//! ```text
//! engine ── request ring, request arena ──▶ worker      (the worker's LAST frees slot and block)
//! engine ◀── reply ring, reply arena ────── worker      (`consumed` frees slots, the release ring blocks)
//! ```
//!
//! [`EngineEnd`] and [`WorkerEnd`] hold the private truth of their side: positions, tickets, which blocks
//! are out. What stands in the peer's segment is a claim and is bounded against that.

mod end_of_life;
mod engine_end;
mod held_blocks;
mod own_reply;
mod reader;
mod worker_end;

pub use engine_end::{EngineEnd, Outgoing};
pub use held_blocks::BlockPlace;
pub use reader::{Expect, Frame, FramePayload, LastMark, Read};
pub use worker_end::{Idleness, Incoming, NoRoom, Said, WorkerEnd};

use crate::shm::signal::Signal;
use crate::wire::control;

/// How a sleeper of the engine is woken for a reply.
pub const REPLY_SIGNAL: Signal =
    Signal { sleeping_at: control::request::SLEEPING, wake_at: control::reply::WAKE };

/// How a sleeping worker is woken for a request.
pub const REQUEST_SIGNAL: Signal =
    Signal { sleeping_at: control::reply::SLEEPING, wake_at: control::request::WAKE };
