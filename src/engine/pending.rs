//! A request in flight, and how it ends.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use thiserror::Error;

use super::bell::EventBell;
use super::correlation::{Admitted, Outcome, Phase, RootKey};
use super::reply::Reply;
use super::request::DispatchError;
use super::shared::Shared;
use super::short_way::{Habit, Sent};
use super::wait::Budget;
use crate::base::failure::{Cause, ExecutionClass, Failure, NodeError};
use crate::base::ids::TraceId;
use crate::os::clock;
use crate::wire::error;

/// How a request ended other than with a reply, or why it was not taken.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// It failed; category and cause tell how.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It was cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// The payload is larger than the request arena; nothing was sent.
    #[error("the payload has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of the payload.
        size: usize,
        /// The largest payload.
        limit: usize,
    },
    /// The caller's trace id is in flight; nothing was sent.
    #[error("a request with this trace id is in flight")]
    TraceInFlight,
    /// The node's group is keyed, and the request had no key; nothing was sent.
    #[error("the node belongs to a keyed group: the request needs a key")]
    KeyMissing,
    /// The engine has been stopped; nothing was sent.
    #[error("the engine has been stopped")]
    Stopped,
    /// [`Pending::wait`]: the end of the request has been given before, by [`Pending::try_take`] or a poll.
    #[error("the end of the request has been taken before")]
    Taken,
    /// [`call_as`](crate::Engine::call_as): the reply is not a value of the expected type.
    #[error("the reply has {size} bytes and is no value of the expected type, which has {expected}")]
    NotAsExpected {
        /// Bytes of the reply.
        size: usize,
        /// Bytes of the type.
        expected: usize,
    },
}

impl From<DispatchError> for CallError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::Failed(failure) => Self::Failed(failure),
            DispatchError::TooLarge { size, limit } => Self::TooLarge { size, limit },
            DispatchError::TraceInFlight => Self::TraceInFlight,
            DispatchError::KeyMissing => Self::KeyMissing,
            DispatchError::Stopped => Self::Stopped,
        }
    }
}

/// A request in flight. Dropping it cancels the request; [`Pending::detach`] does not.
///
/// `Send`, and independent of the thread that dispatched it.
pub struct Pending {
    shared: Arc<Shared>,
    sent: Sent,
    /// It was sent the short way, and may come back that way.
    is_short: bool,
    /// Somebody is to be told of its end.
    awaited: bool,
    taken: bool,
}

impl Pending {
    /// Of a request that was sent the short way.
    #[inline(always)]
    pub(super) fn of_sent(shared: &Arc<Shared>, sent: Sent) -> Self {
        shared.begin_unattended();
        Self { shared: Arc::clone(shared), sent, is_short: true, awaited: false, taken: false }
    }

    /// Of a request that was sent, or queued, in any other way.
    pub(super) fn new(shared: &Arc<Shared>, admitted: Admitted) -> Self {
        let mut pending = Self::of_sent(shared, Sent::somewhere(admitted));
        pending.is_short = false;
        pending
    }

    /// The id of the request: the caller's, or the one that the engine made.
    pub fn trace_id(&self) -> TraceId {
        self.sent.admitted.trace_id
    }

    /// Waits for the end of the request, at most until its deadline. An end that has been taken is not given again:
    /// [`CallError::Taken`].
    pub fn wait(mut self) -> Result<Reply, CallError> {
        // The place may be another request's by now.
        if self.taken {
            return Err(CallError::Taken);
        }
        match self.own_reply() {
            Ok(reply) => Ok(reply),
            Err(budget) => {
                self.shared.wait_on(self.key(), budget);
                self.take()
            }
        }
    }

    /// The reply, if it can be had the short way. `Err`: what is left for looking.
    #[inline(always)]
    fn own_reply(&mut self) -> Result<Reply, Budget> {
        let Self { shared, sent, .. } = &*self;
        let is_usual = self.is_short && !self.awaited && shared.correlation.phase(self.key()) == Phase::Open;
        if !is_usual {
            return Err(Budget::Whole);
        }
        let link = shared.link(sent.source.lane);
        let identity = shared.correlation.identity(self.sent.admitted.index);
        if link.source != sent.source {
            return Err(Budget::Whole);
        }
        let reply = shared.own_reply(link, &identity, sent, Habit::None)?;
        self.taken = true;
        self.shared.end_unattended(false);
        Ok(reply)
    }

    /// The end of the request if it has come; looks without waiting. After it has returned a result, it
    /// returns `None` for ever.
    pub fn try_take(&mut self) -> Option<Result<Reply, CallError>> {
        if self.taken {
            return None;
        }
        self.look();
        (self.shared.correlation.phase(self.key()) == Phase::Ended).then(|| self.take())
    }

