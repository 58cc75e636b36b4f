//! Runs what is the user's, and lets no panic out of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `run` returns; `None` if it panics. What it panics with may itself panic when it is dropped.
#[inline]
pub(crate) fn contain<T>(run: impl FnOnce() -> T) -> Option<T> {
    let payload = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => return Some(value),
        Err(payload) => payload,
    };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // This one would have its turn without an end.
        std::mem::forget(payload);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    /// Panics with another of its kind when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new(Bomb));
        }
    }

    #[test]
    fn no_panic_comes_out() {
        assert_eq!(contain(|| 7), Some(7));
        assert_eq!(contain(|| -> u32 { resume_unwind(Box::new("wanted")) }), None);
        assert_eq!(contain(|| -> u32 { resume_unwind(Box::new(Bomb)) }), None);
    }
}
