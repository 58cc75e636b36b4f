//! Listeners are told in a thread of their own, in order: one that takes long, or never returns, holds up neither the
//! supervision of workers nor a birth, and a stop for a time only.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::limits::UNTOLD_EVENTS;
use crate::os::owner::Owner;
use crate::os::thread::Helper;

/// Tells one thing to whoever listens, and lets no panic out.
type Telling = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Telling>,
    /// How many were taken in so far, and how many of them have been told.
    taken_in: u64,
    told: u64,
    /// Not taken in, because too much was waiting.
    dropped: u64,
    is_closed: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is closed and all has been told.
    fn tell_all(&self) {
        let mut state = self.lock();
        loop {
            if let Some(telling) = state.waiting.pop_front() {
                drop(state);
                telling();
                state = self.lock();
                state.told += 1;
                self.changed.notify_all();
            } else if state.is_closed {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Where to hand in what is to be told. By default nobody listens.
#[derive(Clone, Default)]
pub(crate) struct EventQueue(Option<Arc<Queue>>);

impl EventQueue {
    /// Tells this behind all that was handed in before, unless too much is waiting. Never blocks.
    pub fn push(&self, telling: impl FnOnce() + Send + 'static) {
        self.push_below(UNTOLD_EVENTS, telling);
    }

    /// The same however much is waiting: for what comes once for each child, and must not be missed.
    pub fn push_in_any_case(&self, telling: impl FnOnce() + Send + 'static) {
        self.push_below(usize::MAX, telling);
    }

    fn push_below(&self, limit: usize, telling: impl FnOnce() + Send + 'static) {
        let Some(queue) = &self.0 else { return };
        let mut state = queue.lock();
        if state.is_closed || state.waiting.len() >= limit {
            state.dropped += 1;
            return;
        }
        state.taken_in += 1;
        state.waiting.push_back(Box::new(telling));
        drop(state);
        queue.changed.notify_all();
    }

    /// What was not told, because too much was waiting.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.lock().dropped)
    }
}

/// The thread. Dropping it lets what waits be told, and waits for that as long as was stated.
pub(crate) struct EventThread {
    queue: EventQueue,
    thread: Option<Helper>,
    owner: Owner,
    patience: Duration,
}

impl EventThread {
    /// Starts it, if anybody listens. `patience` is how long its end is awaited.
    ///
    /// # Errors
    /// What the system reports.
    pub fn start(owner: Owner, is_heard: bool, patience: Duration) -> io::Result<Self> {
        if !is_heard {
            return Ok(Self { queue: EventQueue::default(), thread: None, owner, patience });
        }
        let queue = Arc::<Queue>::default();
        let tells = Arc::clone(&queue);
        let thread = Helper::start("handbell-events", move || {
            owner.adopt();
            tells.tell_all();
        })?;
        Ok(Self { queue: EventQueue(Some(queue)), thread: Some(thread), owner, patience })
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Where to hand in.
    pub fn queue(&self) -> &EventQueue {
        &self.queue
    }

    /// Waits until all that has been handed in so far is told, at most so long.
    pub fn flush(&self, limit: Duration) {
        let EventQueue(Some(queue)) = &self.queue else { return };
        let state = queue.lock();
        let so_far = state.taken_in;
        let waited = queue.changed.wait_timeout_while(state, limit, |state| state.told < so_far);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        let EventQueue(Some(queue)) = &self.queue else { return };
        queue.lock().is_closed = true;
        queue.changed.notify_all();
        if let Some(thread) = self.thread.take().filter(|_| !self.owner.is_current()) {
            thread.join_within(self.patience);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LATE: Duration = Duration::from_secs(3600);

    #[test]
    fn what_is_handed_in_is_told_in_order_and_before_the_end() {
        let thread = EventThread::start(Owner::new(), true, LATE).unwrap();
        let (told, heard) = channel();
        for number in 0..1000 {
            let told = told.clone();
            thread.queue().push(move || told.send(number).unwrap());
        }
        thread.flush(LATE);
        assert!(heard.try_iter().eq(0..1000));
        let queue = thread.queue().clone();
        let last = told.clone();
        queue.push(move || last.send(1000).unwrap());
        drop(thread);
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [1000]);
        assert_eq!(queue.dropped(), 0);
        // Nobody is there any more.
        queue.push(move || told.send(1001).unwrap());
        assert_eq!((heard.recv().ok(), queue.dropped()), (None, 1));
    }

    #[test]
    fn who_never_returns_is_not_waited_for_and_costs_what_comes_too_late() {
        let thread = EventThread::start(Owner::new(), true, Duration::from_millis(1)).unwrap();
        let queue = thread.queue().clone();
        let (begun, begins) = channel();
        let (go_on, waits) = channel::<()>();
        queue.push(move || {
            begun.send(()).unwrap();
            waits.recv().unwrap_or_default();
        });
        begins.recv().unwrap();
        let (told, heard) = channel();
        for number in 0..UNTOLD_EVENTS + 3 {
            let told = told.clone();
            queue.push(move || told.send(number).unwrap());
        }
        assert_eq!(queue.dropped(), 3);
        let last = told.clone();
        queue.push_in_any_case(move || last.send(usize::MAX).unwrap());
        assert_eq!(queue.dropped(), 3);
        thread.flush(Duration::from_millis(1));
        drop(thread);
        // What waited is told when it returns after all.
        drop((go_on, told));
        assert!(heard.iter().eq((0..UNTOLD_EVENTS).chain([usize::MAX])));
    }

    #[test]
    fn without_a_listener_there_is_no_thread() {
        let thread = EventThread::start(Owner::new(), false, LATE).unwrap();
        assert!(thread.thread.is_none());
        thread.queue().push(|| unreachable!("nobody listens"));
        thread.flush(LATE);
        assert_eq!(thread.queue().dropped(), 0);
    }
}
