//! Which engine a thread belongs to: one that an engine has started cannot wait for that engine's end.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names an engine within this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u64);

/// Of a thread that belongs to no engine.
const NOBODY: Owner = Owner(0);

thread_local! {
    static CURRENT: Cell<Owner> = const { Cell::new(NOBODY) };
}

impl Owner {
    /// One that nobody else is.
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only its own order matters.
        Self(COUNT.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The calling thread belongs to it from now on.
    pub fn adopt(self) {
        CURRENT.set(self);
    }

    /// Whether the calling thread does.
    pub fn is_current(self) -> bool {
        // Without the variable the thread is ending, and no longer in our code.
        CURRENT.try_with(Cell::get).is_ok_and(|current| current == self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_belongs_to_whom_it_was_given() {
        let (one, other) = (Owner::new(), Owner::new());
        assert!(!one.is_current() && !other.is_current());
        std::thread::spawn(move || {
            one.adopt();
            assert!(one.is_current() && !other.is_current());
        })
        .join()
        .unwrap();
        assert!(!one.is_current());
    }
}
