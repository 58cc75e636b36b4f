//! The 64 bytes in front of every payload.
//!
//! ```text
//!  0 sequence   8 trace_id[16]   24 ticket   32 deadline_ns   40 reply_to   44 run 46 scenario
//! 48 payload_len   52 payload_at   56 target 58 source   60 kind 61 status 62 flags
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::base::ids::{Identity, NodeId, Ticket};

/// One frame's head. All fields in the machine's byte order: a segment never leaves the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Envelope {
    /// Commit word: position + 1, stored last.
    pub sequence: u64,
    /// The request's identity.
    pub trace_id: [u64; 2],
    /// Hop entry: slot and generation.
    pub ticket: u64,
    /// Monotonic deadline in ns, 0 = none.
    pub deadline_ns: u64,
    /// The caller's route.
    pub reply_to: u32,
    /// The caller's run.
    pub run: u16,
    /// The caller's scenario.
    pub scenario: u16,
    /// Payload bytes.
    pub payload_len: u32,
    /// Arena offset in 64-byte units + 1; 0 = inline behind the envelope.
    pub payload_at: u32,
    /// Node the frame is for; in a terminal, the node that it speaks of.
    pub target: u16,
    /// Node the frame comes from; 0xFFFF for the engine.
    pub source: u16,
    /// What the frame is: one of [`kind`].
    pub kind: u8,
    /// [`status`].
    pub status: u8,
    /// [`flags`].
    pub flags: u16,
}

/// Bytes of an envelope.
pub const ENVELOPE_BYTES: usize = 64;
/// 64-bit words of an envelope.
pub const ENVELOPE_WORDS: usize = ENVELOPE_BYTES / 8;
/// Where `flags` stand in [`Envelope::head_word`].
pub const FLAGS_SHIFT: u32 = 48;
/// Where `kind`, `status` and `flags` begin in [`Envelope::head_word`].
pub const SAID_SHIFT: u32 = 32;
/// `source` of a frame that the engine made.
pub const ENGINE: u16 = 0xFFFF;

/// Values of [`Envelope::kind`]. Zero is none of them.
pub mod kind {
    /// Engine → worker: run the target node.
    pub const EXECUTE: u8 = 1;
    /// Worker → engine: goes on to another group.
    pub const OUTPUT: u8 = 2;
    /// Worker → engine: ends the request.
    pub const TERMINAL: u8 = 3;
    /// Worker → engine: this branch has ended; says nothing else.
    pub const DONE: u8 = 4;
}

/// Values of [`Envelope::status`].
pub mod status {
    /// The payload is the node's.
    pub const SUCCESS: u8 = 0;
    /// The payload is an error: see `wire/error.rs`.
    pub const ERROR: u8 = 1;
}

/// Bits of [`Envelope::flags`].
pub mod flags {
    /// Nothing more comes for this request frame: its slot and block are free.
    pub const LAST: u16 = 1;
    /// `deadline_ns` of an output is its partition key.
    pub const KEYED: u16 = 2;
    /// Any other bit refuses the frame.
    pub const KNOWN: u16 = LAST | KEYED;
}

/// What [`Envelope::head_word`] has from [`SAID_SHIFT`] on.
pub const fn said_word(kind: u8, status: u8, flags: u16) -> u64 {
    (kind as u64) | (status as u64) << 8 | (flags as u64) << 16
}

impl Envelope {
    /// A frame that asks for `target`; the ring adds sequence and payload.
    #[inline(always)]
    pub(crate) fn execute(
        identity: &Identity,
        ticket: Ticket,
        deadline_ns: u64,
        source: u16,
        target: NodeId,
    ) -> Self {
        Self {
            trace_id: identity.trace_id.to_words(),
            ticket: ticket.0,
            deadline_ns,
            reply_to: identity.reply_to,
            run: identity.run,
            scenario: identity.scenario,
            target: target.0,
            source,
            kind: kind::EXECUTE,
            status: status::SUCCESS,
            ..Self::default()
        }
    }

    /// The envelope as it stands in a slot.
    ///
    /// Put together from the fields, not reinterpreted: words that are loaded right after narrower stores to them
    /// would wait until those stores, and all before them, have left the processor's store queue.
    #[inline(always)]
    pub fn to_words(self) -> [u64; ENVELOPE_WORDS] {
        [
            self.sequence,
            self.trace_id[0],
            self.trace_id[1],
            self.ticket,
            self.deadline_ns,
            self.tags_word(),
            self.payload_word(),
            self.head_word(),
        ]
    }

    /// The word of `reply_to`, `run` and `scenario`.
    #[inline(always)]
    pub fn tags_word(&self) -> u64 {
        u64::from(self.reply_to) | u64::from(self.run) << 32 | u64::from(self.scenario) << 48
    }

    /// The word of `payload_len` and `payload_at`.
    #[inline(always)]
    pub fn payload_word(&self) -> u64 {
        u64::from(self.payload_len) | u64::from(self.payload_at) << 32
    }

    /// The last word: `target` to `flags`.
    #[inline(always)]
    pub fn head_word(&self) -> u64 {
        u64::from(self.target)
            | u64::from(self.source) << 16
            | said_word(self.kind, self.status, self.flags) << SAID_SHIFT
    }

    /// The envelope that these words make; every bit pattern is one, so fields are checked by the reader.
    #[inline(always)]
    pub fn from_words(words: [u64; ENVELOPE_WORDS]) -> Self {
        zerocopy::transmute!(words)
    }
}

const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Envelope>() == ENVELOPE_BYTES && align_of::<Envelope>() == 8);
    assert!(offset_of!(Envelope, sequence) == 0);
    assert!(offset_of!(Envelope, trace_id) == 8);
    assert!(offset_of!(Envelope, ticket) == 24);
    assert!(offset_of!(Envelope, deadline_ns) == 32);
    assert!(offset_of!(Envelope, reply_to) == 40);
    assert!(offset_of!(Envelope, run) == 44);
    assert!(offset_of!(Envelope, scenario) == 46);
    assert!(offset_of!(Envelope, payload_len) == 48);
    assert!(offset_of!(Envelope, payload_at) == 52);
    assert!(offset_of!(Envelope, target) == 56);
    assert!(offset_of!(Envelope, source) == 58);
    assert!(offset_of!(Envelope, kind) == 60);
    assert!(offset_of!(Envelope, status) == 61);
    assert!(offset_of!(Envelope, flags) == 62);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let words = std::array::from_fn(|i| 0x0102_0304_0506_0708 * (i as u64 + 1));
        assert_eq!(Envelope::from_words(words).to_words(), words);
    }
}
