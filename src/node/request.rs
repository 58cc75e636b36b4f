//! What a node is given.

use crate::base::ids::{Identity, TraceId};

/// Whether the request has been cancelled meanwhile.
pub(crate) trait Cancellation {
    fn is_cancelled(&self) -> bool;
}

/// One request at one node. Its bytes stay as they are until the node returns.
pub struct Request<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) identity: &'a Identity,
    pub(crate) deadline_ns: u64,
    pub(crate) node: &'a str,
    pub(crate) group: &'a str,
    pub(crate) cancellation: &'a dyn Cancellation,
}

impl Request<'_> {
    /// The payload, exactly as long as it was sent. In a worker it lies in shared memory.
    pub fn payload(&self) -> &[u8] {
        self.payload
    }

    /// The payload as a value of `T`, copied; `None` if its length is not that of `T` or its bytes are no `T`.
    pub fn payload_as<T: zerocopy::TryFromBytes>(&self) -> Option<T> {
        T::try_read_from_bytes(self.payload).ok()
    }

    /// The name of the node that is called: tells the nodes of one state apart.
    pub fn node_name(&self) -> &str {
        self.node
    }

    /// The name of the group that the node belongs to.
    pub fn group_name(&self) -> &str {
        self.group
    }

    /// The request's identity.
    pub fn trace_id(&self) -> TraceId {
        self.identity.trace_id
    }

    /// The caller's route for the answer.
    pub fn reply_to(&self) -> u32 {
        self.identity.reply_to
    }

    /// The caller's run tag.
    pub fn run(&self) -> u16 {
        self.identity.run
    }

    /// The caller's scenario tag.
    pub fn scenario(&self) -> u16 {
        self.identity.scenario
    }

    /// The deadline on the monotonic clock in ns, `None` if there is none.
    pub fn deadline_ns(&self) -> Option<u64> {
        (self.deadline_ns != 0).then_some(self.deadline_ns)
    }

    /// Whether the caller has given the request up. Cheap enough to ask in a loop.
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }
}
