//! Every layout that leaves the process: bytes and offsets, no behaviour.
//!
//! ```text
//! request segment (engine writes)              reply segment (worker writes)
//! ┌──────────────────────────────┐             ┌──────────────────────────────┐
//! │ header              segment  │             │ header              segment  │
//! │ control words       control  │             │ control words       control  │
//! │ cancelled words              │             │ reply slots        envelope  │
//! │ release ring        release  │             │ reply arena                  │
//! │ request slots      envelope  │             └──────────────────────────────┘
//! │ request arena                │
//! └──────────────────────────────┘
//! ```
//!
//! Beside them: the messages on the bootstrap socket (`bootstrap`) and on the doorbell (`doorbell`).
//!
//! `tests/golden/layout.txt` pins all sizes and offsets; a change there needs a new
//! [`segment::LAYOUT_VERSION`].

pub mod bootstrap;
pub mod control;
pub mod doorbell;
pub mod envelope;
pub mod error;
pub mod geometry;
pub mod release;
pub mod segment;
