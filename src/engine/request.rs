//! What is sent: a request being stated, and why it was not taken.

use std::fmt;

use thiserror::Error;

use super::dispatch::{NotTaken, Outbound, Payload};
use super::handle::Engine;
use super::loan::Loan;
use super::pending::{CallError, Pending};
use super::reply::Reply;
use crate::base::clock::Deadline;
use crate::base::failure::Failure;
use crate::base::ids::{Identity, NodeId, TraceId};

/// Why a request was not taken. Nothing was sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// The worker is dead, or no room came free before the deadline.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The payload is larger than the request arena.
    #[error("the payload has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of the payload.
        size: usize,
        /// The largest payload.
        limit: usize,
    },
    /// The caller's trace id is in flight.
    #[error("a request with this trace id is in flight")]
    TraceInFlight,
    /// The node's group is keyed, and the request has no key.
    #[error("the node belongs to a keyed group: the request needs a key")]
    KeyMissing,
    /// The engine has been stopped.
    #[error("the engine has been stopped")]
    Stopped,
}

/// What `try_dispatch` answers when it does not take a request; `T` is the request, given back.
pub enum TryDispatchError<T> {
    /// No room now: the ring, the arena or the table is full. Try again later, or wait with `dispatch`.
    Busy(T),
    /// It will not be taken.
    Refused(DispatchError),
}

impl<T> fmt::Debug for TryDispatchError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(_) => f.write_str("Busy"),
            Self::Refused(error) => f.debug_tuple("Refused").field(error).finish(),
        }
    }
}

impl<T> fmt::Display for TryDispatchError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(_) => f.write_str("no room for the request now"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl<T> std::error::Error for TryDispatchError<T> {}

/// A request that is being stated. Everything is optional.
#[derive(Clone)]
#[must_use = "a request does nothing until it is dispatched or called"]
pub struct RequestBuilder<'e> {
    engine: &'e Engine,
    target: NodeId,
    identity: Identity,
    deadline: Deadline,
    key: Option<u64>,
}

impl<'e> RequestBuilder<'e> {
    #[inline]
    pub(super) fn new(engine: &'e Engine, target: NodeId) -> Self {
        Self { engine, target, identity: Identity::default(), deadline: Deadline::Never, key: None }
    }

    /// The caller's id of the request. Without one the engine makes one.
    #[inline]
    pub fn trace_id(mut self, trace_id: impl Into<TraceId>) -> Self {
        self.identity.trace_id = trace_id.into();
        self
    }

    /// The caller's route for the answer, carried back unchanged.
    #[inline]
    pub fn reply_to(mut self, reply_to: u32) -> Self {
        self.identity.reply_to = reply_to;
        self
    }

    /// The caller's tags, carried to every node and back unchanged.
    #[inline]
    pub fn tags(mut self, run: u16, scenario: u16) -> Self {
        self.identity.run = run;
        self.identity.scenario = scenario;
        self
    }

    /// When to give up; also bounds the wait for room.
    #[inline]
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = deadline;
        self
    }

    /// Chooses among the processes of the node's group: the same key, the same process. Without one the least
    /// loaded process is taken; a keyed group demands one.
    #[inline]
    pub fn key(mut self, key: u64) -> Self {
        self.key = Some(key);
        self
    }

    #[inline]
    fn outbound(&self) -> Outbound {
        let deadline_ns = self.engine.shared().resolve(self.deadline);
        Outbound {
            target: self.target.into(),
            identity: self.identity,
            deadline_ns,
            key: self.key,
            lane: None,
        }
    }

    /// Sends the request; waits for room until the deadline.
    pub fn dispatch(self, payload: &[u8]) -> Result<Pending, DispatchError> {
        let outbound = self.outbound();
        let shared = self.engine.shared();
        if let Some((link, sent)) = shared.submit_at_once(&outbound, payload) {
            link.end.prefetch_ahead_of(sent.position);
            return Ok(Pending::of_sent(shared, sent));
        }
        let admitted = shared.submit_or_wait(&outbound, Payload::Bytes(payload)).map_err(settled)?;
        Ok(Pending::new(shared, admitted))
    }

    /// Sends the request if there is room now; else gives it back.
    pub fn try_dispatch(self, payload: &[u8]) -> Result<Pending, TryDispatchError<Self>> {
        let outbound = self.outbound();
        let shared = self.engine.shared();
        shared.look_for_room(&outbound);
        match shared.submit(&outbound, Payload::Bytes(payload)) {
            Ok(admitted) => Ok(Pending::new(shared, admitted)),
            Err(NotTaken::Busy(_)) => Err(TryDispatchError::Busy(self)),
            Err(refused) => Err(TryDispatchError::Refused(settled(refused))),
        }
    }

    /// Sends the request and waits for its reply.
    #[inline]
    pub fn call(self, payload: &[u8]) -> Result<Reply, CallError> {
        let outbound = self.outbound();
        self.engine.shared().call(&outbound, payload)
    }

    /// Room for a payload of `len` bytes, to be written in place. It holds unspecified bytes of earlier
    /// requests to the same worker. Waits for room until the deadline.
    pub fn loan(self, len: usize) -> Result<Loan, DispatchError> {
        Loan::new(self.engine, self.outbound(), len)
    }

    /// [`RequestBuilder::loan`] with every byte zero.
    pub fn loan_zeroed(self, len: usize) -> Result<Loan, DispatchError> {
        let mut loan = self.loan(len)?;
        loan.fill(0);
        Ok(loan)
    }
}

pub(super) fn settled(refused: NotTaken<'_>) -> DispatchError {
    match refused {
        NotTaken::TraceInFlight => DispatchError::TraceInFlight,
        NotTaken::KeyMissing => DispatchError::KeyMissing,
        NotTaken::Stopped => DispatchError::Stopped,
        NotTaken::TooLarge { size, limit } => DispatchError::TooLarge { size, limit },
        NotTaken::Failed(failure) => DispatchError::Failed(failure),
        NotTaken::Busy(_) => unreachable!("who waits for room is never told that there is none"),
    }
}
