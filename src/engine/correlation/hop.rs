//! One crossing of a root into a group, as the ticket of a frame names it.
//!
//! An entry belongs to one root's set for ever. It is opened by whoever registers the root, or by whoever pins
//! the root and hands a branch on; it is closed by the reader of its LAST. What is left in it when its root is
//! freed is stale: its number is smaller than that of the root that uses the place next.

use super::root::GENERATION_SHIFT;
use crate::base::ids::{GroupId, Ticket};
use crate::base::sync::{AtomicU64, Ordering};

/// A hop's entry.
#[derive(Default)]
pub(super) struct Hop {
    /// Generation, and whether the hop is open.
    word: AtomicU64,
    /// Lane (16 bits) and incarnation (48 bits); [`NOWHERE`] until it has one.
    lane: AtomicU64,
    /// Lane (high 16 bits), and position in its request ring, + 1; 0 = not placed yet. One word, for who ends the
    /// root while the entry is being opened anew: a position of one lane must not be cancelled in another.
    place: AtomicU64,
    /// Group (16 bits), outputs taken (16), hops of its path up to this one (15), whether it runs again (1),
    /// outputs to be skipped (16).
    way: AtomicU64,
}

/// Who a frame comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub lane: u16,
    pub incarnation: u64,
}

impl Source {
    fn to_word(self) -> u64 {
        u64::from(self.lane) | self.incarnation << 16
    }
}

const HOP_OPEN: u64 = 1;
const TAKEN: u32 = 16;
const DEPTH: u32 = 32;
const RERUN: u64 = 1 << 47;
const SKIP: u32 = 48;
/// The largest number of outputs that is counted.
const COUNT: u64 = 0xFFFF;
const POSITION_BITS: u32 = 48;
const POSITION: u64 = (1 << POSITION_BITS) - 1;
/// No lane yet.
const NOWHERE: u64 = u64::MAX;

/// How a ticket relates to the hop entry that it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HopState {
    /// Its generation was never issued for this slot.
    NeverIssued,
    /// Of an earlier user of the slot, or closed.
    Past,
    /// Open, and asked of this source.
    Open,
    /// Open, but asked of somebody else.
    Foreign,
}

/// Whether generation `a` was issued after `b`. They are counted round: what is less than half a round ahead
/// is later.
pub(super) fn is_later(a: u64, b: u64) -> bool {
    let ahead = a.wrapping_sub(b) % Ticket::GENERATIONS;
    ahead != 0 && ahead < Ticket::GENERATIONS / 2
}

impl Hop {
    /// `target`: none if it must wait before it gets its lane. `depth`: hops of its path, this one included.
    pub fn open(&self, generation: u64, target: Option<Source>, group: GroupId, depth: u32) {
        self.lane.store(target.map_or(NOWHERE, Source::to_word), Ordering::Relaxed);
        self.place.store(0, Ordering::Relaxed);
        self.way.store(u64::from(group.0) | u64::from(depth & 0x7FFF) << DEPTH, Ordering::Relaxed);
        // Release: pairs with the Acquire in `state`.
        self.word.store(generation << GENERATION_SHIFT | HOP_OPEN, Ordering::Release);
    }

    /// Gives the hop its lane. Release: see `placed`; the position, which is stored later, decides.
    pub fn assign(&self, target: Source) {
        self.lane.store(target.to_word(), Ordering::Release);
    }

