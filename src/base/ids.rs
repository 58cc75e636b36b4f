//! Identities, each a type of its own, so that none can be taken for another.

use std::fmt;

/// A node of the plan, resolved once by name; valid for the engine that resolved it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub(crate) u16);

impl NodeId {
    /// The number under which frames name this node.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// A node among what is read right after it was written. As wide as it is read: two bytes at an aligned place are
/// loaded as four on x86, and that waits until the store of two has left the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WideNodeId(u32);

impl From<NodeId> for WideNodeId {
    #[inline(always)]
    fn from(NodeId(number): NodeId) -> Self {
        Self(number.into())
    }
}

impl WideNodeId {
    #[inline(always)]
    pub fn node(self) -> NodeId {
        NodeId(self.0 as u16)
    }
}

/// A group of the plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct GroupId(pub u16);

/// The identity of a request: 16 bytes, compatible with a W3C trace id.
///
/// All zero is not a valid identity and stands for "none given".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// Whether no identity was given.
    pub fn is_none(self) -> bool {
        self.0 == [0; 16]
    }

    pub(crate) fn to_words(self) -> [u64; 2] {
        let value = u128::from_le_bytes(self.0);
        [value as u64, (value >> 64) as u64]
    }

    pub(crate) fn from_words(words: [u64; 2]) -> Self {
        let value = u128::from(words[0]) | u128::from(words[1]) << 64;
        Self(value.to_le_bytes())
    }
}

impl From<u128> for TraceId {
    /// The number in network order, as trace contexts are written.
    fn from(value: u128) -> Self {
        Self(value.to_be_bytes())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

/// Bits of a ticket that name the hop slot; the rest is the generation.
const TICKET_SLOT_BITS: u32 = 24;

/// Names one hop entry of the correlation table on the wire: slot and generation.
///
/// A ticket means something to the engine that issued it only; a caller never sees one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ticket(pub u64);

impl Ticket {
    /// Generations are counted modulo this.
    pub const GENERATIONS: u64 = 1 << (64 - TICKET_SLOT_BITS);
    /// More slots than this cannot be named.
    pub const SLOTS: u32 = 1 << TICKET_SLOT_BITS;

    pub fn new(slot: u32, generation: u64) -> Self {
        debug_assert!(slot < Self::SLOTS);
        Self(u64::from(slot) | generation << TICKET_SLOT_BITS)
    }

    pub fn slot(self) -> u32 {
        self.0 as u32 & (Self::SLOTS - 1)
    }

    pub fn generation(self) -> u64 {
        self.0 >> TICKET_SLOT_BITS
    }
}

/// What a caller attaches to a request and finds again, unchanged, on its reply and at every node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The caller's id of the request, or one made by the engine.
    pub trace_id: TraceId,
    /// The caller's route for the answer.
    pub reply_to: u32,
    /// The caller's run.
    pub run: u16,
    /// The caller's scenario.
    pub scenario: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_keeps_slot_and_generation_apart() {
        let ticket = Ticket::new(Ticket::SLOTS - 1, Ticket::GENERATIONS - 1);
        assert_eq!(ticket.slot(), Ticket::SLOTS - 1);
        assert_eq!(ticket.generation(), Ticket::GENERATIONS - 1);
        assert_eq!(Ticket::new(5, 7).slot(), 5);
        assert_eq!(Ticket::new(5, 7).generation(), 7);
    }

    #[test]
    fn trace_id_words_round_trip() {
        let id = TraceId(*b"0123456789abcdef");
        assert_eq!(TraceId::from_words(id.to_words()), id);
        assert!(TraceId::default().is_none());
        assert_eq!(TraceId::from(0x0af7_u128).to_string(), "00000000000000000000000000000af7");
    }
}
