//! What a thread uses again instead of allocating it anew: one thing of a kind, that which it let go last.

use std::cell::Cell;
use std::thread::LocalKey;

/// One thing that waits for its next use.
pub(super) struct Spare<T: 'static>(Cell<Option<Box<T>>>);

impl<T> Spare<T> {
    pub const fn none() -> Self {
        Self(Cell::new(None))
    }

    /// This thread's, if it has one. A thread that is ending has none.
    #[inline(always)]
    pub fn take(of: &'static LocalKey<Self>) -> Option<Box<T>> {
        of.try_with(|spare| spare.0.take()).ok().flatten()
    }

    /// Leaves it to this thread, in place of what it had.
    #[inline(always)]
    pub fn leave(of: &'static LocalKey<Self>, thing: Box<T>) {
        let _ = of.try_with(|spare| spare.0.set(Some(thing)));
    }
}