    /// Reads once where the request has a hop, and looks at its deadline.
    fn look(&self) {
        let shared = &self.shared;
        if shared.correlation.phase(self.key()) == Phase::Ended {
            return;
        }
        for lane in shared.correlation.lanes_of(self.key()) {
            if let Some(link) = shared.lanes[usize::from(lane)].link()
                && shared.read(link)
            {
                link.stop_looking(&shared.correlation);
                shared.arm_for_awaited(link);
            }
        }
        if shared.correlation.deadline_ns(self.sent.admitted.index) != 0 {
            shared.expire_if_due(self.key(), clock::monotonic_ns());
        }
    }

    /// The end of the request if it has come; if not, `waker` is woken once it has. Only the latest waker is.
    pub fn try_take_or_wake(&mut self, waker: &Waker) -> Option<Result<Reply, CallError>> {
        if self.taken || !self.has_ended_or_wakes(waker) { None } else { self.try_take() }
    }

    /// Whether the request has ended; if not, `waker` is woken once it has.
    pub(super) fn has_ended_or_wakes(&mut self, waker: &Waker) -> bool {
        self.look();
        if self.shared.correlation.phase(self.key()) == Phase::Ended {
            return true;
        }
        let waits = self.shared.leave_waker(self.sent.admitted.index, self.key().generation, waker);
        if !self.awaited {
            self.awaited = true;
            self.shared.begin_awaited();
        }
        !waits
    }

    /// The end of the request if it has come; if not, `bell` rings once it has.
    pub fn try_take_or_ring(&mut self, bell: &EventBell) -> Option<Result<Reply, CallError>> {
        self.try_take_or_wake(&bell.waker())
    }

    /// Gives the request up: it ends as cancelled if it has not ended. The worker skips it if it has not begun
    /// it, and its node can see it.
    pub fn cancel(&self) {
        self.shared.cancel(self.key());
    }

    /// Lets the request go on without anybody to take its reply; one whose end has been taken has nowhere to go.
    pub fn detach(mut self) {
        if !self.taken {
            self.leave();
        }
    }

    /// Leaves the request, whose end has not been taken, to whoever ends it.
    fn leave(&mut self) {
        self.taken = true;
        self.forget_waker();
        if self.shared.correlation.detach(self.key()) {
            self.shared.discard(self.sent.admitted.index);
            self.shared.end_unattended(self.awaited);
        } else if !self.awaited {
            // Whoever ends it finds it detached, and counts it out as awaited.
            self.shared.begin_awaited();
        }
    }

    fn forget_waker(&self) {
        if self.awaited {
            self.shared.drop_waker(self.sent.admitted.index);
        }
    }

    /// The request, for the run that it belongs to.
    pub(super) fn key(&self) -> RootKey {
        self.sent.admitted.root()
    }

    fn take(&mut self) -> Result<Reply, CallError> {
        self.taken = true;
        self.forget_waker();
        self.shared.end_unattended(self.awaited);
        take(&self.shared, self.key())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.taken {
            self.cancel();
            self.leave();
        }
    }
}

/// Resolves to the end of the request. Needs no runtime: the engine's thread wakes whoever polled last. A future
/// that has resolved stays pending when it is polled again.
impl Future for Pending {
    type Output = Result<Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.try_take_or_wake(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("trace_id", &self.trace_id()).finish_non_exhaustive()
    }
}

/// Takes the result of an ended root and frees it.
pub(super) fn take(shared: &Arc<Shared>, key: RootKey) -> Result<Reply, CallError> {
    let correlation = &shared.correlation;
    let (outcome, group, started) = correlation.outcome(key.index);
    let identity = correlation.identity(key.index);
    let failed = |cause, node_error| {
        CallError::Failed(shared.told(Failure::new(shared.group_name(group), cause, started, node_error)))
    };
    let result = match outcome {
        Outcome::Inline { len } => Ok(Reply::of_cell(identity, correlation.cell(key.index), len)),
        Outcome::Block { source, block } => Ok(Reply::in_arena(identity, shared, source, block)),
        Outcome::Heap => Ok(Reply::in_memory(identity, shared.take_payload(key.index).unwrap_or_default())),
        Outcome::Error { len } => {
            let payload = Reply::of_cell(identity, correlation.cell(key.index), len);
            let payload = payload.bytes();
            let (class, code, text) = error::decode(&payload).expect("checked when it was read");
            let node_error = (class == ExecutionClass::NodeError).then(|| NodeError::new(code, text));
            Err(failed(Cause::Execution { class, code }, node_error))
        }
        Outcome::Failed(cause) => Err(failed(cause, None)),
        Outcome::Cancelled => Err(CallError::Cancelled),
    };
    shared.free(key.index);
    result
}
