//! Sealing and opening messages: the guards, in their order.

use zerocopy::IntoBytes;

use super::reject::Reject;
use crate::auth::{Counter, Key, Keys, Life, Transcript};
use crate::wire::doorbell::{
    BODY_BYTES, COVERED_BYTES, Challenge, DoorbellMessage, Hello, Kind, MAGIC, MESSAGE_BYTES, MessageBytes,
    SCHEMA,
};

/// Which end of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Engine,
    Worker,
}

/// A message that passed every guard but the range of its body, which depends on the kind.
pub(super) struct Opened {
    pub kind: Kind,
    pub body: [u8; BODY_BYTES],
}

/// One end of a connection: its keys, its counts, and what was said before.
///
/// Invariant: `sending` and `receiving` are never the same key, so nothing that this end sealed opens here.
pub(super) struct Channel {
    side: Side,
    life: Life,
    sending: Key,
    receiving: Key,
    transcript: Transcript,
    sent: Counter,
    received: Counter,
    ttl_ns: u64,
}

impl Channel {
    pub fn new(side: Side, life: Life, keys: Keys, ttl_ns: u64) -> Self {
        let (sending, receiving) = split(side, keys);
        Self {
            side,
            life,
            sending,
            receiving,
            transcript: Transcript::empty(),
            sent: Counter::default(),
            received: Counter::default(),
            ttl_ns,
        }
    }

    /// Binds the tags from now on to what has been said.
    pub fn bind(&mut self, transcript: Transcript) {
        self.transcript = transcript;
    }

    /// Changes to other keys. The counts go on.
    pub fn rekey(&mut self, keys: Keys, transcript: Transcript, ttl_ns: u64) {
        (self.sending, self.receiving) = split(self.side, keys);
        self.transcript = transcript;
        self.ttl_ns = ttl_ns;
    }

    /// Messages live so long from now on.
    pub fn live(&mut self, ttl_ns: u64) {
        self.ttl_ns = ttl_ns;
    }

    /// Messages that have come.
    #[cfg(feature = "testing")]
    pub fn received(&self) -> u64 {
        self.received.count()
    }

    /// Makes a message.
    pub fn seal(&mut self, kind: Kind, body: [u8; BODY_BYTES], now_ns: u64) -> MessageBytes {
        let mut message = DoorbellMessage {
            worker: self.life.worker,
            incarnation: self.life.incarnation,
            counter: self.sent.take(),
            ts_ns: now_ns,
            body,
            ..DoorbellMessage::new(kind)
        };
        message.tag = self.sending.tag(&message.as_bytes()[..COVERED_BYTES], &self.transcript);
        message.to_bytes()
    }

    /// Opens a message. Nothing changes before its tag holds; its number counts from then on, whatever follows.
    pub fn open(
        &mut self,
        bytes: &MessageBytes,
        now_ns: u64,
        is_legal: impl FnOnce(Kind) -> bool,
    ) -> Result<Opened, Reject> {
        let message = DoorbellMessage::from_bytes(bytes);
        let guard = |holds: bool, reason: Reject| if holds { Ok(()) } else { Err(reason) };
        guard(usize::from(message.length) == MESSAGE_BYTES, Reject::Length)?;
        guard(message.magic == MAGIC, Reject::Magic)?;
        guard(message.schema == SCHEMA, Reject::Schema)?;
        let covered = &bytes[..COVERED_BYTES];
        guard(self.receiving.verify(covered, &self.transcript, &message.tag), Reject::Tag)?;
        guard(message.incarnation == self.life.incarnation, Reject::Incarnation)?;
        guard(message.worker == self.life.worker, Reject::Worker)?;
        guard(self.received.accept(message.counter), Reject::Counter)?;
        let kind = Kind::from_code(message.kind).ok_or(Reject::Kind)?;
        guard(is_legal(kind), Reject::State)?;
        guard(now_ns.abs_diff(message.ts_ns) <= self.ttl_ns, Reject::Time)?;
        guard(message.flags == 0 && message.reserved == 0, Reject::Reserved)?;
        guard(unused_is_zero(kind, &message.body), Reject::Reserved)?;
        Ok(Opened { kind, body: message.body })
    }
}

fn split(side: Side, keys: Keys) -> (Key, Key) {
    match side {
        Side::Engine => (keys.engine, keys.worker),
        Side::Worker => (keys.worker, keys.engine),
    }
}

fn unused_is_zero(kind: Kind, body: &[u8; BODY_BYTES]) -> bool {
    match kind {
        Kind::Hello => Hello::from_body(*body).zero == [0; 8],
        Kind::Challenge => Challenge::from_body(*body).zero == [0; 6],
        _ => *body == [0; BODY_BYTES],
    }
}
