//! The newest 256 ends and drops: kind, id, time, how it ended. Never a payload, a reason, a text or a route.
//!
//! Any thread writes; a place is valid when its number, written last, is the one expected there.

use crate::base::failure::Category;
use crate::base::ids::TraceId;
use crate::base::limits::EVENTS;
use crate::base::sync::{AtomicU64, Ordering, fence};

/// What happened to a request or a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// A request completed.
    Completed = 1,
    /// A request failed; the event's category says how.
    Failed = 2,
    /// A request was cancelled.
    Cancelled = 3,
    /// A request's deadline passed.
    Expired = 4,
    /// A second terminal was dropped.
    DuplicateTerminal = 5,
    /// A terminal without a waiter was dropped.
    LateReplyDrop = 6,
    /// A frame that was not its sender's to send was dropped.
    Rejected = 7,
}

/// One entry of the event list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The request's id; for a frame whose request is unknown, the id that it carried.
    pub trace_id: TraceId,
    /// Monotonic clock, in ns, as the engine had last read it.
    pub at_ns: u64,
    /// The terminal status of a request that failed or timed out.
    pub status: Option<Category>,
}

/// A line of its own: what is written is in one.
#[derive(Default)]
#[repr(align(64))]
struct Place {
    /// Number + 1 of the event that stands here; 0 while it is written.
    number: AtomicU64,
    id: [AtomicU64; 2],
    at_ns: AtomicU64,
    what: AtomicU64,
}

pub(super) struct Events {
    next: AtomicU64,
    places: Box<[Place]>,
}

/// By their numbers.
const CATEGORIES: [Category; 4] =
    [Category::Timeout, Category::Transport, Category::Execution, Category::Shutdown];
const KINDS: [EventKind; 7] = [
    EventKind::Completed,
    EventKind::Failed,
    EventKind::Cancelled,
    EventKind::Expired,
    EventKind::DuplicateTerminal,
    EventKind::LateReplyDrop,
    EventKind::Rejected,
];

impl Events {
    pub fn new() -> Self {
        Self { next: AtomicU64::new(0), places: (0..EVENTS).map(|_| Place::default()).collect() }
    }

    pub fn add(&self, event: Event) {
        let Event { kind, trace_id, at_ns, status } = event;
        self.note(kind, trace_id.to_words(), at_ns, status);
    }

    /// The same, by the words of the id: an id that is put together first is loaded in other pieces than it was stored
    /// in.
    #[inline(always)]
    pub fn note(&self, kind: EventKind, id: [u64; 2], at_ns: u64, status: Option<Category>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let place = &self.places[number as usize % EVENTS];
        place.number.store(0, Ordering::Relaxed);
        // Release: a reader that sees a new field sees the 0 as well; pairs with the Acquire fence in `list`.
        fence(Ordering::Release);
        place.id[0].store(id[0], Ordering::Relaxed);
        place.id[1].store(id[1], Ordering::Relaxed);
        place.at_ns.store(at_ns, Ordering::Relaxed);
        let status = status.map_or(0, |status| status as u64 + 1);
        place.what.store(kind as u64 | status << 8, Ordering::Relaxed);
        // Release: pairs with the Acquire in `list`; the fields are complete.
        place.number.store(number + 1, Ordering::Release);
    }

    /// The events that stand complete, oldest first.
    pub fn list(&self) -> Vec<Event> {
        let next = self.next.load(Ordering::Acquire);
        let first = next.saturating_sub(EVENTS as u64);
        (first..next).filter_map(|number| self.read(number)).collect()
    }

    fn read(&self, number: u64) -> Option<Event> {
        let place = &self.places[number as usize % EVENTS];
        if place.number.load(Ordering::Acquire) != number + 1 {
            return None;
        }
        let id = [place.id[0].load(Ordering::Relaxed), place.id[1].load(Ordering::Relaxed)];
        let at_ns = place.at_ns.load(Ordering::Relaxed);
        let what = place.what.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if place.number.load(Ordering::Relaxed) != number + 1 {
            return None;
        }
        let kind = KINDS.into_iter().find(|kind| *kind as u64 == what & 0xFF)?;
        let status = CATEGORIES.get(((what >> 8) as usize).wrapping_sub(1)).copied();
        Some(Event { kind, trace_id: TraceId::from_words(id), at_ns, status })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn reply_07_keeps_the_newest_256() {
        let events = Events::new();
        for i in 0..300u64 {
            let status = (i % 2 == 0).then_some(Category::Shutdown);
            let trace_id = TraceId::from_words([i, 1]);
            events.add(Event { kind: EventKind::Failed, trace_id, at_ns: i, status });
        }
        let list = events.list();
        assert_eq!(list.len(), 256);
        assert_eq!(list[0].at_ns, 44);
        assert_eq!(list[0].status, Some(Category::Shutdown));
        assert_eq!(
            list[255],
            Event { at_ns: 299, trace_id: TraceId::from_words([299, 1]), status: None, ..list[0] }
        );
    }
}
