//! Room, for those who wait for it without a thread: a run that is polled and has nothing in flight.
//!
//! The engine's thread wakes them, so that a waker runs under no lock and no role. Whoever waits counts as a
//! request that somebody must be told of: so the thread reads the lanes, which is what makes room.
//!
//! Forbidden: room comes free, and who waits for it is not woken. Who waits counts itself, fences, leaves its
//! waker and tries once more; who makes room makes it, fences, looks at the count, then for wakers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::shared::Shared;
use crate::base::limits::LONGEST_SLEEP_NS;
use crate::base::sync::{AtomicU64, Ordering};

/// One who waits.
struct RoomWaiter {
    id: u64,
    /// When it is woken in any case.
    until_ns: u64,
    waker: Waker,
}

/// All who wait.
#[derive(Default)]
pub(super) struct RoomWaiters {
    list: Mutex<Vec<RoomWaiter>>,
    ids: AtomicU64,
}

impl RoomWaiters {
    fn lock(&self) -> MutexGuard<'_, Vec<RoomWaiter>> {
        // Nothing under this lock panics.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits who has not been woken.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

/// A place among those who wait, until it is dropped.
pub(super) struct RoomPlace {
    shared: Arc<Shared>,
    id: u64,
}

impl RoomPlace {
    pub fn new(shared: &Arc<Shared>) -> Self {
        let id = shared.room_waiters.ids.fetch_add(1, Ordering::Relaxed);
        shared.begin_waiting_for_room();
        shared.begin_unattended();
        shared.begin_awaited();
        Self { shared: Arc::clone(shared), id }
    }

    /// Leaves a waker, in place of an earlier one. The caller tries once more after this.
    pub fn leave_waker(&self, waker: &Waker, deadline_ns: u64) {
        let latest_ns = self.shared.read_clock() + LONGEST_SLEEP_NS;
        let until_ns = if deadline_ns == 0 { latest_ns } else { deadline_ns.min(latest_ns) };
        let waiter = RoomWaiter { id: self.id, until_ns, waker: waker.clone() };
        let former = self.take();
        self.shared.room_waiters.lock().push(waiter);
        // It is the user's: not under the lock.
        drop(former);
        crate::base::sync::fence(Ordering::SeqCst);
    }

    fn take(&self) -> Option<RoomWaiter> {
        let mut list = self.shared.room_waiters.lock();
        let at = list.iter().position(|waiter| waiter.id == self.id)?;
        Some(list.swap_remove(at))
    }
}

impl Drop for RoomPlace {
    fn drop(&mut self) {
        drop(self.take());
        self.shared.end_waiting_for_room();
        self.shared.end_unattended(true);
    }
}

impl Shared {
    /// Wakes those who wait for room if there may be some, or they need not wait any longer. `seen` is what was
    /// made of it when this was called last.
    pub fn wake_for_room(&self, seen: &mut u64, now_ns: u64) {
        let mut list = self.room_waiters.lock();
        let made = self.room_made.load(Ordering::SeqCst);
        let is_for_all = made != *seen || self.stopping.load(Ordering::SeqCst);
        *seen = made;
        let woken: Vec<RoomWaiter> =
            list.extract_if(.., |waiter| is_for_all || waiter.until_ns <= now_ns).collect();
        drop(list);
        for waiter in woken {
            // It is the user's, and this is the engine's thread.
            let _ = catch_unwind(AssertUnwindSafe(|| waiter.waker.wake()));
        }
    }
}
