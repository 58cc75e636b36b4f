//! The whole of a runtime, in a few lines: a waker that can be waited for.

use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Wakes a thread that waits for any of its futures.
#[derive(Default)]
pub struct Alarm {
    rings: Mutex<u64>,
    rang: Condvar,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        *self.rings.lock().unwrap() += 1;
        self.rang.notify_all();
    }
}

impl Alarm {
    /// How often it has been woken.
    pub fn rings(&self) -> u64 {
        *self.rings.lock().unwrap()
    }

    /// Waits until it has been woken more often than `seen`.
    pub fn wait_beyond(&self, seen: u64) {
        let mut rings = self.rings.lock().unwrap();
        while *rings <= seen {
            rings = self.rang.wait(rings).unwrap();
        }
    }
}

/// Polls, and sleeps until it is woken. Nothing but a waker ends the sleep.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let (alarm, mut future) = (Arc::new(Alarm::default()), pin!(future));
    let waker = Waker::from(Arc::clone(&alarm));
    loop {
        let seen = alarm.rings();
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        alarm.wait_beyond(seen);
    }
}
