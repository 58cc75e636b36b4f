//! Where a node's results go.

use thiserror::Error;

use crate::base::failure::{ExecutionClass, NodeError};
use crate::base::ids::{NodeId, WideNodeId};
use crate::node::executor::{Pending, Port, Way};
use crate::plan::placement::{PlacedNode, Placement};

/// An output that was refused. The request fails with category `execution`, whatever the node returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum EmitError {
    /// The plan has no such edge from this node.
    #[error("the plan has no such edge from this node")]
    NoSuchEdge,
    /// The payload is larger than the arena.
    #[error("the payload has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of the payload.
        size: usize,
        /// The largest payload.
        limit: usize,
    },
    /// No room came free before the deadline, or a stop came first.
    #[error("no room for the payload before the deadline")]
    NoRoom,
    /// The edge leads to a keyed group: the output needs a key.
    #[error("the edge leads to a keyed group: the output needs a key")]
    KeyMissing,
}

impl EmitError {
    pub(crate) fn class(self) -> ExecutionClass {
        match self {
            Self::NoSuchEdge => ExecutionClass::NoSuchEdge,
            Self::TooLarge { .. } => ExecutionClass::TooLarge,
            Self::NoRoom => ExecutionClass::NoRoom,
            Self::KeyMissing => ExecutionClass::KeyMissing,
        }
    }
}

impl From<EmitError> for NodeError {
    fn from(error: EmitError) -> Self {
        NodeError::new(error.class() as u32, "")
    }
}

/// Takes a node's outputs, one after the other, in order.
pub struct Output<'a> {
    pub(super) placement: &'a Placement,
    pub(super) node: &'a PlacedNode,
    pub(super) id: WideNodeId,
    pub(super) pending: &'a mut Pending,
    pub(super) port: &'a mut dyn Port,
    pub(super) refused: Option<EmitError>,
}

impl<'o> Output<'o> {
    /// Sends `payload` along the node's only edge; a node without edges replies.
    pub fn emit(&mut self, payload: &[u8]) -> Result<(), EmitError> {
        self.emit_by(None, payload)
    }

    /// Sends `payload` along the edge with this label.
    pub fn emit_to(&mut self, label: &str, payload: &[u8]) -> Result<(), EmitError> {
        self.emit_to_by(None, label, payload)
    }

    /// The next output has this key: it chooses among the processes of the group that the edge leads to. The same
    /// key, the same process. Inside a group keys mean nothing.
    pub fn key(&mut self, key: u64) -> Keyed<'_, 'o> {
        Keyed { output: self, key }
    }

    fn emit_by(&mut self, key: Option<u64>, payload: &[u8]) -> Result<(), EmitError> {
        match self.node.edges.as_slice() {
            [] => self.reply(payload),
            [edge] => self.pass_on(edge.to, key, payload),
            _ => self.refuse(EmitError::NoSuchEdge),
        }
    }

    fn emit_to_by(&mut self, key: Option<u64>, label: &str, payload: &[u8]) -> Result<(), EmitError> {
        match self.node.edges.iter().find(|edge| edge.label == label) {
            Some(edge) => self.pass_on(edge.to, key, payload),
            None => self.refuse(EmitError::NoSuchEdge),
        }
    }

    /// Ends the request with `payload`. A second reply to one request is dropped and counted.
    pub fn reply(&mut self, payload: &[u8]) -> Result<(), EmitError> {
        let sent = self.port.reply(self.id.node(), payload);
        self.noting(sent)
    }

    /// Ends the request with `len` bytes that `fill` writes in place. What `fill` leaves alone is unspecified.
    pub fn reply_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), EmitError> {
        let mut fill = Some(fill);
        let sent = self.port.reply_with(self.id.node(), len, &mut |room| {
            if let Some(fill) = fill.take() {
                fill(room);
            }
        });
        self.noting(sent)
    }

    /// Ends the request with the bytes of `value`.
    pub fn reply_as<T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), EmitError> {
        self.reply(value.as_bytes())
    }

    fn pass_on(&mut self, to: NodeId, key: Option<u64>, payload: &[u8]) -> Result<(), EmitError> {
        let is_hop = self.placement.leaves_group(self.id.node(), to);
        let limit = if is_hop { self.port.max_onward() } else { self.port.max_payload() };
        if payload.len() > limit {
            return self.refuse(EmitError::TooLarge { size: payload.len(), limit });
        }
        if !is_hop {
            self.pending.add(to, payload);
            return Ok(());
        }
        let group =
            self.placement.group_of(to).and_then(|group| self.placement.groups.get(usize::from(group.0)));
        if key.is_none() && group.is_some_and(|group| group.keyed) {
            return self.refuse(EmitError::KeyMissing);
        }
        let sent = self.port.pass_on(Way { source: self.id.node(), target: to, key }, payload);
        self.noting(sent)
    }

    fn noting(&mut self, sent: Result<(), EmitError>) -> Result<(), EmitError> {
        match sent {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&mut self, error: EmitError) -> Result<(), EmitError> {
        // The first refusal is the one that the request fails with.
        self.refused.get_or_insert(error);
        Err(error)
    }
}

/// An output with a key, about to be sent.
#[must_use = "a key does nothing until something is emitted with it"]
pub struct Keyed<'a, 'o> {
    output: &'a mut Output<'o>,
    key: u64,
}

impl Keyed<'_, '_> {
    /// [`Output::emit`] with the key.
    pub fn emit(self, payload: &[u8]) -> Result<(), EmitError> {
        self.output.emit_by(Some(self.key), payload)
    }

    /// [`Output::emit_to`] with the key.
    pub fn emit_to(self, label: &str, payload: &[u8]) -> Result<(), EmitError> {
        self.output.emit_to_by(Some(self.key), label, payload)
    }
}
