//! Where a node's results go.

use thiserror::Error;

use crate::base::failure::{ExecutionClass, NodeError};
use crate::base::ids::NodeId;
use crate::node::executor::{Pending, Port, Reply};
use crate::plan::placement::PlacedNode;

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
}

impl EmitError {
    pub(crate) fn class(self) -> ExecutionClass {
        match self {
            Self::NoSuchEdge => ExecutionClass::NoSuchEdge,
            Self::TooLarge { .. } => ExecutionClass::TooLarge,
            Self::NoRoom => ExecutionClass::NoRoom,
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
    pub(super) node: &'a PlacedNode,
    pub(super) pending: &'a mut Pending,
    pub(super) port: &'a mut dyn Port,
    pub(super) reply: Reply,
    pub(super) refused: Option<EmitError>,
}

impl Output<'_> {
    /// Sends `payload` along the node's only edge; a node without edges replies.
    pub fn emit(&mut self, payload: &[u8]) -> Result<(), EmitError> {
        match self.node.edges.as_slice() {
            [] => self.reply(payload),
            [edge] => self.pass_on(edge.to, payload),
            _ => self.refuse(EmitError::NoSuchEdge),
        }
    }

    /// Sends `payload` along the edge with this label.
    pub fn emit_to(&mut self, label: &str, payload: &[u8]) -> Result<(), EmitError> {
        match self.node.edges.iter().find(|edge| edge.label == label) {
            Some(edge) => self.pass_on(edge.to, payload),
            None => self.refuse(EmitError::NoSuchEdge),
        }
    }

    /// Ends the request with `payload`. A second reply to one request is dropped and counted.
    pub fn reply(&mut self, payload: &[u8]) -> Result<(), EmitError> {
        let sent = self.port.reply(self.reply, payload);
        self.noting(sent)
    }

    /// Ends the request with `len` bytes that `fill` writes in place. What `fill` leaves alone is unspecified.
    pub fn reply_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), EmitError> {
        let mut fill = Some(fill);
        let sent = self.port.reply_with(self.reply, len, &mut |room| {
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

    fn pass_on(&mut self, to: NodeId, payload: &[u8]) -> Result<(), EmitError> {
        let limit = self.port.max_payload();
        if payload.len() > limit {
            return self.refuse(EmitError::TooLarge { size: payload.len(), limit });
        }
        self.pending.add(to, payload);
        Ok(())
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
