//! What comes back: the request in flight, and its reply.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use thiserror::Error;

use super::bell::EventBell;
use super::correlation::{Admitted, Outcome, Phase, RootKey, Source};
use super::request::DispatchError;
use super::shared::Shared;
use super::short_way::{Habit, OwnPayload, Sent};
use super::small::{Small, copy_words};
use super::wait::Budget;
use crate::base::failure::{Cause, ExecutionClass, Failure, NodeError};
use crate::base::ids::{Identity, TraceId};
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::base::sync::AtomicU64;
use crate::lane::BlockPlace;
use crate::os::clock;
use crate::shm::block::InPlace;
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

    /// Waits for the end of the request, at most until its deadline.
    pub fn wait(mut self) -> Result<Reply, CallError> {
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
        let is_usual = self.is_short
            && !self.awaited
            && !self.taken
            && shared.correlation.phase(self.key()) == Phase::Open;
        if !is_usual {
            return Err(Budget::Whole);
        }
        let link = shared.link(sent.source.lane);
        let identity = shared.correlation.identity(self.sent.admitted.index);
        if link.source != sent.source {
            return Err(Budget::Whole);
        }
        let payload = shared.own_reply(link, &identity, sent, Habit::None)?;
        let reply = Reply::of_own(identity, shared, sent.source, payload);
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

    /// Lets the request go on without anybody to take its reply.
    pub fn detach(mut self) {
        self.leave();
    }

    /// Leaves the request to whoever ends it.
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
        Outcome::Inline { len } => {
            Ok(Reply { identity, body: Body::of_cell(correlation.cell(key.index), len) })
        }
        Outcome::Block { source, block } => Ok(Reply::in_arena(identity, shared, source, block)),
        Outcome::Heap => {
            Ok(Reply { identity, body: Body::Heap(shared.take_payload(key.index).unwrap_or_default()) })
        }
        Outcome::Error { len } => {
            let payload = Body::of_cell(correlation.cell(key.index), len);
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

/// A reply: the request's identity and the payload of its terminal.
///
/// A small payload has been copied out. A large one stays in shared memory until the reply is dropped, also
/// after the engine has been stopped; meanwhile its worker lacks that room. While more than half the reply
/// arena is held in that way, further large ones are copied out too.
pub struct Reply {
    identity: Identity,
    body: Body,
}

enum Body {
    Small(Small),
    Heap(Box<[u8]>),
    View(View),
}

/// A held block that goes back when dropped.
struct View {
    shared: Arc<Shared>,
    source: Source,
    block: BlockPlace,
}

impl View {
    fn len(&self) -> usize {
        self.block.len as usize
    }

    fn in_place(&self) -> InPlace<'_> {
        self.shared.link_of(self.source).end.in_place(self.block)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.shared.link_of(self.source).end.release(self.block);
    }
}

impl Body {
    #[inline]
    fn of_cell(cell: &[AtomicU64], len: u32) -> Self {
        let len = len as usize;
        if len > INLINE_REPLY_BYTES {
            let mut bytes = vec![0; len].into_boxed_slice();
            copy_words(cell, &mut bytes);
            return Self::Heap(bytes);
        }
        Self::Small(Small::of_cell(cell, len))
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Small(small) => Cow::Borrowed(small.bytes()),
            Self::Heap(bytes) => Cow::Borrowed(bytes),
            Self::View(view) => {
                let mut bytes = vec![0; view.len()];
                view.in_place().copy_to(0, &mut bytes);
                Cow::Owned(bytes)
            }
        }
    }
}

impl Reply {
    #[inline(always)]
    pub(super) fn small(identity: Identity, payload: Small) -> Self {
        Self { identity, body: Body::Small(payload) }
    }

    /// What its owner has read itself.
    #[inline(always)]
    pub(super) fn of_own(
        identity: Identity,
        shared: &Arc<Shared>,
        source: Source,
        payload: OwnPayload,
    ) -> Self {
        match payload {
            OwnPayload::Small(payload) => Self::small(identity, payload),
            OwnPayload::Block(block) => Self::in_arena(identity, shared, source, block),
        }
    }

    /// A large one, whose block is held.
    #[inline(always)]
    pub(super) fn in_arena(
        identity: Identity,
        shared: &Arc<Shared>,
        source: Source,
        block: BlockPlace,
    ) -> Self {
        let view = View { shared: Arc::clone(shared), source, block };
        Self { identity, body: Body::View(view) }
    }

    /// Payload bytes.
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Small(small) => small.bytes().len(),
            Body::Heap(bytes) => bytes.len(),
            Body::View(view) => view.len(),
        }
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The request's identity, unchanged.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The request's id.
    pub fn trace_id(&self) -> TraceId {
        self.identity.trace_id
    }

    /// The payload; copied if it lies in shared memory.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        self.body.bytes()
    }

    /// The payload as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        match self.body {
            Body::Heap(bytes) => bytes.into(),
            body => body.bytes().into_owned(),
        }
    }

    /// Copies `out.len()` payload bytes from `offset` on, without an allocation.
    ///
    /// # Panics
    ///
    /// If the range is not inside the payload.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        match &self.body {
            Body::Small(small) => out.copy_from_slice(&small.bytes()[offset..][..out.len()]),
            Body::Heap(bytes) => out.copy_from_slice(&bytes[offset..][..out.len()]),
            Body::View(view) => view.in_place().copy_to(offset, out),
        }
    }

    /// The payload where it lies, if it is a large one in shared memory.
    pub fn in_place(&self) -> Option<InPlace<'_>> {
        match &self.body {
            Body::View(view) => Some(view.in_place()),
            _ => None,
        }
    }

    /// The byte at `offset`, read in place; `None` beyond the end.
    pub fn read_at(&self, offset: usize) -> Option<u8> {
        (offset < self.len()).then(|| {
            let mut byte = [0];
            self.copy_to(offset, &mut byte);
            byte[0]
        })
    }

    /// The payload as a value of `T`, copied; `None` if it is none.
    pub fn to_value<T: zerocopy::TryFromBytes>(&self) -> Option<T> {
        T::try_read_from_bytes(&self.bytes()).ok()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("identity", &self.identity).field("len", &self.len()).finish()
    }
}
