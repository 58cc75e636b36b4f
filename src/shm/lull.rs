//! How long who waits for a reply leaves it alone before the first look.
//!
//! Who looks for a frame fetches the line that its writer is about to write, and the writer has to fetch it back: one
//! crossing more, which between two core complexes is a quarter of the whole way. So the worker takes the lines of
//! its next reply while it waits for the request, and the caller leaves them alone until shortly before they usually come.
//!
//! What is usual is learned from each wait. A frame that is there at the first look may have been there for long: now
//! and then that look comes a pause earlier. A frame that is not there yet makes it a pause later, however many were
//! missing: a look that came too early has itself delayed the frame. One that takes much longer says nothing: slow
//! nodes among fast ones make nobody late. Nobody ever looks later than [`MOST_PAUSES`].
//!
//! Only one side does so. Two that learn from each other never get earlier again: when one of them looks earlier, its
//! next frame is earlier by as much, and the other is still away.

use crate::base::sync::pause;

/// 27 ns each on the machines that this was measured on: within it comes what a node does at once.
const MOST_PAUSES: u8 = 16;
/// A frame that takes more looks than this says nothing of the next one: those that follow each other at once, and a few
/// with pauses between them (`spin.rs`), a microsecond in all.
const MOST_LOOKS: u32 = 208;
/// Frames found at the first look before that look comes earlier.
const OFTEN: u8 = 8;

/// What is known of the waits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lull {
    pauses: u8,
    /// Frames found at the first look since the last change.
    found: u8,
}

impl Lull {
    /// Waits for the usual time.
    #[inline(always)]
    pub fn pass(self) {
        for _ in 0..self.pauses {
            pause();
        }
    }

    /// What is known after a wait in which so many looks found nothing.
    #[inline(always)]
    #[must_use]
    pub fn after(self, looks: u32) -> Self {
        let Self { pauses, found } = self;
        match looks {
            0 if found + 1 < OFTEN => Self { pauses, found: found + 1 },
            0 => Self { pauses: pauses.saturating_sub(1), found: 0 },
            1..=MOST_LOOKS => Self { pauses: MOST_PAUSES.min(pauses + 1), found: 0 },
            _ => self,
        }
    }

    /// As one number.
    #[inline(always)]
    pub fn to_word(self) -> u32 {
        u32::from(self.pauses) | u32::from(self.found) << 8
    }

    /// From what [`Lull::to_word`] gave.
    #[inline(always)]
    pub fn from_word(word: u32) -> Self {
        Self { pauses: word as u8, found: (word >> 8) as u8 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The pauses after waits for frames that each take so many.
    fn learned(takes: impl IntoIterator<Item = u32>) -> u8 {
        let lull = takes.into_iter().fold(Lull::default(), |lull, takes| {
            let lull = lull.after(takes.saturating_sub(lull.pauses.into()));
            assert!(lull.pauses <= MOST_PAUSES && Lull::from_word(lull.to_word()) == lull);
            lull
        });
        lull.pauses
    }

    #[test]
    fn the_first_look_comes_shortly_before_or_after_the_usual_time() {
        for takes in 0..=u32::from(MOST_PAUSES) {
            for waits in 16..100 {
                let learned = u32::from(learned(vec![takes; waits]));
                assert!(learned == takes || learned + 1 == takes, "{takes}: {learned}");
            }
        }
    }

    #[test]
    fn what_takes_long_makes_nobody_late() {
        assert_eq!(learned([1_000; 100]), 0);
        let mixed = (0..1_000).map(|wait| if wait % 2 == 0 { 4 } else { 400 });
        assert!((3..=4).contains(&learned(mixed)));
    }

    #[test]
    fn faster_than_before_is_learned_too() {
        let slow_then_fast = std::iter::repeat_n(12, 10).chain(std::iter::repeat_n(2, 100));
        assert!((1..=2).contains(&learned(slow_then_fast)));
    }
}
