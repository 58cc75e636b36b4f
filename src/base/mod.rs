//! Words that everything else is said in: identities, limits, failure categories, deadlines.
//!
//! Pure: no memory that leaves the process, no system call, no thread.

pub mod clock;
pub mod contain;
pub mod failure;
pub mod ids;
pub mod limits;
pub mod refusal;
pub mod resource;
pub mod sync;
pub mod waiting;
