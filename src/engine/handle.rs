//! The public face of a running engine.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::correlation::{Audit, Counters, Event};
use super::pending::CallError;
use super::reply::Reply;
use super::request::RequestBuilder;
use super::run::RunBuilder;
use super::shared::Shared;
use super::stop::{Drain, Life, StopReport};
use super::summary::Summary;
use crate::base::clock::Deadline;
use crate::base::ids::NodeId;
#[cfg(feature = "testing")]
use crate::base::sync::Ordering;
use crate::doorbell::Reject;

/// A name that no node of the plan has.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the plan has no node '{name}'")]
pub struct UnknownNode {
    /// The name.
    pub name: String,
}

/// An engine: hands requests to its workers and brings the answers back.
///
/// `Clone + Send + Sync`: clones share one engine, any thread may call. When the last clone is dropped the
/// engine is stopped without waiting for what is in flight.
#[derive(Clone)]
pub struct Engine {
    pub(super) life: Arc<Life>,
}

impl Engine {
    #[inline(always)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.life.shared
    }

    /// Frames sent to and read from the worker of a lane, if it has one.
    #[cfg(feature = "testing")]
    pub(crate) fn ring_positions(&self, lane: usize) -> Option<(u64, u64)> {
        self.shared().lanes[lane].link().map(|link| link.end.positions())
    }

    /// Frames of a lane whose end has not been read.
    #[cfg(feature = "testing")]
    pub(crate) fn open_frames(&self, lane: usize) -> u64 {
        self.shared().lanes[lane].load()
    }

    /// How many sleep at the lane of a worker, or are about to.
    #[cfg(feature = "testing")]
    pub(crate) fn asleep(&self, lane: u16) -> u32 {
        self.shared().link(lane).asleep()
    }

    /// Whether the request at this position of a lane has been begun, as far as its worker tells.
    #[cfg(feature = "testing")]
    pub(crate) fn has_begun(&self, lane: u16, position: u64) -> bool {
        self.shared().started()(self.shared().lanes[usize::from(lane)].source(), position)
    }

    /// Requests that nobody need be waiting for, and those of them that somebody is to be told of, or nobody takes.
    #[cfg(feature = "testing")]
    pub(crate) fn unattended(&self) -> (u64, u64) {
        let shared = self.shared();
        (shared.unattended.load(Ordering::SeqCst), shared.awaited.load(Ordering::SeqCst))
    }

    /// Messages that have come on the doorbell of the first worker.
    #[cfg(feature = "testing")]
    pub(crate) fn messages_heard(&self) -> u64 {
        self.shared().workers.lock().living.values().next().map_or(0, |worker| worker.messages_heard())
    }

    /// Whether the workers have been told to end.
    #[cfg(feature = "testing")]
    pub(crate) fn is_stopping_workers(&self) -> bool {
        self.shared().stopping_workers.load(Ordering::SeqCst)
    }

    /// The node of this name. Resolve it once and keep it.
    pub fn node(&self, name: &str) -> Result<NodeId, UnknownNode> {
        self.shared().placement.node(name).ok_or_else(|| UnknownNode { name: name.to_owned() })
    }

    /// A request to a node, to be stated further.
    #[inline]
    pub fn request(&self, node: NodeId) -> RequestBuilder<'_> {
        RequestBuilder::new(self, node)
    }

    /// Sends `payload` to a node and waits for its reply: the short form of [`Engine::request`].
    #[inline]
    pub fn call(&self, node: NodeId, payload: &[u8], deadline: Deadline) -> Result<Reply, CallError> {
        self.request(node).deadline(deadline).call(payload)
    }

    /// Sends the bytes of `value` and takes the reply for a value of `R`.
    pub fn call_as<T, R>(&self, node: NodeId, value: &T, deadline: Deadline) -> Result<R, CallError>
    where
        T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized,
        R: zerocopy::TryFromBytes,
    {
        let reply = self.call(node, value.as_bytes(), deadline)?;
        reply.to_value().ok_or(CallError::NotAsExpected { size: reply.len(), expected: size_of::<R>() })
    }

    /// A stream of inputs to a node, with a window in flight and outputs in input order; to be stated further.
    ///
    /// An input ends when all that it has led to has been run. Of several answers the one in the first place counts:
    /// that of the branch emitted first, however slow. So the outcome does not depend on who is faster. By its
    /// deadline, a worker's death or one branch more than `max_branches` an input ends at once.
    pub fn run<I>(&self, node: NodeId, inputs: I) -> RunBuilder<'_, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        RunBuilder::new(self, node, inputs.into_iter())
    }

    /// What was started.
    pub fn summary(&self) -> &Summary {
        &self.life.summary
    }

    /// The workers' processes as they are now, in the order of groups; the start summary has those of the start.
    pub fn worker_pids(&self) -> Vec<i32> {
        self.shared().workers.lock().living.values().map(|worker| worker.pid()).collect()
    }

    /// The last lines, at most 64, that the worker with this process number printed; also of one of the latest 64
    /// that have ended. They come from the worker: show them, never act on them.
    pub fn last_lines(&self, pid: i32) -> Vec<Vec<u8>> {
        let roll = self.shared().workers.lock();
        let living = roll.living.values().find(|worker| worker.pid() == pid).map(|worker| worker.tail());
        let dead = || roll.last_words.iter().rev().find(|(of, _)| *of == pid).map(|(_, tail)| tail);
        living.or_else(dead).map(|tail| tail.lines()).unwrap_or_default()
    }

    /// The counters, summed over all lanes.
    pub fn counters(&self) -> Counters {
        self.shared().correlation.all_counters()
    }

    /// The counters of each lane, in the plan's order of groups and of processes within.
    pub fn lane_counters(&self) -> Vec<Counters> {
        self.shared().correlation.lane_counters().collect()
    }

    /// Counts the tables themselves, beside the counters. Exact while no call is inside the engine.
    pub fn audit(&self) -> Audit {
        self.shared().correlation.audit()
    }

    /// The newest 256 ends and drops, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.shared().correlation.events()
    }

    /// What the workers' doorbells have refused since the start: each reason by its stable name, with how often.
    pub fn doorbell_rejects(&self) -> Vec<(&'static str, u64)> {
        let roll = self.shared().workers.lock();
        let mut sum = roll.rejects;
        roll.living.values().for_each(|worker| sum.add(&worker.rejects()));
        Reject::ALL.iter().map(|reason| (reason.name(), sum.of(*reason))).collect()
    }

    /// Worker events, and failures that a stop caused, which were not told because 4,096 others waited for their
    /// listener.
    pub fn events_dropped(&self) -> u64 {
        self.shared().recipe.telling.queue.dropped()
    }

    /// Ends the engine: refuses new requests, waits for what is in flight, fails what remains with category
    /// `shutdown`, then tells the workers to end, and kills their process groups if they do not.
    ///
    /// Further calls, also of other handles, answer `Stopped`. A second stop returns an empty report, and so does one
    /// that a listener, a sink or a waker asks for in a thread of the engine's: it goes on in a thread of its own.
    pub fn stop(&self, drain: Drain) -> StopReport {
        self.life.stop(drain.0)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("summary", &self.life.summary).finish_non_exhaustive()
    }
}
