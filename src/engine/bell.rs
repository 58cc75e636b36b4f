//! A descriptor for a program's own event loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::os::poll::EventFd;

/// A descriptor that becomes readable when a request ends, for `epoll`, `poll` and the like.
///
/// Put it into the loop for reading; when it is readable, [`clear`](EventBell::clear) it, and then ask each
/// request with [`Pending::try_take_or_ring`](crate::Pending::try_take_or_ring): it gives the end of the request,
/// or makes sure that the bell rings at it. One bell serves any number of requests, of any number of engines, in
/// any number of threads.
#[derive(Clone)]
pub struct EventBell {
    rings: Arc<Rings>,
}

struct Rings(EventFd);

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.ring();
    }
}

impl EventBell {
    /// A new bell: one descriptor, which is closed with the last clone.
    ///
    /// # Errors
    ///
    /// The system refuses another descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { rings: Arc::new(Rings(EventFd::new()?)) })
    }

    /// Makes the descriptor unreadable until the next ring. Call it before asking the requests, so that an end in
    /// between rings anew.
    pub fn clear(&self) {
        self.rings.0.clear();
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.rings))
    }
}

impl AsFd for EventBell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rings.0.as_fd()
    }
}