    /// Closes the hop of a root that the caller is ending: nobody else opens or closes it meanwhile.
    pub fn close_of_ending(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !HOP_OPEN, Ordering::Release);
    }

    /// Closes the hop if it is still the one of `generation`; whether it did.
    ///
    /// Forbidden: a frame ends its root and closes its hop, and in between the owner has freed the root and the
    /// place has been opened anew. A close without the generation would close the new hop, and its reply would
    /// be dropped as late.
    pub fn close(&self, generation: u64) -> bool {
        let closed = generation << GENERATION_SHIFT;
        let open = closed | HOP_OPEN;
        self.word.compare_exchange(open, closed, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Its frame stands at this position of its lane.
    #[inline]
    pub fn place(&self, position: u64) {
        let lane = self.lane().expect("a hop has its lane before its place there");
        // Relaxed: the sender places, fences, then looks at its root; who cancels ends the root, fences, then
        // looks here.
        self.place.store(u64::from(lane) << POSITION_BITS | (position + 1) & POSITION, Ordering::Relaxed);
    }

    /// Lane and incarnation that it is asked of, and its place there, once it has been sent.
    ///
    /// A hop that is taken back from a dead worker loses its place before it gets the successor's lane. So a place
    /// that is the same before and after the look at the lane belongs to it.
    pub fn placed(&self) -> Option<(Source, u64)> {
        let place = self.place.load(Ordering::Acquire);
        let lane = self.lane.load(Ordering::Acquire);
        let source = Source { lane: lane as u16, incarnation: lane >> 16 };
        let is_there = (place >> POSITION_BITS) as u16 == source.lane
            && self.place.load(Ordering::Relaxed) == place
            && lane != NOWHERE;
        let position = (place & POSITION).checked_sub(1)?;
        is_there.then_some((source, position))
    }

    /// Its lane, if it has one.
    pub fn lane(&self) -> Option<u16> {
        Some(self.lane.load(Ordering::Relaxed)).filter(|lane| *lane != NOWHERE).map(|lane| lane as u16)
    }

    pub fn group(&self) -> GroupId {
        GroupId(self.way.load(Ordering::Relaxed) as u16)
    }

    pub fn depth(&self) -> u32 {
        (self.way.load(Ordering::Relaxed) >> DEPTH & 0x7FFF) as u32
    }

    /// Takes note of one more output; true if it has gone on in an earlier run of the same request. Only the
    /// holder of the lane's reader role calls this.
    pub fn is_repeated_output(&self) -> bool {
        let way = self.way.load(Ordering::Relaxed);
        if way >> SKIP != 0 {
            self.way.store(way - (1 << SKIP), Ordering::Relaxed);
            return true;
        }
        if way >> TAKEN & COUNT != COUNT {
            self.way.store(way + (1 << TAKEN), Ordering::Relaxed);
        }
        false
    }

    /// Takes it back from a lane whose worker has died: it is to run again, and what it had emitted is not to go on
    /// twice. False if it has run again before, or more was taken than can be counted.
    pub fn take_back(&self) -> bool {
        let way = self.way.load(Ordering::Relaxed);
        let taken = way >> TAKEN & COUNT;
        if way & RERUN != 0 || taken == COUNT {
            return false;
        }
        self.way.store(way & !(COUNT << SKIP) | taken << SKIP | RERUN, Ordering::Relaxed);
        // Release: see `placed`.
        self.place.store(0, Ordering::Release);
        true
    }

    pub fn generation(&self) -> u64 {
        self.word.load(Ordering::Acquire) >> GENERATION_SHIFT
    }

    /// Whether the hop, open or closed, is of the root of this generation or a later one.
    pub fn is_since(&self, root: u64) -> bool {
        !is_later(root, self.generation())
    }

    /// Whether it is open besides.
    pub fn is_open_since(&self, root: u64) -> bool {
        self.word.load(Ordering::Acquire) & HOP_OPEN != 0 && self.is_since(root)
    }

    pub fn is_asked_of(&self, source: Source) -> bool {
        self.lane.load(Ordering::Relaxed) == source.to_word()
    }

    pub fn state(&self, generation: u64, source: Source) -> HopState {
        let word = self.word.load(Ordering::Acquire);
        let current = word >> GENERATION_SHIFT;
        if is_later(generation, current) {
            HopState::NeverIssued
        } else if generation != current || word & HOP_OPEN == 0 {
            HopState::Past
        } else if self.is_asked_of(source) {
            HopState::Open
        } else {
            HopState::Foreign
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LANE: Source = Source { lane: 0, incarnation: 1 };

    #[test]
    fn reply_09_a_close_that_comes_late_leaves_the_entrys_next_user_alone() {
        let hop = Hop::default();
        hop.open(7, Some(LANE), GroupId(0), 1);
        hop.open(8, Some(LANE), GroupId(0), 1);
        assert!(!hop.close(7));
        assert_eq!(hop.state(7, LANE), HopState::Past);
        assert_eq!(hop.state(8, LANE), HopState::Open);
        assert!(hop.close(8) && !hop.close(8));
        assert_eq!(hop.state(9, LANE), HopState::NeverIssued);
    }

    #[test]
    fn handoff_03_an_answer_counts_only_from_where_it_was_asked() {
        let hop = Hop::default();
        hop.open(3, None, GroupId(2), 4);
        assert_eq!((hop.state(3, LANE), hop.lane(), hop.placed()), (HopState::Foreign, None, None));
        hop.assign(LANE);
        hop.place(0);
        assert_eq!((hop.state(3, LANE), hop.placed()), (HopState::Open, Some((LANE, 0))));
        assert_eq!(hop.state(3, Source { incarnation: 2, ..LANE }), HopState::Foreign);
        assert_eq!((hop.group(), hop.depth()), (GroupId(2), 4));
        hop.assign(Source { lane: u16::MAX, incarnation: 9 });
        assert_eq!(hop.placed(), None, "not at that place in another lane");
        hop.place(7);
        assert_eq!(hop.placed(), Some((Source { lane: u16::MAX, incarnation: 9 }, 7)));
        hop.open(4, None, GroupId(2), 5);
        assert_eq!(hop.placed(), None);
    }

    #[test]
    fn restart_02_a_rerun_skips_what_had_gone_on_and_happens_once() {
        let hop = Hop::default();
        hop.open(3, Some(LANE), GroupId(2), 4);
        assert!(!hop.is_repeated_output() && !hop.is_repeated_output());
        assert!(hop.take_back());
        assert_eq!([(); 4].map(|()| hop.is_repeated_output()), [true, true, false, false]);
        assert!(!hop.take_back());
        assert_eq!((hop.group(), hop.depth()), (GroupId(2), 4));
    }
}
