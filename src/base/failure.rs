//! What can go wrong with a request, as a closed set of categories with the cause beside it as data.
//!
//! A message names the group and the category and nothing else: no payload, no secret, no text of a child.
//! A node's own error text travels in [`NodeError`], is bounded, and is shown only to who asks for it.

use std::fmt;
use std::sync::Arc;

use super::limits::ERROR_TEXT_BYTES;
use super::refusal::{RefusedFor, StartStep};

/// The stable category of a failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Category {
    /// The deadline of the request passed.
    Timeout,
    /// The worker died, cannot be reached, or broke the rules of the lane.
    Transport,
    /// The node failed: an error, a panic, a frame that could not be served.
    Execution,
    /// A stop cut the request off.
    Shutdown,
}

impl Category {
    /// The category's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Transport => "transport",
            Self::Execution => "execution",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Why the engine itself killed a worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KilledFor {
    /// It wrote an impossible value into its lane.
    Corruption(Rule),
    /// Its control connection ended while it lived, or said what it may not.
    ConnectionLost,
    /// It was silent for longer than `heartbeat_timeout`.
    HeartbeatLost {
        /// For how long, in milliseconds.
        silence_ms: u32,
    },
    /// It went on with a request for `hung_after` past its deadline.
    Hung,
    /// It was told to stop and did not end by itself in time. No request fails with it; it is told of a worker.
    StopOverrun,
}

/// The rule of the lane that a worker broke.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// A commit word that is neither empty nor ready.
    CommitWord,
    /// A kind of frame that a worker may not send.
    Kind,
    /// A status that is not defined.
    Status,
    /// A flag that is not defined.
    Flags,
    /// A payload longer than its place.
    PayloadLength,
    /// A payload outside the arena, or not on a block's start.
    PayloadPlace,
    /// A block that the engine still holds.
    BlockHeld,
    /// A ticket that was never issued.
    Ticket,
    /// The end of a request that is not the next to end.
    LastOutOfOrder,
    /// An error payload that is not well formed.
    ErrorPayload,
    /// An output along an edge that the plan does not have, or without the key that its group demands.
    Edge,
}

impl Rule {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 11] = [
        Self::CommitWord,
        Self::Kind,
        Self::Status,
        Self::Flags,
        Self::PayloadLength,
        Self::PayloadPlace,
        Self::BlockHeld,
        Self::Ticket,
        Self::LastOutOfOrder,
        Self::ErrorPayload,
        Self::Edge,
    ];
}

/// What class of execution failure a worker reported.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum ExecutionClass {
    /// The node returned an error.
    NodeError = 1,
    /// The node panicked.
    Panic = 2,
    /// The worker knows no such node.
    UnknownTarget = 3,
    /// The node belongs to a group that the worker does not serve.
    Misrouted = 4,
    /// A reply did not fit the reply arena.
    TooLarge = 5,
    /// No room for a reply came free before the worker gave up; at its deadline a request ends with `timeout`.
    NoRoom = 6,
    /// A node emitted along an edge that the plan does not have.
    NoSuchEdge = 7,
    /// One request made more outputs than it may.
    TooManyOutputs = 8,
    /// A request had more branches in its life than `max_branches`.
    TooManyBranches = 9,
    /// A request's path had more hops at an edge than its `max_hops`.
    TooManyHops = 10,
    /// A node emitted to a keyed group without a key.
    KeyMissing = 11,
}

impl ExecutionClass {
    pub(crate) fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::NodeError,
            2 => Self::Panic,
            3 => Self::UnknownTarget,
            4 => Self::Misrouted,
            5 => Self::TooLarge,
            6 => Self::NoRoom,
            7 => Self::NoSuchEdge,
            8 => Self::TooManyOutputs,
            9 => Self::TooManyBranches,
            10 => Self::TooManyHops,
            11 => Self::KeyMissing,
            _ => return None,
        })
    }
}

/// What happened, as data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// The deadline passed.
    Deadline,
    /// The worker ended by itself with this code; -1: another part of the program has taken its exit status.
    Exit(i32),
    /// A signal ended the worker.
    Signal(i32),
    /// The kernel killed the worker for want of memory: a SIGKILL that nobody here sent, while the kernel's count of
    /// such kills in our memory control group grew.
    OutOfMemory,
    /// The engine ended the worker.
    Killed(KilledFor),
    /// The worker had died before, and its last successor could not be started.
    StartRefused {
        /// How far its start came.
        step: StartStep,
        /// What was in the way.
        reason: RefusedFor,
    },
    /// The node or the executor refused the request.
    Execution {
        /// What kind of refusal.
        class: ExecutionClass,
        /// The node's own code; 0 where it has none.
        code: u32,
    },
    /// The engine was stopped.
    Stopped,
}

impl Cause {
    /// Whether this one counts where both have been seen of the same worker or request, and neither has been told
    /// yet: our own intent > corruption > the kernel's word > a deadline > silence > the end of a connection.
    pub(crate) fn outranks(self, other: Self) -> bool {
        self.rank() > other.rank()
    }

