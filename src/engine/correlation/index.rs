//! The callers' ids in flight: no second request under one id.
//!
//! A fixed array of buckets; the roots of a bucket are chained through links kept beside them. A bucket is
//! worked by whoever set its claim bit, for a few instructions; ids that the engine makes are unique by
//! construction and never come here.

use crate::base::sync::{AtomicU32, Ordering, pause};

const END: u32 = CLAIMED - 1;
const CLAIMED: u32 = 1 << 31;
/// Looks at a claimed bucket before its holder is given the processor.
const PATIENCE: u32 = 100;

pub(super) struct Index {
    /// First root of the chain, with the claim bit on top.
    buckets: Box<[AtomicU32]>,
    /// Next root of the chain, by root. Touched only under the bucket's claim.
    links: Box<[AtomicU32]>,
}

/// Callers' ids may be random, or counters in either byte order, in any part of the id. Both halves of the product
/// count: the low ones of a number that stands high are nought.
#[inline(always)]
fn spread(id: [u64; 2]) -> usize {
    let product = u128::from(id[0] ^ id[1].rotate_left(32)) * 0x9E37_79B9_7F4A_7C15;
    (product as u64 ^ (product >> 64) as u64) as usize
}

impl Index {
    pub fn new(roots: usize) -> Self {
        let buckets = (roots * 2).next_power_of_two();
        Self {
            buckets: (0..buckets).map(|_| AtomicU32::new(END)).collect(),
            links: (0..roots).map(|_| AtomicU32::new(END)).collect(),
        }
    }

    fn bucket(&self, id: [u64; 2]) -> &AtomicU32 {
        &self.buckets[spread(id) & (self.buckets.len() - 1)]
    }

    fn claim(bucket: &AtomicU32) -> u32 {
        let mut looks = 0;
        loop {
            let head = bucket.load(Ordering::Relaxed);
            // Acquire: pairs with the Release that ends a claim.
            if head & CLAIMED == 0
                && bucket
                    .compare_exchange_weak(head, head | CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return head;
            }
            looks += 1;
            if looks % PATIENCE == 0 { std::thread::yield_now() } else { pause() }
        }
    }

    /// Enters `root` under `id`, unless a root whose id it is stands there already. `id_of` tells the id of an
    /// entered root.
    pub fn insert(&self, id: [u64; 2], root: u32, id_of: impl Fn(u32) -> [u64; 2]) -> bool {
        let bucket = self.bucket(id);
        let head = Self::claim(bucket);
        let mut at = head;
        while at != END {
            if id_of(at) == id {
                bucket.store(head, Ordering::Release);
                return false;
            }
            at = self.links[at as usize].load(Ordering::Relaxed);
        }
        self.links[root as usize].store(head, Ordering::Relaxed);
        bucket.store(root, Ordering::Release);
        true
    }

    /// Takes `root` out.
    pub fn remove(&self, id: [u64; 2], root: u32) {
        let bucket = self.bucket(id);
        let head = Self::claim(bucket);
        let after = self.links[root as usize].load(Ordering::Relaxed);
        if head == root {
            return bucket.store(after, Ordering::Release);
        }
        let mut at = head;
        while at != END {
            let link = &self.links[at as usize];
            let next = link.load(Ordering::Relaxed);
            if next == root {
                link.store(after, Ordering::Relaxed);
                break;
            }
            at = next;
        }
        debug_assert!(at != END, "a root is taken out once");
        bucket.store(head, Ordering::Release);
    }

    /// Entered roots.
    pub fn count(&self) -> usize {
        let mut count = 0;
        for bucket in &self.buckets {
            let head = Self::claim(bucket);
            let mut at = head;
            while at != END {
                count += 1;
                at = self.links[at as usize].load(Ordering::Relaxed);
            }
            bucket.store(head, Ordering::Release);
        }
        count
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn reply_08_an_id_is_entered_once_until_taken_out() {
        let index = Index::new(64);
        // All ids fall on few buckets, so that chains are long.
        let id_of = |root: u32| [u64::from(root % 8), 0];
        for root in 0..8 {
            assert!(index.insert(id_of(root), root, id_of));
        }
        for root in 8..16 {
            assert!(!index.insert(id_of(root), root, id_of));
        }
        assert_eq!(index.count(), 8);
        for root in [3, 0, 7, 1] {
            index.remove(id_of(root), root);
            assert!(index.insert(id_of(root), root + 8, id_of));
        }
        assert_eq!(index.count(), 8);
    }

    #[test]
    fn callers_counters_spread_over_the_buckets_wherever_they_stand() {
        for shift in 0..=104 {
            let mut chains = [0; 2048];
            for counter in 0..1024u128 {
                let id = counter << shift;
                chains[spread([id as u64, (id >> 64) as u64]) & 2047] += 1;
                let id = id.swap_bytes();
                chains[spread([id as u64, (id >> 64) as u64]) & 2047] += 1;
            }
            let longest = chains.iter().max().copied().unwrap_or_default();
            assert!(longest <= 8, "{longest} in one bucket, shifted by {shift}");
        }
    }

    #[test]
    fn reply_08_of_many_threads_one_enters() {
        let index = Index::new(8);
        let entered = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for root in 0..4 {
                let (index, entered) = (&index, &entered);
                scope.spawn(move || {
                    for _ in 0..50_000 {
                        if index.insert([7, 7], root, |_| [7, 7]) {
                            assert_eq!(entered.fetch_add(1, Ordering::SeqCst), 0);
                            entered.fetch_sub(1, Ordering::SeqCst);
                            index.remove([7, 7], root);
                        }
                    }
                });
            }
        });
        assert_eq!(index.count(), 0);
    }
}
