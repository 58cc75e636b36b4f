//! The worker's second thread: its end of the doorbell, and the bootstrap socket for as long as the process lives.
//!
//! GO lets the first thread serve, STOP ends that. A node that does not return is left alone for a grace; after
//! that the process ends without it, so that a stop is obeyed whatever a node does. The end of either connection
//! means that the engine is gone, whereupon the whole process group ends. Silence means nothing: a stopped engine
//! is not a dead one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::doorbell::{Connection, Order, WorkerSession};
use crate::lane::Idleness;
use crate::os::futex::Word;
use crate::os::poll::{EventFd, Poller};
use crate::os::socket::{self, Received};
use crate::os::{clock, life};

/// Exit code of a worker that was told to stop while a node did not return.
const CUT_OFF: i32 = 86;
/// How often a worker that is to drain looks whether it has.
const DRAIN_LOOK_NS: u64 = 1_000_000;
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

const SOCKET: u64 = 0;
const DOORBELL: u64 = 1;
const NEWS: u64 = 2;

/// What the serving thread has to say, one bit each.
const READY: u32 = 1;
const STOPPED: u32 = 2;
const LEAVES: u32 = 4;
/// For tests: nothing more, ever.
#[cfg(feature = "testing")]
const MUTE: u32 = 8;

/// What the two threads share.
struct Common {
    /// Bits of what is to be said.
    news: AtomicU32,
    /// Rung with every new bit.
    rung: EventFd,
    /// Raised by GO, and by STOP.
    go: Word,
    /// Raised by STOP.
    stop: Arc<Word>,
    /// Raised when the last words are said.
    gone: Word,
}

/// The serving thread's hold on the other one.
#[cfg_attr(feature = "testing", derive(Clone))]
pub(crate) struct Line {
    common: Arc<Common>,
}

impl Line {
    /// Starts the thread over both connections. `stop` is raised when serving shall end.
    pub(super) fn start(
        socket: Arc<OwnedFd>,
        connection: Connection<WorkerSession>,
        idleness: Idleness,
        stop: Arc<Word>,
        stop_grace_ms: u32,
    ) -> io::Result<Self> {
        let (news, rung) = (AtomicU32::new(0), EventFd::new()?);
        let common = Arc::new(Common { news, rung, go: Word::new(0), stop, gone: Word::new(0) });
        let poller = Poller::new()?;
        poller.add(socket.as_fd(), SOCKET)?;
        poller.add(connection.as_fd(), DOORBELL)?;
        poller.add(common.rung.as_fd(), NEWS)?;
        let ringer = Ringer {
            common: Arc::clone(&common),
            socket,
            connection,
            idleness,
            poller,
            grace_ns: u64::from(stop_grace_ms) * 1_000_000,
            is_draining: false,
            stop_by_ns: None,
            is_leaving: false,
        };
        std::thread::Builder::new().name("handbell-line".into()).spawn(move || ringer.run())?;
        Ok(Self { common })
    }

    /// The nodes are built: says so, and waits for GO. False if a stop came first.
    pub fn ready(&self) -> bool {
        self.common.tell(READY);
        loop {
            let seen = self.common.go.load();
            if self.common.stop.load() != 0 {
                return false;
            }
            if seen != 0 {
                return true;
            }
            self.common.go.wait(seen, None);
        }
    }

    /// Serving has ended: says so, takes leave, and returns when that has been said, or cannot be.
    pub fn leave(&self) {
        self.common.tell(STOPPED | LEAVES);
        let until_ns = clock::monotonic_ns() + LAST_WORDS.as_nanos() as u64;
        while self.common.gone.load() == 0 && clock::monotonic_ns() < until_ns {
            self.common.gone.wait(0, Some(until_ns));
        }
    }

    /// Stops the thread for good, as if it hung; the process goes on.
    #[cfg(feature = "testing")]
    pub fn mute(&self) {
        self.common.tell(MUTE);
    }
}

