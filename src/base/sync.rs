//! The one door to atomics, so that a model checker can stand behind it.
//!
//! Under `--cfg loom` the same code runs against loom's atomics. Elsewhere `src/` names `std::sync::atomic` only
//! for words that the kernel waits on (`os/futex.rs`), for words in mapped memory (`shm/view.rs`), which cannot
//! be modelled as private atomics, and for flags that no model checks; `tests/structure/main.rs` lists the files.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Tells the processor that this is a waiting loop.
#[inline(always)]
pub fn pause() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
