//! Which of the latest requests completed: tells a duplicate answer from a late one.
//!
//! Remembers what became of the last `completed_history` hops, exactly: a place per number modulo the count of
//! places, which a newer number takes over. A request has the number of its first hop. The place of a later hop says
//! how far back its request's number is; the place of a request says whether it completed.

use crate::base::ids::Ticket;
use crate::base::sync::{AtomicU64, Ordering};

/// Low bits of a place: the distance back to the request's number. The rest is the number itself.
const BACK_BITS: u32 = 24;
const BACK: u64 = (1 << BACK_BITS) - 1;

pub(super) struct History {
    /// A power of two of them, so that finding one needs no division.
    places: Box<[AtomicU64]>,
    /// How many of the latest numbers are remembered; not more than there are places.
    size: u64,
}

impl History {
    pub fn new(size: usize) -> Self {
        let places = (0..size.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
        Self { places, size: size as u64 }
    }

    fn place(&self, number: u64) -> &AtomicU64 {
        &self.places[number as usize & (self.places.len() - 1)]
    }

    /// Notes that request `number` (from 1) completed.
    pub fn complete(&self, number: u64) {
        self.note(number, 0);
    }

    /// Notes that hop `number` belongs to the earlier request `root`.
    pub fn link(&self, number: u64, root: u64) {
        // A request so old that the distance does not fit is forgotten: its duplicate counts as late.
        if let Some(back @ 1..=BACK) = number.checked_sub(root) {
            self.note(number, back);
        }
    }

    fn note(&self, number: u64, back: u64) {
        // A request that outlived `completed_history` later ones does not displace a newer one. Two that share a
        // place and complete at the same instant on different lanes may leave the older one there: the newer
        // one's duplicate then counts as late. Release: who learns of the end finds it here.
        let place = self.place(number);
        let standing = place.load(Ordering::Relaxed) >> BACK_BITS;
        if (number % Ticket::GENERATIONS).wrapping_sub(standing) % Ticket::GENERATIONS
            < Ticket::GENERATIONS / 2
        {
            place.store(number << BACK_BITS | back, Ordering::Release);
        }
    }

    /// Whether the request that the hop of this generation belongs to completed, as far as it is remembered;
    /// `latest` is the newest number given out.
    pub fn knows(&self, generation: u64, latest: u64) -> bool {
        match self.back(generation, latest) {
            Some(0) => true,
            Some(back) => self.back(generation.wrapping_sub(back), latest) == Some(0),
            None => false,
        }
    }

    fn back(&self, generation: u64, latest: u64) -> Option<u64> {
        let age = latest.wrapping_sub(generation) % Ticket::GENERATIONS;
        if age >= self.size.min(latest) {
            return None;
        }
        let number = latest - age;
        let word = self.place(number).load(Ordering::Acquire);
        (word >> BACK_BITS == number % Ticket::GENERATIONS).then_some(word & BACK)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn reply_06_the_memory_of_completed_requests_is_bounded() {
        let history = History::new(4);
        for number in [1, 2, 4] {
            history.complete(number);
        }
        assert_eq!([1, 2, 3, 4].map(|number| history.knows(number, 4)), [true, true, false, true]);
        history.complete(5);
        assert_eq!([1, 2, 4, 5].map(|number| history.knows(number, 5)), [false, true, true, true]);
        assert!(!history.knows(2, 6), "forgotten by age, too");
        history.complete(1);
        assert!(history.knows(5, 6), "an old straggler displaces nothing");
        assert!(!history.knows(0, 6));
    }

    #[test]
    fn reply_06_a_later_hop_is_known_by_its_request() {
        let history = History::new(8);
        history.link(3, 1);
        history.link(4, 2);
        history.complete(1);
        assert_eq!([1, 2, 3, 4].map(|number| history.knows(number, 4)), [true, false, true, false]);
        assert!(!history.knows(3, 9), "its request is forgotten");
    }
}