    fn rank(self) -> u8 {
        match self {
            Self::Stopped | Self::Killed(KilledFor::StopOverrun) => 6,
            Self::Killed(KilledFor::Corruption(_)) => 5,
            Self::Exit(_) | Self::Signal(_) | Self::OutOfMemory | Self::StartRefused { .. } => 4,
            Self::Deadline | Self::Killed(KilledFor::Hung) => 3,
            Self::Killed(KilledFor::HeartbeatLost { .. }) => 2,
            Self::Killed(KilledFor::ConnectionLost) => 1,
            // A frame's own word is of its request and of nothing else.
            Self::Execution { .. } => 0,
        }
    }
}

/// A node's own error: a code and a bounded text, for the caller's eyes only.
///
/// `Debug` and `Display` show the code; the text is shown by [`NodeError::text`] alone.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeError {
    code: u32,
    text: Box<str>,
}

impl NodeError {
    /// An error with a code of the node's choosing; text beyond 160 bytes is cut at a character.
    pub fn new(code: u32, text: &str) -> Self {
        Self { code, text: cut(text, ERROR_TEXT_BYTES).into() }
    }

    /// The node's code.
    pub fn code(&self) -> u32 {
        self.code
    }

    /// The node's text. It comes from the worker: show it, never act on it.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeError").field("code", &self.code).finish_non_exhaustive()
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node error {}", self.code)
    }
}

impl std::error::Error for NodeError {}

/// The longest prefix of `text` that has at most `bytes` bytes and ends at a character.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// How a request failed.
#[derive(Clone, Debug)]
pub struct Failure {
    category: Category,
    group: Arc<str>,
    cause: Cause,
    started: bool,
    node_error: Option<NodeError>,
}

impl Failure {
    pub(crate) fn new(group: Arc<str>, cause: Cause, started: bool, node_error: Option<NodeError>) -> Self {
        Self { category: Self::category_of(cause), group, cause, started, node_error }
    }

    pub(crate) fn category_of(cause: Cause) -> Category {
        match cause {
            Cause::Deadline => Category::Timeout,
            Cause::Stopped | Cause::Killed(KilledFor::StopOverrun) => Category::Shutdown,
            Cause::Exit(_)
            | Cause::Signal(_)
            | Cause::OutOfMemory
            | Cause::Killed(_)
            | Cause::StartRefused { .. } => Category::Transport,
            Cause::Execution { .. } => Category::Execution,
        }
    }

    /// The stable category.
    pub fn category(&self) -> Category {
        self.category
    }

    /// The group that failed.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// What happened, as data.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// Whether the worker had started the request, as far as its own published word tells.
    pub fn started(&self) -> bool {
        self.started
    }

    /// The node's own error, where the node returned one.
    pub fn node_error(&self) -> Option<&NodeError> {
        self.node_error.as_ref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.category {
            Category::Timeout => "remote handoff timed out",
            Category::Transport => "remote handoff transport failed",
            Category::Execution => "remote handoff failed",
            Category::Shutdown => "remote handoff shut down",
        };
        write!(f, "{what} for group '{}'", self.group)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(cause: Cause) -> Failure {
        Failure::new("scoring".into(), cause, true, Some(NodeError::new(7, "card 4111")))
    }

    #[test]
    fn handoff_e_messages_are_exact() {
        let execution = Cause::Execution { class: ExecutionClass::NodeError, code: 7 };
        for (cause, message) in [
            (Cause::Deadline, "remote handoff timed out for group 'scoring'"),
            (Cause::Signal(9), "remote handoff transport failed for group 'scoring'"),
            (execution, "remote handoff failed for group 'scoring'"),
            (Cause::Stopped, "remote handoff shut down for group 'scoring'"),
            (Cause::Killed(KilledFor::StopOverrun), "remote handoff shut down for group 'scoring'"),
        ] {
            assert_eq!(failure(cause).to_string(), message);
        }
    }

    #[test]
    fn rules_stand_in_their_order() {
        assert!(Rule::ALL.iter().enumerate().all(|(i, rule)| *rule as usize == i));
    }

    #[test]
    fn handoff_e_02_of_several_causes_the_strongest_counts() {
        use KilledFor::{ConnectionLost, Corruption, HeartbeatLost};
        let falling = [
            Cause::Stopped,
            Cause::Killed(Corruption(Rule::Ticket)),
            Cause::Signal(11),
            Cause::Deadline,
            Cause::Killed(HeartbeatLost { silence_ms: 10_000 }),
            Cause::Killed(ConnectionLost),
        ];
        for (i, cause) in falling.iter().enumerate() {
            for (j, other) in falling.iter().enumerate() {
                assert_eq!(cause.outranks(*other), i < j, "{cause:?} {other:?}");
            }
        }
        assert!(!Cause::Exit(0).outranks(Cause::Signal(9)) && !Cause::Signal(9).outranks(Cause::Exit(0)));
    }

    #[test]
    fn handoff_e_05_no_format_shows_the_nodes_text() {
        let failure = failure(Cause::Deadline);
        for shown in [format!("{failure}"), format!("{failure:?}"), format!("{:#?}", failure.node_error)] {
            assert!(!shown.contains("4111"), "{shown}");
        }
        assert_eq!(failure.node_error().map(NodeError::text), Some("card 4111"));
    }

    #[test]
    fn node_error_text_is_cut_at_a_character() {
        let text = "é".repeat(200);
        assert_eq!(NodeError::new(1, &text).text().len(), ERROR_TEXT_BYTES);
    }
}
