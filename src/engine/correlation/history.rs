//! Which of the latest requests completed: tells a duplicate answer from a late one.
//!
//! Remembers the numbers of completed requests among the last `completed_history` registered ones, exactly:
//! a place per number modulo the size, which a newer number takes over.

use crate::base::ids::Ticket;
use crate::base::sync::{AtomicU64, Ordering};

pub(super) struct History {
    places: Box<[AtomicU64]>,
}

impl History {
    pub fn new(size: usize) -> Self {
        Self { places: (0..size).map(|_| AtomicU64::new(0)).collect() }
    }

    fn place(&self, number: u64) -> &AtomicU64 {
        &self.places[(number % self.places.len() as u64) as usize]
    }

    /// Notes that request `number` (from 1) completed.
    pub fn complete(&self, number: u64) {
        // A request that outlived `completed_history` later ones does not displace a newer one. Two that share a
        // place and complete at the same instant on different lanes may leave the older one there: the newer
        // one's duplicate then counts as late. Release: who learns of the end finds it here.
        let place = self.place(number);
        if place.load(Ordering::Relaxed) < number {
            place.store(number, Ordering::Release);
        }
    }

    /// Whether the request with this generation completed, as far as it is remembered; `latest` is the
    /// newest number given out.
    pub fn knows(&self, generation: u64, latest: u64) -> bool {
        let age = latest.wrapping_sub(generation) % Ticket::GENERATIONS;
        age < self.places.len() as u64
            && age < latest
            && self.place(latest - age).load(Ordering::Acquire) == latest - age
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
}