impl Common {
    fn tell(&self, news: u32) {
        // Release: pairs with the Acquire of the other thread's look.
        self.news.fetch_or(news, Ordering::Release);
        self.rung.ring();
    }

    fn raise(word: &Word) {
        word.bump();
        word.wake_all();
    }
}

/// The thread's own things.
struct Ringer {
    common: Arc<Common>,
    socket: Arc<OwnedFd>,
    connection: Connection<WorkerSession>,
    idleness: Idleness,
    poller: Poller,
    grace_ns: u64,
    is_draining: bool,
    /// When to end without the serving thread.
    stop_by_ns: Option<u64>,
    is_leaving: bool,
}

impl Ringer {
    fn run(mut self) {
        life::be_continued_at_the_end();
        let mut tokens = Vec::new();
        loop {
            let now_ns = clock::monotonic_ns();
            self.take_news(now_ns);
            self.turn(now_ns);
            if self.connection.session().has_left() && self.connection.is_flushed() {
                return Common::raise(&self.common.gone);
            }
            if self.stop_by_ns.is_some_and(|by_ns| now_ns >= by_ns) {
                self.end_without_serving_thread();
            }
            if self.is_draining && self.idleness.is_idle() {
                self.is_draining = false;
                self.connection.session().drained();
                continue;
            }
            // A stop that came along with the drain, or after it: what had not ended by then is cut off.
            self.is_draining &= self.stop_by_ns.is_none();
            let look_ns = self.is_draining.then_some(now_ns + DRAIN_LOOK_NS);
            let until_ns = [self.connection.next_ns(), look_ns, self.stop_by_ns].into_iter().flatten().min();
            if self.poller.wait(&mut tokens, until_ns).is_err() {
                // epoll fails only for want of memory in the kernel; looking again is all one can do.
                std::thread::sleep(Duration::from_millis(1));
            }
            if tokens.contains(&SOCKET) {
                self.look_at_socket();
            }
        }
    }

    /// Takes up what the serving thread has to say.
    fn take_news(&mut self, now_ns: u64) {
        self.common.rung.clear();
        let news = self.common.news.swap(0, Ordering::Acquire);
        #[cfg(feature = "testing")]
        if news & MUTE != 0 {
            loop {
                std::thread::park();
            }
        }
        let session = self.connection.session();
        if news & READY != 0 {
            session.ready(now_ns);
        }
        if news & STOPPED != 0 && self.stop_by_ns.is_some() {
            session.stopped();
        }
        if news & LEAVES != 0 {
            session.bye();
            self.is_leaving = true;
            self.stop_by_ns = None;
        }
    }

    fn turn(&mut self, now_ns: u64) {
        let Self { common, is_draining, stop_by_ns, grace_ns, is_leaving, .. } = self;
        let heard = self.connection.turn(now_ns, |order| match order {
            Order::Go => Common::raise(&common.go),
            Order::Drain => *is_draining = true,
            Order::Stop => {
                *stop_by_ns = Some(now_ns.saturating_add(*grace_ns));
                Common::raise(&common.stop);
                Common::raise(&common.go);
            }
        });
        if heard.is_err() {
            if *is_leaving {
                return Common::raise(&common.gone);
            }
            life::kill_own_group();
        }
    }

    /// A node does not return, and the grace is over.
    fn end_without_serving_thread(&mut self) -> ! {
        let session = self.connection.session();
        session.stopped();
        session.bye();
        let _ = self.connection.turn(clock::monotonic_ns(), |_| {});
        life::kill_rest_of_group();
        life::leave(CUT_OFF)
    }

    fn look_at_socket(&mut self) {
        let mut buffer = [0; 64];
        if !matches!(socket::receive(self.socket.as_fd(), &mut buffer, 0), Ok(Received::Message { .. })) {
            life::kill_own_group();
        }
    }
}
