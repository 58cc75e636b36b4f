//! Finding what is due without looking at every root: a tree of lower bounds of their deadlines. A bound of the lowest
//! level is that of a *block* of 64 roots, one of a higher level that of 64 bounds below it; the highest level has at
//! most 64.
//!
//! Setting a deadline lowers the bounds that are higher, one a level; dropping one does nothing. A bound that has passed
//! is looked into once, and then raised to what is really there. So both cost the same however many roots there are, but
//! for one word more with each 64 times as many, and a look for what is due costs at most 64 words a level, and 64 roots
//! a block, for each bound that has passed.
//!
//! Forbidden: a root is registered, its deadline below no bound, and the raising look did not see it.
//! Registration stores the root, fences, then reads its bounds, the lowest first; raising begins with the highest, and
//! swaps a bound, fences, then reads what is below it. On each level one of the two sees the other. No one waits for
//! another: each lowers all bounds itself, whoever else is about to.

use std::ops::Range;

use crate::base::sync::{AtomicU64, Ordering, fence};

const NEVER: u64 = u64::MAX;
/// Roots of a block, and bounds below one bound.
const FAN: usize = 64;

pub(super) struct Deadlines {
    /// The lowest first.
    levels: Box<[Box<[AtomicU64]>]>,
    roots: usize,
}

#[inline(always)]
fn lower(bound: &AtomicU64, deadline_ns: u64) {
    if bound.load(Ordering::SeqCst) > deadline_ns {
        bound.fetch_min(deadline_ns, Ordering::SeqCst);
    }
}

fn children(bound: usize, count: usize) -> Range<usize> {
    bound * FAN..((bound + 1) * FAN).min(count)
}

impl Deadlines {
    pub fn new(roots: usize) -> Self {
        let level = |count| (0..count).map(|_| AtomicU64::new(NEVER)).collect();
        let counts = std::iter::successors(Some(roots.div_ceil(FAN)), |below| {
            (*below > FAN).then(|| below.div_ceil(FAN))
        });
        Self { levels: counts.map(level).collect(), roots }
    }

    /// Notes the deadline (0 = none) of a root that has just been stored.
    #[inline]
    pub fn set(&self, root: u32, deadline_ns: u64) {
        if deadline_ns == 0 {
            return;
        }
        let mut bound = root as usize;
        for level in &self.levels {
            bound /= FAN;
            lower(&level[bound], deadline_ns);
        }
    }

    /// No deadline is earlier than this; `None` if there is none at all.
    pub fn earliest(&self) -> Option<u64> {
        let highest = self.levels.last()?;
        let bounds = highest.iter().map(|bound| bound.load(Ordering::SeqCst));
        bounds.min().filter(|earliest| *earliest != NEVER)
    }

    /// Looks into every block whose bound has passed. `look` is given the roots of such a block and returns
    /// the earliest deadline among them that has not passed (0 = none).
    pub fn due(&self, now_ns: u64, mut look: impl FnMut(Range<u32>) -> u64) {
        if let Some(highest) = self.levels.last() {
            self.due_within(&self.levels, 0..highest.len(), now_ns, &mut look);
        }
    }

    /// The same for these bounds of the highest of `levels`; the earliest deadline that is left below them.
    fn due_within(
        &self,
        levels: &[Box<[AtomicU64]>],
        bounds: Range<usize>,
        now_ns: u64,
        look: &mut dyn FnMut(Range<u32>) -> u64,
    ) -> u64 {
        let Some((level, below)) = levels.split_last() else { return NEVER };
        let mut earliest = NEVER;
        for (number, bound) in bounds.clone().zip(&level[bounds]) {
            let mut lower = bound.load(Ordering::SeqCst);
            if lower <= now_ns {
                bound.swap(NEVER, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                lower = match below.last() {
                    Some(next) => self.due_within(below, children(number, next.len()), now_ns, look),
                    None => {
                        let roots = children(number, self.roots);
                        match look(roots.start as u32..roots.end as u32) {
                            0 => NEVER,
                            left => left,
                        }
                    }
                };
                bound.fetch_min(lower, Ordering::SeqCst);
            }
            earliest = earliest.min(lower);
        }
        earliest
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
    fn a_deadline_is_found_on_every_level() {
        for (roots, levels) in [(1, 1), (FAN * FAN, 1), (3 * FAN * FAN + 5, 2), (FAN * FAN * FAN + 1, 3)] {
            assert_eq!(Deadlines::new(roots).levels.len(), levels, "{roots}");
            every_deadline_is_found(roots);
        }
        assert_eq!(Deadlines::new(0).earliest(), None);
    }

    fn every_deadline_is_found(roots: usize) {
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
