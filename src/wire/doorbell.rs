//! Messages on the doorbell: 128 bytes each, whatever they say.
//!
//! ```text
//! 0 magic u32   4 schema u16   6 kind u8   7 flags u8   8 length u16   10 reserved u16   12 worker u32
//! 16 incarnation u64   24 counter u64   32 ts_ns u64   40 body, 56 bytes   96 tag, 32 bytes
//!
//! body of HELLO:      0 nonce, 32 bytes   32 pid u32   36 lowest u16   38 highest u16   40 layout_digest u64
//! body of CHALLENGE:  0 nonce, 32 bytes   32 ttl_ns u64   40 beat_ns u64   48 version u16
//! every other body, and the rest of these two: zero
//! ```
//!
//! One length for all: a reader never takes a length from a peer.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of every message.
pub const MESSAGE_BYTES: usize = 128;
/// Bytes before the tag: all of them are under the tag.
pub const COVERED_BYTES: usize = 96;
/// Bytes of a body.
pub const BODY_BYTES: usize = 56;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// `HBDB` in ASCII, read as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"HBDB");
/// Raised when the layout of a message changes.
pub const SCHEMA: u16 = 1;
/// The versions of the conversation that this build speaks, lowest and highest.
pub const VERSIONS: (u16, u16) = (1, 1);

/// One message as bytes.
pub type MessageBytes = [u8; MESSAGE_BYTES];

/// One message, before anything about it is believed.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DoorbellMessage {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`SCHEMA`].
    pub schema: u16,
    /// The number of a [`Kind`].
    pub kind: u8,
    /// Zero.
    pub flags: u8,
    /// [`MESSAGE_BYTES`].
    pub length: u16,
    /// Zero.
    pub reserved: u16,
    /// The worker's number.
    pub worker: u32,
    /// The worker's life.
    pub incarnation: u64,
    /// Counts the sender's messages of this connection from 0.
    pub counter: u64,
    /// When it was made, on `CLOCK_MONOTONIC`, in nanoseconds.
    pub ts_ns: u64,
    /// What the kind says.
    pub body: [u8; BODY_BYTES],
    /// HMAC-SHA256 over everything before it and the transcript.
    pub tag: [u8; TAG_BYTES],
}

/// What a worker says first.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hello {
    /// Random: makes the session another one than every earlier one.
    pub nonce: [u8; NONCE_BYTES],
    /// The worker's process.
    pub pid: u32,
    /// Lowest version that the worker speaks.
    pub lowest: u16,
    /// Highest version that the worker speaks.
    pub highest: u16,
    /// The worker's layouts.
    pub layout_digest: u64,
    /// Zero.
    pub zero: [u8; 8],
}

/// What the engine answers.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Challenge {
    /// Random, as in [`Hello`].
    pub nonce: [u8; NONCE_BYTES],
    /// Messages further than this from the reader's clock are dropped, in nanoseconds.
    pub ttl_ns: u64,
    /// How often the worker says that it lives, in nanoseconds.
    pub beat_ns: u64,
    /// The version to speak.
    pub version: u16,
    /// Zero.
    pub zero: [u8; 6],
}

const _: () = {
    assert!(size_of::<DoorbellMessage>() == MESSAGE_BYTES);
    assert!(std::mem::offset_of!(DoorbellMessage, tag) == COVERED_BYTES);
    assert!(size_of::<Hello>() == BODY_BYTES);
    assert!(size_of::<Challenge>() == BODY_BYTES);
};

/// What a message means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Worker → engine: who it is.
    Hello = 1,
    /// Engine → worker: the answer, and the limits.
    Challenge = 2,
    /// Worker → engine: its nodes are built.
    Ready = 3,
    /// Engine → worker: work may come.
    Go = 4,
    /// Worker → engine: it lives.
    Heartbeat = 5,
    /// Engine → worker: end what is in flight.
    Drain = 6,
    /// Worker → engine: nothing is in flight.
    Drained = 7,
    /// Engine → worker: end serving.
    Stop = 8,
    /// Worker → engine: serving has ended.
    Stopped = 9,
    /// Worker → engine: nothing will follow.
    Bye = 10,
}

impl Kind {
    /// Every kind, in the order of numbers.
    pub const ALL: [Self; 10] = [
        Self::Hello,
        Self::Challenge,
        Self::Ready,
        Self::Go,
        Self::Heartbeat,
        Self::Drain,
        Self::Drained,
        Self::Stop,
        Self::Stopped,
        Self::Bye,
    ];

    /// The kind of this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

impl DoorbellMessage {
    /// A message with everything but its sender, number, time, body and tag.
    pub fn new(kind: Kind) -> Self {
        let length = MESSAGE_BYTES as u16;
        Self { magic: MAGIC, schema: SCHEMA, kind: kind as u8, length, ..Self::new_zeroed() }
    }

    /// The message that these bytes are.
    pub fn from_bytes(bytes: &MessageBytes) -> Self {
        zerocopy::transmute!(*bytes)
    }

    /// Its bytes.
    pub fn to_bytes(self) -> MessageBytes {
        zerocopy::transmute!(self)
    }
}

impl Hello {
    /// The HELLO that this body is.
    pub fn from_body(body: [u8; BODY_BYTES]) -> Self {
        zerocopy::transmute!(body)
    }

    /// Its bytes.
    pub fn to_body(self) -> [u8; BODY_BYTES] {
        zerocopy::transmute!(self)
    }
}

impl Challenge {
    /// The CHALLENGE that this body is.
    pub fn from_body(body: [u8; BODY_BYTES]) -> Self {
        zerocopy::transmute!(body)
    }

    /// Its bytes.
    pub fn to_body(self) -> [u8; BODY_BYTES] {
        zerocopy::transmute!(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_numbers() {
        for (number, kind) in (1..).zip(Kind::ALL) {
            assert_eq!(kind as u8, number);
            assert_eq!(Kind::from_code(number), Some(kind));
        }
        assert_eq!(Kind::from_code(0), None);
        assert_eq!(Kind::from_code(Kind::ALL.len() as u8 + 1), None);
    }

    #[test]
    fn bytes_stand_where_the_layout_says() {
        let message = DoorbellMessage { worker: 0x0403_0201, ts_ns: 7, ..DoorbellMessage::new(Kind::Stop) };
        let bytes = message.to_bytes();
        assert_eq!(bytes[..16], *b"HBDB\x01\0\x08\0\x80\0\0\0\x01\x02\x03\x04");
        assert_eq!(bytes[32], 7);
        assert_eq!(DoorbellMessage::from_bytes(&bytes).to_bytes(), bytes);
        let hello =
            Hello { nonce: [9; NONCE_BYTES], pid: 1, lowest: 2, highest: 3, layout_digest: 4, zero: [0; 8] };
        let body = hello.to_body();
        assert_eq!((body[31], body[32], body[36], body[38], body[40]), (9, 1, 2, 3, 4));
        let challenge =
            Challenge { nonce: [9; NONCE_BYTES], ttl_ns: 1, beat_ns: 2, version: 3, zero: [0; 6] };
        let body = challenge.to_body();
        assert_eq!((body[31], body[32], body[40], body[48]), (9, 1, 2, 3));
        assert!(Challenge::from_body(body) == challenge && Hello::from_body(hello.to_body()) == hello);
    }
}
