//! Free places of a table: last in, first out, so that a busy place stays in the cache.
//!
//! Source: R. K. Treiber's stack (1986). Deviations: places instead of pointers, and a tag in the head word
//! that changes with every push and pop, so that a head which was popped and pushed again is not taken for
//! the same one.

use crate::base::sync::{AtomicU32, AtomicU64, Ordering};
use crate::os::table::table;

const NONE: u32 = u32::MAX;

/// A stack of place numbers.
pub(super) struct FreeList {
    /// Tag in the high half, first place in the low half.
    head: AtomicU64,
    next: Box<[AtomicU32]>,
}

fn pack(tag: u64, place: u32) -> u64 {
    tag << 32 | u64::from(place)
}

impl FreeList {
    /// All of `0..places`, place 0 on top.
    pub fn new(places: u32) -> Self {
        let mut after = 1..places;
        let next = table(places as usize, || AtomicU32::new(after.next().unwrap_or(NONE)));
        Self { head: AtomicU64::new(pack(0, if places == 0 { NONE } else { 0 })), next }
    }

    pub fn pop(&self) -> Option<u32> {
        // Acquire: pairs with the Release of `push`, so that the place's previous use is over. SeqCst: who waits for
        // a place says so before it looks here, and who pushes one looks for who waits after it.
        let mut head = self.head.load(Ordering::SeqCst);
        loop {
            let place = head as u32;
            let next = self.next.get(place as usize)?;
            // Relaxed: ordered by the Acquire on `head`; a value that is old fails the exchange by its tag.
            let new = pack((head >> 32) + 1, next.load(Ordering::Relaxed));
            match self.head.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(place),
                Err(now) => head = now,
            }
        }
    }

    #[inline(always)]
    pub fn push(&self, place: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.next[place as usize].store(head as u32, Ordering::Relaxed);
            let new = pack((head >> 32) + 1, place);
            // Release: what was done with the place happens before its next use. SeqCst: see `pop`.
            match self.head.compare_exchange_weak(head, new, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Places on the list. Exact only while nobody else uses it.
    pub fn count(&self) -> usize {
        let mut count = 0;
        let mut place = self.head.load(Ordering::Acquire) as u32;
        while let Some(next) = self.next.get(place as usize) {
            count += 1;
            place = next.load(Ordering::Relaxed);
            if count > self.next.len() {
                break;
            }
        }
        count
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn gives_each_place_once_and_the_latest_first() {
        let list = FreeList::new(3);
        assert_eq!([list.pop(), list.pop(), list.pop(), list.pop()], [Some(0), Some(1), Some(2), None]);
        list.push(1);
        list.push(2);
        assert_eq!(list.count(), 2);
        assert_eq!(list.pop(), Some(2));
        assert_eq!(FreeList::new(0).pop(), None);
    }

    #[test]
    fn threads_never_share_a_place() {
        let list = FreeList::new(4);
        let used: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if let Some(place) = list.pop() {
                            assert_eq!(used[place as usize].fetch_add(1, Ordering::Relaxed), 0);
                            used[place as usize].fetch_sub(1, Ordering::Relaxed);
                            list.push(place);
                        }
                    }
                });
            }
        });
        assert_eq!(list.count(), 4);
    }
}
