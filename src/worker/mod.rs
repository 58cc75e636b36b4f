//! The child's side: receive the bundle, build the nodes, serve.
//!
//! A worker serves one lane with one thread. A second one answers the doorbell and watches the bootstrap socket:
//! the end of either means that the engine is gone, whereupon the whole process group ends.

mod birth;
mod line;
mod serve;

#[cfg(feature = "testing")]
pub(crate) use birth::{ENGINE_WORD_MS, run_with};
pub(crate) use birth::{MARKER, is_inside_worker, is_worker, run};
#[cfg(feature = "testing")]
pub(crate) use line::Line;
