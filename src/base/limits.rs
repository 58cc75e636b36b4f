//! Every fixed limit in one place, with the reason for its value.

/// Control words and slots are kept apart by this: two cache lines, because adjacent lines are prefetched in pairs.
pub const CONTROL_LINE_BYTES: usize = 128;

/// A cache line, and the unit in which arena offsets travel.
pub const CACHE_LINE_BYTES: usize = 64;

/// Sections of a segment start on pages.
pub const PAGE_BYTES: usize = 4096;

/// Smallest and largest slot: an envelope and its inline payload.
pub const SLOT_BYTES: std::ops::RangeInclusive<usize> = 128..=4096;

/// Slots of a ring.
pub const RING_SLOTS: std::ops::RangeInclusive<usize> = 2..=65_536;

/// Bytes of an arena.
pub const ARENA_BYTES: std::ops::RangeInclusive<usize> = 4096..=1 << 36;

/// An arena is handed out in at most this many units, so that its map is two levels of 64-bit words.
pub const ARENA_UNITS: usize = 4096;

/// Frames that one holder of the reader role takes before it gives the role back.
pub const READ_BATCH: usize = 64;

/// Inline payload that a reply carries without an allocation.
pub const INLINE_REPLY_BYTES: usize = 192;

/// Text of a node's own error that travels to the caller; longer text is cut at a character.
pub const ERROR_TEXT_BYTES: usize = 160;

/// Bytes of a node's or group's name.
pub const NAME_BYTES: usize = 64;

/// Nodes and groups of a plan. `0xFFFF` names the engine.
pub const PLAN_NODES: usize = 1024;

/// Edges of a plan: bounds what a worker reads, and the search for what a node can reach.
pub const PLAN_EDGES: usize = 4096;

/// Processes of one group.
pub const GROUP_PROCESSES: std::ops::RangeInclusive<usize> = 1..=256;

/// Restarts of one process within its period.
pub const RESTARTS: std::ops::RangeInclusive<usize> = 1..=1000;

/// Lives of one process in all: each leaves something behind until the engine ends.
pub const LIVES: usize = 4096;

/// The longest time that can be stated, in milliseconds.
pub const DAY_MS: usize = 86_400_000;

/// Processes of a plan: each has a lane, and lanes are looked through one after the other.
pub const PLAN_PROCESSES: usize = 1024;

/// Times that one request may cross an edge, where the edge states it.
pub const MAX_HOPS: std::ops::RangeInclusive<usize> = 1..=1024;

/// Bytes of the start bundle: it travels as one datagram.
pub const BUNDLE_BYTES: usize = 128 << 10;

/// Roots of one engine; with their hop entries they must fit a ticket's slot number.
pub const ROOTS: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// Branches of one root in its life.
pub const BRANCHES: std::ops::RangeInclusive<usize> = 1..=16;

/// Completed requests that are remembered to tell a duplicate from a late reply.
pub const HISTORY: std::ops::RangeInclusive<usize> = 1..=1 << 24;

/// Events kept for a look at what happened last.
pub const EVENTS: usize = 256;

/// A sleeper looks again by itself after this long, so that a lost wake could cost time only.
pub const LONGEST_SLEEP_NS: u64 = 2_000_000_000;

/// The last lines of a worker's output that are kept for a look after its death.
pub const TAIL_LINES: usize = 64;

/// One captured line of a worker's output; what is longer is cut.
pub const OUTPUT_LINE_BYTES: usize = 4096;

/// A doorbell message further than this from the reader's clock is dropped: longer than any delay of a healthy
/// machine, shorter than what a pause of a process is worth.
pub const DOORBELL_TTL_NS: u64 = 5_000_000_000;

/// A worker says this often that it lives.
pub const DOORBELL_BEAT_NS: u64 = 500_000_000;

/// What needs an answer is said again this often until it has one.
pub const DOORBELL_REPEAT_NS: u64 = 1_000_000_000;

/// HELLO and CHALLENGE must be done this long after the worker was announced.
pub const HANDSHAKE_NS: u64 = 2_000_000_000;

/// Events that may wait for their listener; of a process that restarts without end, some hundred lives.
pub const UNTOLD_EVENTS: usize = 4096;

/// Who looks at the clock this much later than it meant to was not running itself, and blames nobody for the time
/// between.
pub const STALL_NS: u64 = 1_000_000_000;

/// Connections that the kernel keeps for the listener: a flood of strangers between two turns does not push the
/// worker's own one out.
pub const DOORBELL_BACKLOG: i32 = 1024;

/// Doorbell messages read, and strangers turned away, in one turn.
pub const DOORBELL_TURN: usize = 64;
