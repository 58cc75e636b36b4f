//! Keeps an engine's thread from doing anything: no reply is read that nobody waits for, no death is settled.

use std::sync::{Arc, Condvar, Mutex};
use std::task::{Wake, Waker};

use handbell::{Engine, NodeId, Pending};

/// The engine's thread stands still until this is dropped.
pub struct Held(Arc<Gate>);

#[derive(Default)]
struct Gate {
    /// Somebody has come; it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Wake for Gate {
    /// Whoever wakes waits: that is the engine's thread, where nobody else reads.
    fn wake(self: Arc<Self>) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, is_open)| !*is_open).unwrap());
    }
}

/// `echo` is a node that answers at once. Nothing else may be in flight.
pub fn hold(engine: &Engine, echo: NodeId) -> Held {
    loop {
        let mut pending = engine.request(echo).dispatch(b"").expect("it is taken");
        if let Some(held) = hold_at_end(&mut pending) {
            assert!(pending.try_take().expect("it has ended").is_ok());
            return held;
        }
    }
}

/// Waits until the engine's thread ends this request, and stands still in that; `None` if it has ended already.
pub fn hold_at_end(pending: &mut Pending) -> Option<Held> {
    let gate = Arc::new(Gate::default());
    if pending.try_take_or_wake(&Waker::from(Arc::clone(&gate))).is_some() {
        return None;
    }
    drop(gate.changed.wait_while(gate.state.lock().unwrap(), |(has_come, _)| !*has_come).unwrap());
    Some(Held(gate))
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().1 = true;
        self.0.changed.notify_all();
    }
}
