//! The callers' ids in flight: no second request under one id.
//!
//! A fixed array of buckets; the roots of a bucket are chained through links kept beside them. A bucket is
//! worked by whoever set its claim bit, for a few instructions; ids that the engine makes are unique by
//! construction and never come here.
//!
//! What names a root, in a bucket or in a link, is one word:
//!
//! ```text
//!   31       30     29 … b        b-1 … 0
//!   CLAIMED  MORE   tag           root + 1, 0 = none
//! ```
//!
//! The tag is a part of the id's hash, so that a chain is searched without a look at the roots in it, each of which is
//! a page of its own in a large table; `MORE` says that the root's link has another behind it, so that the link of a
//! root that stands alone, which is the usual case, is neither written nor read.
//!
//! In a large table a visit to a bucket waits for its line, unless that has been fetched ahead: [`Index::prefetch`]. Ids
//! that count, as callers' own mostly do, have neighbouring buckets for sixteen in a row: one line for all of them.

use std::num::NonZeroU32;

use crate::base::sync::{AtomicU32, Ordering, pause};
use crate::os::table::{prefetch, table};

const CLAIMED: u32 = 1 << 31;
const MORE: u32 = 1 << 30;
const NONE: u32 = 0;
/// Buckets of a line.
const NEIGHBOURS: usize = 16;
/// Buckets for a root: few lines, as long as a cache holds all of them.
const BUCKETS: usize = 2;
/// The same where none does: then each root that shares a bucket is one more line waited for.
const BUCKETS_APART: usize = 8;
/// The lines of so many, two buckets each, take two MiB.
const ROOTS_OF_CACHED_LINES: usize = 1 << 18;
/// Looks at a claimed bucket before its holder is given the processor.
const PATIENCE: u32 = 100;

/// The number of a bucket, + 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bucket(NonZeroU32);

pub(super) struct Index {
    /// A power of two of them.
    lines: Box<[Line]>,
    /// Next root of the chain, by root. Touched only under the bucket's claim.
    links: Box<[AtomicU32]>,
    /// Bits for a root's number.
    root_bits: u32,
}

/// The buckets of a cache line: of each the first root of its chain, with the claim bit on top.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU32; NEIGHBOURS]);

/// Where a number of 128 bits in network order, as [`TraceId::from`](crate::base::ids::TraceId) makes it, differs from
/// its neighbours: the low bits of its last byte, as many as it takes to choose a bucket of a line.
const LAST_SHIFT: u32 = 56;
const LAST: u64 = NEIGHBOURS as u64 - 1;

/// Callers' ids may be random, or counters in either byte order, in any part of the id, or several numbers side by side.
/// The low bits of the hash choose the bucket of a line, and only they depend on the one place where most counters
/// count. Were there a second such place, two fields that count in both would meet in one bucket.
///
/// Both halves of the product count: the low ones of a number that stands high are nought.
#[inline(always)]
fn spread(id: [u64; 2]) -> u64 {
    let far = id[1] & !(LAST << LAST_SHIFT);
    let product = u128::from(id[0] ^ far.rotate_left(32)) * 0x9E37_79B9_7F4A_7C15;
    product as u64 ^ (product >> 64) as u64 ^ (id[1] >> LAST_SHIFT & LAST)
}

impl Index {
    /// For so many roots.
    pub fn new(roots: usize) -> Self {
        let buckets = roots * if roots > ROOTS_OF_CACHED_LINES { BUCKETS_APART } else { BUCKETS };
        let lines = buckets.div_ceil(NEIGHBOURS).next_power_of_two();
        Self {
            lines: table(lines, Line::default),
            links: table(roots, || AtomicU32::new(NONE)),
            root_bits: usize::BITS - roots.leading_zeros(),
        }
    }

    /// The bucket of an id.
    #[inline(always)]
    pub fn bucket_of(&self, id: [u64; 2]) -> Bucket {
        self.bucket_by(spread(id))
    }

    fn bucket_by(&self, hash: u64) -> Bucket {
        let last = (self.lines.len() * NEIGHBOURS - 1) as u32;
        Bucket(NonZeroU32::MIN.saturating_add(hash as u32 & last))
    }

    #[inline(always)]
    fn word(&self, Bucket(number): Bucket) -> &AtomicU32 {
        let number = number.get() as usize - 1;
        let Line(buckets) = &self.lines[number / NEIGHBOURS];
        &buckets[number % NEIGHBOURS]
    }

    /// The word that names a root whose id has this hash, at the end of a chain.
    fn name(&self, hash: u64, root: u32) -> u32 {
        // The low bits have chosen the bucket.
        let tag = (hash >> 32) as u32 & (MORE - 1);
        tag >> self.root_bits << self.root_bits | (root + 1)
    }

    /// The root that a word names; not of `NONE`.
    fn root(&self, name: u32) -> u32 {
        (name & ((1 << self.root_bits) - 1)).wrapping_sub(1)
    }

    fn link(&self, name: u32) -> &AtomicU32 {
        &self.links[self.root(name) as usize]
    }

