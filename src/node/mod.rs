//! What a user writes: nodes, and the executor that runs the nodes of one group.
//!
//! The same executor runs in a worker process and in the memory profile; only the [`executor::Port`] that
//! its frames go out by differs. That is what makes the two profiles give the same bytes.

pub(crate) mod executor;
mod output;
pub(crate) mod registry;
pub(crate) mod request;

pub use output::{EmitError, Keyed, Output};
pub use registry::BuildError;
pub use request::Request;

use crate::base::failure::NodeError;

/// A unit of execution with state of its own.
///
/// One value serves its group's process for as long as that lives. It is called by one thread at a time.
/// A node that panics fails its request (class `panic`) and is called again for the next one.
pub trait Node: Send {
    /// Handles one request: reads its payload, emits outputs or replies.
    ///
    /// An error ends the request with category `execution`; what was emitted before has gone on.
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError>;
}

impl<F> Node for F
where
    F: FnMut(&Request<'_>, &mut Output<'_>) -> Result<(), NodeError> + Send,
{
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        self(request, output)
    }
}
