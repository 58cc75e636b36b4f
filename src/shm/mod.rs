//! Mapped memory and what is built directly on it: view, segment, ring, arena, signal, and how one looks.
//!
//! The other process may write anything at any time into the segment that it owns. No reference is ever
//! formed over such memory, except to an atomic; `view.rs` alone holds raw loads, stores and copies.
//! Every number read here is a claim: read once, bounded by the caller against private state.

pub mod arena;
pub mod block;
pub mod lull;
#[cfg(all(test, loom))]
mod model;
pub mod ring;
pub mod segment;
pub mod signal;
pub mod spin;
pub mod view;