    /// What is chained behind the root that this word names.
    fn after(&self, name: u32) -> u32 {
        if name & MORE == 0 { NONE } else { self.link(name).load(Ordering::Relaxed) }
    }

    fn claim(word: &AtomicU32) -> u32 {
        let mut looks = 0;
        loop {
            let head = word.load(Ordering::Relaxed);
            // Acquire: pairs with the Release that ends a claim.
            if head & CLAIMED == 0
                && word
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
    /// entered root. Gives the bucket, for [`Index::remove`].
    #[inline(always)]
    pub fn insert(&self, id: [u64; 2], root: u32, id_of: impl Fn(u32) -> [u64; 2]) -> Option<Bucket> {
        let hash = spread(id);
        let (bucket, name) = (self.bucket_by(hash), self.name(hash, root));
        let word = self.word(bucket);
        // Mostly nobody stands there. Release: pairs with the Acquire of whoever claims the bucket next.
        let is_alone = word.load(Ordering::Relaxed) == NONE
            && word.compare_exchange(NONE, name, Ordering::Release, Ordering::Relaxed).is_ok();
        (is_alone || self.insert_before(word, id, name, id_of)).then_some(bucket)
    }

    /// Enters the root that `name` names in front of those who may stand in its bucket.
    #[inline(never)]
    fn insert_before(
        &self,
        word: &AtomicU32,
        id: [u64; 2],
        name: u32,
        id_of: impl Fn(u32) -> [u64; 2],
    ) -> bool {
        let head = Self::claim(word);
        if head == NONE {
            word.store(name, Ordering::Release);
            return true;
        }
        let mut at = head;
        while at != NONE {
            let may_be_it = (at & !MORE) >> self.root_bits == name >> self.root_bits;
            if may_be_it && id_of(self.root(at)) == id {
                word.store(head, Ordering::Release);
                return false;
            }
            at = self.after(at);
        }
        self.link(name).store(head, Ordering::Relaxed);
        word.store(name | MORE, Ordering::Release);
        true
    }

    /// Takes `root` out of its bucket.
    #[inline(always)]
    pub fn remove(&self, bucket: Bucket, root: u32) {
        let word = self.word(bucket);
        let head = word.load(Ordering::Relaxed);
        // Mostly it stands there alone: without others behind it, nobody else can. Release: as in `insert`. Acquire:
        // pairs with the Release of who held the claim before, and looked at this root, which is to be used anew.
        let is_alone = head & (CLAIMED | MORE) == 0
            && word.compare_exchange(head, NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !is_alone {
            self.remove_among(word, root);
        }
    }

    /// Takes `root` out of a bucket in which others may stand.
    #[inline(never)]
    fn remove_among(&self, word: &AtomicU32, root: u32) {
        let head = Self::claim(word);
        if self.root(head) == root {
            return word.store(self.after(head), Ordering::Release);
        }
        // The words that lead to the root: of the one before it, and where that stands, unless it is the head.
        let (mut head, mut before, mut stands_at) = (head, head, None);
        loop {
            debug_assert!(before & MORE != 0, "a root is taken out once");
            let link = self.link(before);
            let at = link.load(Ordering::Relaxed);
            if self.root(at) != root {
                (before, stands_at) = (at, Some(link));
                continue;
            }
            if at & MORE != 0 {
                link.store(self.after(at), Ordering::Relaxed);
            } else if let Some(place) = stands_at {
                place.store(before & !MORE, Ordering::Relaxed);
            } else {
                head &= !MORE;
            }
            return word.store(head, Ordering::Release);
        }
    }

    /// Has what is worked on with this id fetched.
    #[inline(always)]
    pub fn prefetch(&self, id: [u64; 2]) {
        prefetch(self.word(self.bucket_of(id)));
    }

    /// The same, and of ids that count the next line once one has been begun: for who enters them.
    #[inline(always)]
    pub fn prefetch_with_next(&self, id: [u64; 2]) {
        self.prefetch(id);
        if id[1] >> LAST_SHIFT & LAST == 0 {
            // What is carried into the upper half of a number is not worth its instructions.
            let next = id[1].swap_bytes().wrapping_add(NEIGHBOURS as u64).swap_bytes();
            self.prefetch([id[0], next]);
        }
    }

    /// Entered roots.
    pub fn count(&self) -> usize {
        let mut count = 0;
        for word in self.lines.iter().flat_map(|Line(words)| words) {
            let head = Self::claim(word);
            let mut at = head;
            while at != NONE {
                count += 1;
                at = self.after(at);
            }
            word.store(head, Ordering::Release);
        }
        count
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// So many ids of the same bucket.
    fn in_one_bucket(index: &Index, count: usize) -> Vec<[u64; 2]> {
        let bucket = index.bucket_of([0, 7]);
        (0..).map(|number| [number, 7]).filter(|id| index.bucket_of(*id) == bucket).take(count).collect()
    }

    #[test]
    fn reply_08_an_id_is_entered_once_until_taken_out() {
        let index = Index::new(64);
        // All ids fall on one bucket.
        let ids = in_one_bucket(&index, 8);
        let id_of = |root: u32| ids[root as usize % 8];
        for root in 0..8 {
            assert!(index.insert(id_of(root), root, id_of).is_some());
        }
        for root in 8..16 {
            assert_eq!(index.insert(id_of(root), root, id_of), None);
        }
        assert_eq!(index.count(), 8);
        for root in [3, 0, 7, 1] {
            index.remove(index.bucket_of(id_of(root)), root);
            assert!(index.insert(id_of(root), root + 8, id_of).is_some());
        }
        assert_eq!(index.count(), 8);
    }

    #[test]
    fn reply_08_chains_of_any_length_lose_nobody() {
        let index = Index::new(64);
        // All in two buckets; some of them with the same tag.
        let ids: Vec<[u64; 2]> =
            (0..).map(|number| [number, 7]).filter(|id| spread(*id) & 127 < 2).take(40).collect();
        let mut entered: Vec<Option<usize>> = vec![None; 64];
        let mut random = 1u64;
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (root, id) = ((random >> 33) as usize % 64, (random >> 40) as usize % 40);
            if let Some(id) = entered[root].take() {
                index.remove(index.bucket_of(ids[id]), root as u32);
            } else {
                let is_new = entered.iter().all(|other| *other != Some(id));
                let id_of = |root: u32| ids[entered[root as usize].expect("it is entered")];
                let bucket = index.insert(ids[id], root as u32, id_of);
                assert_eq!(bucket, is_new.then(|| index.bucket_of(ids[id])));
                entered[root] = is_new.then_some(id);
            }
            if random >> 57 == 0 {
                assert_eq!(index.count(), entered.iter().flatten().count());
            }
        }
    }

    #[test]
    fn callers_counters_spread_over_the_buckets_wherever_they_stand() {
        let bucket = |id: u128| spread([id as u64, (id >> 64) as u64]) as usize & 2047;
        for shift in 0..=104 {
            let mut chains = [0; 2048];
            for counter in 0..1024u128 {
                let id = counter << shift;
                chains[bucket(id)] += 1;
                let id = id.swap_bytes();
                chains[bucket(id)] += 1;
            }
            let longest = chains.iter().max().copied().unwrap_or_default();
            assert!(longest <= 8, "{longest} in one bucket, shifted by {shift}");
        }
    }

    #[test]
    fn two_numbers_side_by_side_spread_over_the_buckets() {
        let orders: [fn(u64) -> u64; 2] = [|n| n, u64::swap_bytes];
        for clients in [1, 2, 16, 64] {
            for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let index = Index::new(1024);
                let mut chains = HashMap::new();
                for n in 0..1024 {
                    let (one, other) = (orders[first](n % clients), orders[second](n / clients));
                    let id = if second == 0 { [other, one] } else { [one, other] };
                    *chains.entry(index.bucket_of(id)).or_insert(0) += 1;
                }
                let longest = chains.values().max();
                assert!(longest <= Some(&8), "{longest:?} of {clients} clients, {first}, {second}");
            }
        }
    }

    #[test]
    fn reply_08_threads_in_one_bucket_lose_nobody() {
        let index = Index::new(64);
        let ids = in_one_bucket(&index, 6);
        let owners: Vec<AtomicU32> = ids.iter().map(|_| AtomicU32::new(0)).collect();
        // Each thread has roots of its own, and says of each which id it has before it enters it.
        let of_roots: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
        let id_of = |root: u32| ids[of_roots[root as usize].load(Ordering::Relaxed) as usize];
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (index, ids, owners, of_roots) = (&index, &ids, &owners, &of_roots);
                scope.spawn(move || {
                    let mut random = u64::from(thread) + 1;
                    let mut held: Vec<(Bucket, u32, usize)> = Vec::new();
                    for _ in 0..50_000 {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let id = (random >> 40) as usize % ids.len();
                        if held.len() == 3 || random >> 63 == 0 && !held.is_empty() {
                            let (bucket, root, id) = held.swap_remove((random >> 50) as usize % held.len());
                            assert_eq!(owners[id].fetch_sub(1, Ordering::SeqCst), 1);
                            index.remove(bucket, root);
                            continue;
                        }
                        let root =
                            (0..4).map(|n| thread * 4 + n).find(|root| held.iter().all(|h| h.1 != *root));
                        let root = root.expect("at most three are held");
                        of_roots[root as usize].store(id as u32, Ordering::Relaxed);
                        if let Some(bucket) = index.insert(ids[id], root, id_of) {
                            assert_eq!(owners[id].fetch_add(1, Ordering::SeqCst), 0, "entered twice");
                            held.push((bucket, root, id));
                        }
                    }
                    held.into_iter().for_each(|(bucket, root, id)| {
                        owners[id].fetch_sub(1, Ordering::SeqCst);
                        index.remove(bucket, root);
                    });
                });
            }
        });
        assert_eq!(index.count(), 0);
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
                        if let Some(bucket) = index.insert([7, 7], root, |_| [7, 7]) {
                            assert_eq!(entered.fetch_add(1, Ordering::SeqCst), 0);
                            entered.fetch_sub(1, Ordering::SeqCst);
                            index.remove(bucket, root);
                        }
                    }
                });
            }
        });
        assert_eq!(index.count(), 0);
    }
}
