//! What both kinds of session have in common.

use super::reject::{Reject, Rejects};
use crate::base::limits::{DOORBELL_BEAT_NS, DOORBELL_TTL_NS};
use crate::wire::doorbell::MessageBytes;

/// The limits that the engine states in CHALLENGE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// A message further than this from the reader's clock is dropped, in nanoseconds.
    pub ttl_ns: u64,
    /// How often the worker says that it lives, in nanoseconds.
    pub beat_ns: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { ttl_ns: DOORBELL_TTL_NS, beat_ns: DOORBELL_BEAT_NS }
    }
}

impl Timing {
    /// Whether a worker accepts these: from a millisecond to an hour.
    pub(super) fn is_sound(self) -> bool {
        let range = 1_000_000..=3_600_000_000_000;
        range.contains(&self.ttl_ns) && range.contains(&self.beat_ns)
    }
}

/// A session as a state machine over bytes.
///
/// All times are readings of `CLOCK_MONOTONIC` in nanoseconds. A session is used by one thread at a time.
pub trait Session {
    /// What the peer had to say.
    type Event;

    /// Takes bytes of the stream, cut anywhere, and hands `on` what they say.
    ///
    /// # Errors
    /// The reject that ended the session: the keys are gone, nothing is opened or sealed any more, the
    /// connection is to be closed. A message out of its time in an open session is counted and is no error.
    fn feed(&mut self, stream: &[u8], now_ns: u64, on: &mut dyn FnMut(Self::Event)) -> Result<(), Reject>;

    /// The stream has ended.
    ///
    /// # Errors
    /// It has ended within a message, or the session had been ended by a reject.
    fn end(&mut self) -> Result<(), Reject>;

    /// The next message to send, if one is due. It is made now, and it must be sent.
    fn transmit(&mut self, now_ns: u64) -> Option<MessageBytes>;

    /// When [`Session::transmit`] has something to say of its own accord.
    fn next_ns(&self) -> Option<u64>;

    /// Whether the handshake is done and the session has not ended.
    fn is_open(&self) -> bool;

    /// What was refused.
    fn rejects(&self) -> &Rejects;
}
