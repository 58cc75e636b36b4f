//! A session on a socket that never blocks.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use super::reject::Reject;
use super::session::Session;
use crate::base::limits::{DOORBELL_REPEAT_NS, DOORBELL_TURN};
use crate::wire::doorbell::{MESSAGE_BYTES, MessageBytes};

/// Messages read with one call of the system.
const READ_MESSAGES: usize = 8;

/// Why a connection is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The peer closed it, or is gone.
    Closed,
    /// The peer said something that is refused.
    Rejected(Reject),
    /// The system refused to read or write.
    Failed(io::ErrorKind),
}

/// A session and its socket. Used by one thread, which calls [`Connection::turn`] whenever the descriptor is
/// readable, whenever [`Connection::next_ns`] has come, and whenever the session was told something to say.
pub struct Connection<S> {
    stream: TcpStream,
    session: S,
    /// A message that was made and not sent whole: what is left of it, from `unsent_from` on.
    unsent: MessageBytes,
    unsent_from: usize,
    /// When to look again whether the socket has room.
    retry_ns: Option<u64>,
}

impl<S: Session> Connection<S> {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// What the system reports for setting its options.
    pub(super) fn new(stream: TcpStream, session: S) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // A message is small and always whole: nothing is gained by waiting for the next one.
        stream.set_nodelay(true)?;
        Ok(Self { stream, session, unsent: [0; MESSAGE_BYTES], unsent_from: MESSAGE_BYTES, retry_ns: None })
    }

    /// The session, to tell it what to say, or to look at its counters.
    pub fn session(&mut self) -> &mut S {
        &mut self.session
    }

    /// Reads what has come, at most 64 messages, hands `on` what they say, and sends what is due. Never blocks.
    ///
    /// What is left unread keeps the descriptor readable, so a flood has its turn and no more.
    ///
    /// # Errors
    /// The connection is over: drop it. What had come before has been handed on.
    pub fn turn(&mut self, now_ns: u64, mut on: impl FnMut(S::Event)) -> Result<(), Ended> {
        self.read(now_ns, &mut on)?;
        self.write(now_ns)
    }

    /// When to call [`Connection::turn`] though nothing has come.
    pub fn next_ns(&self) -> Option<u64> {
        // While the socket is full, what is due has to wait for it.
        self.retry_ns.or_else(|| self.session.next_ns())
    }

    /// Whether everything that was made has been handed to the system.
    pub fn is_flushed(&self) -> bool {
        self.unsent_from == MESSAGE_BYTES
    }

    fn read(&mut self, now_ns: u64, on: &mut dyn FnMut(S::Event)) -> Result<(), Ended> {
        let mut bytes = [0; READ_MESSAGES * MESSAGE_BYTES];
        for _ in 0..DOORBELL_TURN / READ_MESSAGES {
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.session.end().map_err(Ended::Rejected)?;
                    return Err(Ended::Closed);
                }
                Ok(got) => self.session.feed(&bytes[..got], now_ns, on).map_err(Ended::Rejected)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => interrupted(&error)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, now_ns: u64) -> Result<(), Ended> {
        self.retry_ns = None;
        loop {
            if self.is_flushed() {
                let Some(message) = self.session.transmit(now_ns) else { return Ok(()) };
                (self.unsent, self.unsent_from) = (message, 0);
            }
            match self.stream.write(&self.unsent[self.unsent_from..]) {
                Ok(sent) => self.unsent_from += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Hours of silence fill it: the peer is stopped, and a second is soon enough for it.
                    self.retry_ns = Some(now_ns.saturating_add(DOORBELL_REPEAT_NS));
                    return Ok(());
                }
                Err(error) => interrupted(&error)?,
            }
        }
    }
}

/// Nothing if a signal came between; else why the connection is over.
fn interrupted(error: &io::Error) -> Result<(), Ended> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted};
    match error.kind() {
        Interrupted => Ok(()),
        // A peer that dies with bytes unread resets the connection.
        ConnectionReset | BrokenPipe => Err(Ended::Closed),
        kind => Err(Ended::Failed(kind)),
    }
}

impl<S> AsFd for Connection<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
