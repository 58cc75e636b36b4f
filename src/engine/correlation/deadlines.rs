//! Finding what is due without looking at every root: a lower bound of the deadlines of each *block* of 64 roots,
//! and of each *region* of 64 blocks.
//!
//! Setting a deadline lowers both bounds if they are higher; dropping one does nothing. A bound that has passed
//! is looked into once, and then raised to what is really there. So both cost O(1), and a look for what is
//! due costs one word per region, 64 words per region whose bound has passed, and 64 roots per block.
//!
//! Forbidden: a root is registered, its deadline below no bound, and the raising look did not see it.
//! Registration stores the root, fences, then reads the block's bound and the region's; raising swaps the
//! region's bound, then reads the blocks'; swaps a block's bound, fences, then reads the roots. Each time one of
//! the two sees the other. No one waits for another: each lowers both bounds itself, whoever else is about to.

use std::ops::Range;

use crate::base::sync::{AtomicU64, Ordering, fence};

const NEVER: u64 = u64::MAX;
/// Roots of a block.
const BLOCK: usize = 64;
/// Blocks of a region.
const REGION: usize = 64;

struct Region {
    /// Bound of all its bounds.
    earliest: AtomicU64,
    bounds: [AtomicU64; REGION],
}

pub(super) struct Deadlines {
    regions: Box<[Region]>,
    roots: usize,
}

#[inline(always)]
fn lower(bound: &AtomicU64, deadline_ns: u64) {
    if bound.load(Ordering::SeqCst) > deadline_ns {
        bound.fetch_min(deadline_ns, Ordering::SeqCst);
    }
}

impl Deadlines {
    pub fn new(roots: usize) -> Self {
        let never = || AtomicU64::new(NEVER);
        let region = |_| Region { earliest: never(), bounds: std::array::from_fn(|_| never()) };
        Self { regions: (0..roots.div_ceil(BLOCK * REGION)).map(region).collect(), roots }
    }

    /// Notes the deadline (0 = none) of a root that has just been stored.
    #[inline]
    pub fn set(&self, root: u32, deadline_ns: u64) {
        if deadline_ns == 0 {
            return;
        }
        let block = root as usize / BLOCK;
        let region = &self.regions[block / REGION];
        lower(&region.bounds[block % REGION], deadline_ns);
        lower(&region.earliest, deadline_ns);
    }

    /// No deadline is earlier than this; `None` if there is none at all.
    pub fn earliest(&self) -> Option<u64> {
        let bounds = self.regions.iter().map(|region| region.earliest.load(Ordering::SeqCst));
        bounds.min().filter(|earliest| *earliest != NEVER)
    }

    /// Looks into every block whose bound has passed. `look` is given the roots of such a block and returns
    /// the earliest deadline among them that has not passed (0 = none).
    pub fn due(&self, now_ns: u64, mut look: impl FnMut(Range<u32>) -> u64) {
        for (number, region) in self.regions.iter().enumerate() {
            if region.earliest.load(Ordering::SeqCst) > now_ns {
                continue;
            }
            region.earliest.swap(NEVER, Ordering::SeqCst);
            let mut earliest = NEVER;
            // The last region may have fewer.
            let blocks = (self.roots - number * BLOCK * REGION).div_ceil(BLOCK);
            for (block, bound) in region.bounds.iter().take(blocks).enumerate() {
                let mut lower = bound.load(Ordering::SeqCst);
                if lower <= now_ns {
                    bound.swap(NEVER, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    let first = (number * REGION + block) * BLOCK;
                    let left = look(first as u32..(first + BLOCK).min(self.roots) as u32);
                    let left = if left == 0 { NEVER } else { left };
                    bound.fetch_min(left, Ordering::SeqCst);
                    lower = left;
                }
                earliest = earliest.min(lower);
            }
            region.earliest.fetch_min(earliest, Ordering::SeqCst);
        }
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

    #[test]
    fn a_deadline_is_found_in_every_region() {
        let roots = 3 * BLOCK * REGION + 5;
        let deadlines = Deadlines::new(roots);
        let at: Vec<(u32, u64)> =
            (0..roots as u32).step_by(97).map(|root| (root, 1 + u64::from(root))).collect();
        at.iter().rev().for_each(|&(root, deadline_ns)| deadlines.set(root, deadline_ns));
        for (i, &(root, deadline_ns)) in at.iter().enumerate() {
            assert_eq!(deadlines.earliest(), Some(deadline_ns));
            let mut looked = Vec::new();
            deadlines.due(deadline_ns, |roots| {
                looked.push(roots.clone());
                let later = at[i + 1..].iter().find(|(root, _)| roots.contains(root));
                later.map_or(0, |(_, deadline_ns)| *deadline_ns)
            });
            assert!(looked.len() == 1 && looked[0].contains(&root), "{root}: {looked:?}");
        }
        assert_eq!(deadlines.earliest(), None);
    }
}
