//! The first bytes of each segment, written once by the engine before the segment is sealed,
//! and the digest by which both sides know that they were built from the same layouts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::control;
use super::doorbell::{self, Challenge, DoorbellMessage, Hello, Kind};
use super::envelope::{Envelope, flags, kind};
use super::geometry::{Geometry, slot_stride};
use crate::base::limits::{ARENA_UNITS, CONTROL_LINE_BYTES, PAGE_BYTES};

/// `HANDBELL` in ASCII, read as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HANDBELL");
/// Raised with every change of a size, an offset or a meaning.
pub const LAYOUT_VERSION: u32 = 3;

/// Which of the two segments of a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Side {
    /// Written by the engine.
    Request = 1,
    /// Written by the worker.
    Reply = 2,
}

/// Head of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
    /// A [`Side`].
    pub side: u32,
    /// [`layout_digest`].
    pub layout_digest: u64,
    /// The life of the worker that this segment belongs to.
    pub incarnation: u64,
    /// Bytes of the segment.
    pub total: u64,
    /// Slots of the ring.
    pub slots: u32,
    /// Bytes of a slot.
    pub slot_bytes: u32,
    /// Offset of the cancelled words; 0 in the reply segment.
    pub cancelled_at: u64,
    /// Offset of the release ring; 0 in the reply segment.
    pub release_at: u64,
    /// Offset of the slots.
    pub slots_at: u64,
    /// Offset of the arena.
    pub arena_at: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Zero.
    pub reserved: [u64; 5],
}

const _: () = assert!(std::mem::size_of::<SegmentHeader>() == CONTROL_LINE_BYTES);

impl SegmentHeader {
    /// The head that a segment of this geometry and incarnation has; both sides make it and compare.
    pub fn new(side: Side, geometry: &Geometry, incarnation: u64) -> Self {
        let request = geometry.request();
        let reply = geometry.reply();
        let (total, cancelled_at, release_at, slots_at, arena_at, arena_bytes) = match side {
            Side::Request => (
                request.total,
                request.cancelled_at,
                request.release_at,
                request.slots_at,
                request.arena_at,
                geometry.request_arena_bytes,
            ),
            Side::Reply => (reply.total, 0, 0, reply.slots_at, reply.arena_at, geometry.reply_arena_bytes),
        };
        Self {
            magic: MAGIC,
            layout_version: LAYOUT_VERSION,
            side: side as u32,
            layout_digest: layout_digest(),
            incarnation,
            total: total as u64,
            slots: geometry.slots as u32,
            slot_bytes: geometry.slot_bytes as u32,
            cancelled_at: cancelled_at as u64,
            release_at: release_at as u64,
            slots_at: slots_at as u64,
            arena_at: arena_at as u64,
            arena_bytes: arena_bytes as u64,
            reserved: [0; 5],
        }
    }
}

/// All sizes, offsets and values of the layouts as text: the golden file, and what the digest is over.
pub fn describe() -> String {
    use std::fmt::Write;
    use std::mem::{offset_of, size_of};
    let mut text = format!("layout {LAYOUT_VERSION}\n");
    let mut row = |name: &str, value: usize| {
        let _ = writeln!(text, "{name} {value}");
    };
    macro_rules! fields {
        ($type:ident: $($field:ident)*) => {
            row(concat!(stringify!($type), " bytes"), size_of::<$type>());
            $(row(concat!(stringify!($type), ".", stringify!($field)), offset_of!($type, $field));)*
        };
    }
    fields!(Envelope: sequence trace_id ticket deadline_ns reply_to run scenario payload_len payload_at
        target source kind status flags);
    fields!(SegmentHeader: magic layout_version side layout_digest incarnation total slots slot_bytes
        cancelled_at release_at slots_at arena_at arena_bytes reserved);
    fields!(DoorbellMessage: magic schema kind flags length reserved worker incarnation counter ts_ns body tag);
    fields!(Hello: nonce pid lowest highest layout_digest zero);
    fields!(Challenge: nonce ttl_ns beat_ns version zero);
    row("doorbell schema", usize::from(doorbell::SCHEMA));
    for kind in Kind::ALL {
        row(&format!("doorbell.{}", format!("{kind:?}").to_lowercase()), kind as usize);
    }
    for (name, value) in [
        ("kind.execute", kind::EXECUTE),
        ("kind.output", kind::OUTPUT),
        ("kind.terminal", kind::TERMINAL),
        ("kind.done", kind::DONE),
    ] {
        row(name, usize::from(value));
    }
    row("flag.last", usize::from(flags::LAST));
    row("flag.keyed", usize::from(flags::KEYED));
    for (name, value) in [
        ("request.sleeping", control::request::SLEEPING),
        ("request.bell", control::request::BELL),
        ("request.cpu", control::request::CPU),
        ("request.consumed", control::request::CONSUMED),
        ("request.room", control::request::ROOM),
        ("request.wake", control::request::WAKE),
        ("reply.sleeping", control::reply::SLEEPING),
        ("reply.cpu", control::reply::CPU),
        ("reply.started", control::reply::STARTED),
        ("reply.finished", control::reply::FINISHED),
        ("reply.progress", control::reply::PROGRESS),
        ("reply.wants_room", control::reply::WANTS_ROOM),
        ("reply.wake", control::reply::WAKE),
        ("page", PAGE_BYTES),
        ("arena units", ARENA_UNITS),
    ] {
        row(name, value);
    }
    let sample =
        Geometry { slots: 1024, slot_bytes: 256, request_arena_bytes: 1 << 18, reply_arena_bytes: 1 << 19 };
    let (request, reply) = (sample.request(), sample.reply());
    row("sample request.cancelled", request.cancelled_at);
    row("sample request.release", request.release_at);
    row("sample request.slots", request.slots_at);
    row("sample request.arena", request.arena_at);
    row("sample request.total", request.total);
    row("sample reply.slots", reply.slots_at);
    row("sample reply.arena", reply.arena_at);
    row("sample reply.total", reply.total);
    row("sample slot stride", slot_stride(sample.slots));
    text
}

/// FNV-1a (64 bit) over [`describe`]: tells builds with different layouts apart. Not a secret, not a signature.
pub fn layout_digest() -> u64 {
    static DIGEST: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *DIGEST.get_or_init(|| {
        describe()
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_golden_one() {
        let golden = include_str!("../../tests/golden/layout.txt");
        assert_eq!(describe(), golden, "a changed layout needs a new LAYOUT_VERSION and a new golden file");
    }
}
