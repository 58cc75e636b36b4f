//! Where one worker is awaited: one place on loopback, one announced peer, one connection, once.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::connection::Connection;
use super::engine_session::{EngineSession, EngineTerms};
use super::reject::{Reject, Rejects};
use super::session::Session;
use crate::auth::Credentials;
use crate::base::limits::{DOORBELL_BACKLOG, DOORBELL_TURN, HANDSHAKE_NS};
use crate::os::poll::Poller;
use crate::os::{random, tcp};
use crate::plan::loopback::Loopback;
use crate::wire::doorbell::NONCE_BYTES;

/// What became of a listener so far.
pub enum Turn {
    /// The handshake is not done.
    Waiting,
    /// It is. The listener is closed.
    Done(Box<Connection<EngineSession>>),
    /// It was not done in time. The listener is closed.
    Late,
}

/// The worker that is awaited.
struct Announced {
    peer: SocketAddr,
    terms: EngineTerms,
    until_ns: u64,
    /// How long this side was away meanwhile.
    missed_ns: u64,
}

/// Listens for one worker.
///
/// Bounded, whoever calls: one connection is kept, the announced worker's; every other one is closed unread as
/// soon as it is seen, and counted. Until somebody is announced, that is every one. Hence the worker must not
/// connect before it knows that it has been announced.
pub struct Listener {
    /// `None` once it is closed.
    door: Option<TcpListener>,
    local: SocketAddr,
    /// The door, and the caller's connection.
    poller: Poller,
    /// Wiped when it is closed.
    credentials: Option<Credentials>,
    announced: Option<Announced>,
    caller: Option<Box<Connection<EngineSession>>>,
    rejects: Rejects,
}

impl Listener {
    /// Opens it, on a port that the kernel chooses.
    ///
    /// # Errors
    /// What the system reports.
    pub fn open(address: Loopback, credentials: Credentials) -> io::Result<Self> {
        let door = tcp::listen(address.address(), DOORBELL_BACKLOG)?;
        let local = door.local_addr()?;
        // The kernel was asked for this place, and is asked again where it really is.
        assert_eq!(local.ip(), address.address(), "bound elsewhere");
        let poller = Poller::new()?;
        poller.add(door.as_fd(), 0)?;
        let rejects = Rejects::default();
        let (door, credentials) = (Some(door), Some(credentials));
        Ok(Self { door, local, poller, credentials, announced: None, caller: None, rejects })
    }

    /// Where it is, for the worker's bundle.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// What the worker must know, for its bundle. Gone once the listener is closed.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// The worker will call from this port of the same address. It has two seconds from now.
    pub fn announce(&mut self, port: u16, terms: EngineTerms, now_ns: u64) {
        assert!(self.announced.is_none(), "announced twice");
        let peer = SocketAddr::new(self.local.ip(), port);
        let until_ns = now_ns.saturating_add(HANDSHAKE_NS);
        self.announced = Some(Announced { peer, terms, until_ns, missed_ns: 0 });
    }

    /// The worker has until then after all.
    pub fn put_off(&mut self, until_ns: u64) {
        if let Some(announced) = &mut self.announced {
            announced.until_ns = until_ns;
        }
    }

    /// This side was away for so long: the worker has until then after all, and what it has said meanwhile may be
    /// as much older.
    pub fn forgive(&mut self, missed_ns: u64, until_ns: u64) {
        self.put_off(until_ns);
        if let Some(announced) = &mut self.announced {
            announced.missed_ns += missed_ns;
        }
    }

    /// Does what can be done now: at most 64 strangers and one message. Call it whenever the descriptor is
    /// readable and at [`Listener::next_ns`], also before the worker is announced. Never blocks.
    ///
    /// # Errors
    /// What the system reports, such as no descriptor left.
    pub fn turn(&mut self, now_ns: u64) -> io::Result<Turn> {
        if self.door.is_none() {
            return Ok(Turn::Late);
        }
        self.accept()?;
        if let Some(connection) = self.hear(now_ns) {
            self.close();
            return Ok(Turn::Done(connection));
        }
        if self.announced.as_ref().is_some_and(|announced| now_ns >= announced.until_ns) {
            self.rejects.count(Reject::Silence);
            self.close();
            return Ok(Turn::Late);
        }
        Ok(Turn::Waiting)
    }

    /// When to call [`Listener::turn`] though nothing has come.
    pub fn next_ns(&self) -> Option<u64> {
        self.announced.as_ref().filter(|_| self.door.is_some()).map(|announced| announced.until_ns)
    }

    /// What was refused so far.
    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }

    /// Turns strangers away and takes the announced caller in.
    fn accept(&mut self) -> io::Result<()> {
        let Some(door) = &self.door else { return Ok(()) };
        for _ in 0..DOORBELL_TURN {
            match door.accept() {
                Ok((stream, peer)) => match &self.announced {
                    Some(announced) if announced.peer == peer && self.caller.is_none() => {
                        let terms = announced.terms;
                        self.caller = Some(self.answer(stream, terms)?);
                    }
                    _ => {
                        self.rejects.count(Reject::Stranger);
                        tcp::hang_up(stream);
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It hung up while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    self.rejects.count(Reject::Stranger);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn answer(&self, stream: TcpStream, terms: EngineTerms) -> io::Result<Box<Connection<EngineSession>>> {
        let credentials = self.credentials.as_ref().expect("gone only with the door");
        let mut nonce = [0; NONCE_BYTES];
        random::fill(&mut nonce)?;
        let session = EngineSession::new(credentials, terms, nonce);
        let connection = Connection::new(stream, session)?;
        self.poller.add(connection.as_fd(), 1)?;
        Ok(Box::new(connection))
    }

    /// Hears the caller; its connection once the handshake is done.
    fn hear(&mut self, now_ns: u64) -> Option<Box<Connection<EngineSession>>> {
        let caller = self.caller.as_mut()?;
        let missed_ns = self.announced.as_ref().map_or(0, |announced| announced.missed_ns);
        caller.session().forgive(missed_ns);
        let heard = caller.turn(now_ns, |_| unreachable!("a session begins with its handshake"));
        let is_done = heard.is_ok() && caller.session().is_open() && caller.is_flushed();
        if heard.is_err() {
            let rejects = *caller.session().rejects();
            self.rejects.add(&rejects);
            if rejects.total() == 0 {
                self.rejects.count(Reject::Silence);
            }
        }
        if heard.is_err() || is_done {
            // The set would keep it watched, and its descriptor lives on in the connection.
            self.poller.remove(caller.as_fd());
            return self.caller.take().filter(|_| is_done);
        }
        None
    }

    fn close(&mut self) {
        if let Some(door) = self.door.take() {
            self.poller.remove(door.as_fd());
        }
        self.caller = None;
        self.credentials = None;
    }
}

/// Readable while [`Listener::turn`] has something to do.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}
