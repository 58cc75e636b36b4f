//! Control words: where they stand in each segment, who writes them and who reads them.
//!
//! A word has one writing process. Words share a line of 128 bytes only if the same side writes
//! them equally often, so that reading one never drags along a line that changes per message.

use crate::base::limits::CONTROL_LINE_BYTES as LINE;

/// First control line: behind the segment header.
const FIRST: usize = LINE;

/// Request segment: the engine writes, the worker reads.
pub mod request {
    use super::{FIRST, LINE};

    /// u64: reply position + 1 at which a sleeper of the engine wants to be woken; 0 = nobody sleeps.
    pub const SLEEPING: usize = FIRST;
    /// u64: reply position + 1 at which the engine's thread wants the event descriptor rung; 0 = not armed.
    pub const BELL: usize = FIRST + 8;
    /// u64: processor that waits for replies, + 1.
    pub const CPU: usize = FIRST + 16;
    /// u64: replies copied out; their slots are free.
    pub const CONSUMED: usize = FIRST + LINE;
    /// u32: grows when the worker asked for room and there is some; the worker sleeps on it.
    pub const ROOM: usize = FIRST + 2 * LINE;
    /// u32: grows when a sleeping worker is woken; the worker sleeps on it.
    pub const WAKE: usize = FIRST + 3 * LINE;
    /// End of the control words.
    pub const END: usize = FIRST + 4 * LINE;
}

/// Reply segment: the worker writes, the engine reads.
pub mod reply {
    use super::{FIRST, LINE};

    /// u64: request position + 1 for which the worker sleeps; 0 = it does not.
    pub const SLEEPING: usize = FIRST;
    /// u64: processor that waits for requests, + 1.
    pub const CPU: usize = FIRST + 8;
    /// u64: requests whose execution has begun.
    pub const STARTED: usize = FIRST + LINE;
    /// u64: requests whose execution has ended.
    pub const FINISHED: usize = FIRST + LINE + 8;
    /// u64: grows with every node call: tells a busy worker from a stuck one.
    pub const PROGRESS: usize = FIRST + LINE + 16;
    /// u64: 1 while the worker waits for room in its ring or arena.
    pub const WANTS_ROOM: usize = FIRST + 2 * LINE;
    /// u32: grows when a sleeper of the engine is woken; that sleeper sleeps on it.
    pub const WAKE: usize = FIRST + 3 * LINE;
    /// End of the control words.
    pub const END: usize = FIRST + 4 * LINE;
}
