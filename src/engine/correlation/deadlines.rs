//! Finding what is due without looking at every root: a lower bound of the deadlines of each 64 roots.
//!
//! Setting a deadline lowers the bound if it is higher; dropping one does nothing. A bound that has passed
//! is looked into once, and then raised to what is really there. So both cost O(1), and a look for what is
//! due costs one word per 64 roots and 64 roots per bound that has passed.
//!
//! Forbidden: a root is registered, its deadline below no bound, and the raising look did not see it.
//! Registration stores the root, fences, then reads the bound; raising swaps the bound, fences, then reads
//! the roots: one of the two sees the other.

use std::ops::Range;

use crate::base::sync::{AtomicU64, Ordering, fence};

const NEVER: u64 = u64::MAX;
const BLOCK: usize = 64;

pub(super) struct Deadlines {
    bounds: Box<[AtomicU64]>,
    /// Bound of all bounds.
    earliest: AtomicU64,
    roots: usize,
}

impl Deadlines {
    pub fn new(roots: usize) -> Self {
        Self {
            bounds: (0..roots.div_ceil(BLOCK)).map(|_| AtomicU64::new(NEVER)).collect(),
            earliest: AtomicU64::new(NEVER),
            roots,
        }
    }

    /// Notes the deadline (0 = none) of a root that has just been stored.
    #[inline]
    pub fn set(&self, root: u32, deadline_ns: u64) {
        if deadline_ns == 0 {
            return;
        }
        for bound in [&self.bounds[root as usize / BLOCK], &self.earliest] {
            if bound.load(Ordering::SeqCst) > deadline_ns {
                bound.fetch_min(deadline_ns, Ordering::SeqCst);
            }
        }
    }

    /// No deadline is earlier than this; `None` if there is none at all.
    pub fn earliest(&self) -> Option<u64> {
        Some(self.earliest.load(Ordering::SeqCst)).filter(|earliest| *earliest != NEVER)
    }

    /// Looks into every block whose bound has passed. `look` is given the roots of such a block and returns
    /// the earliest deadline among them that has not passed (0 = none).
    pub fn due(&self, now_ns: u64, mut look: impl FnMut(Range<u32>) -> u64) {
        if self.earliest.load(Ordering::SeqCst) > now_ns {
            return;
        }
        self.earliest.swap(NEVER, Ordering::SeqCst);
        let mut earliest = NEVER;
        for (block, bound) in self.bounds.iter().enumerate() {
            let mut lower = bound.load(Ordering::SeqCst);
            if lower <= now_ns {
                bound.swap(NEVER, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let first = block * BLOCK;
                let left = look(first as u32..(first + BLOCK).min(self.roots) as u32);
                let left = if left == 0 { NEVER } else { left };
                bound.fetch_min(left, Ordering::SeqCst);
                lower = left;
            }
            earliest = earliest.min(lower);
        }
        self.earliest.fetch_min(earliest, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_may_be_due_are_looked_into() {
        let deadlines = Deadlines::new(200);
        let at = [(3u32, 50u64), (70, 90), (71, 40), (199, 300)];
        at.iter().for_each(|&(root, deadline_ns)| deadlines.set(root, deadline_ns));
        assert_eq!(deadlines.earliest(), Some(40));
        let look = |now_ns: u64| {
            let mut looked = Vec::new();
            deadlines.due(now_ns, |roots| {
                looked.push(roots.start / 64);
                let in_block = at.iter().filter(|(root, _)| roots.contains(root));
                in_block.map(|(_, ns)| *ns).filter(|ns| *ns > now_ns).min().unwrap_or(0)
            });
            looked
        };
        assert_eq!(look(39), Vec::<u32>::new());
        assert_eq!(look(40), [1]);
        assert_eq!(deadlines.earliest(), Some(50));
        assert_eq!(look(95), [0, 1]);
        assert_eq!(deadlines.earliest(), Some(300));
        assert_eq!(look(400), [3]);
        assert_eq!(deadlines.earliest(), None);
    }
}
