//! How a worker calls its engine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use thiserror::Error;

use super::connection::{Connection, Ended};
use super::session::Session;
use super::worker_session::{Order, WorkerSession, WorkerTerms};
use crate::auth::Credentials;
use crate::os::poll::readable_within;
use crate::os::tcp::Bound;
use crate::os::{clock, random};
use crate::wire::doorbell::NONCE_BYTES;

/// Why a call does not come about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CallError {
    /// The system refused.
    #[error("calling the engine: {0}")]
    System(io::ErrorKind),
    /// The engine did not answer in time.
    #[error("the engine did not answer in time")]
    Late,
    /// The connection ended during the handshake.
    #[error("the handshake with the engine ended: {0:?}")]
    Ended(Ended),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late,
            kind => Self::System(kind),
        }
    }
}

/// A worker's socket before it calls: bound, so that its port can be announced.
pub struct Caller {
    socket: Bound,
    port: u16,
}

impl Caller {
    /// Binds a socket at the address where the engine listens.
    ///
    /// # Errors
    /// What the system reports.
    pub fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = Bound::new(address)?;
        let port = socket.local()?.port();
        Ok(Self { socket, port })
    }

    /// The port from which it will call.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Calls, once the engine is known to expect the port, and blocks until the handshake is done. The
    /// credentials are wiped. `until_ns` is absolute, on the monotonic clock. `on` takes the orders that come
    /// along with the answer.
    ///
    /// # Errors
    /// As [`CallError`] says; a call is not tried twice.
    pub fn call(
        self,
        engine: SocketAddr,
        credentials: Credentials,
        terms: WorkerTerms,
        until_ns: u64,
        mut on: impl FnMut(Order),
    ) -> Result<Connection<WorkerSession>, CallError> {
        let mut nonce = [0; NONCE_BYTES];
        random::fill(&mut nonce)?;
        let session = WorkerSession::new(credentials, terms, nonce);
        let mut connection = Connection::new(self.socket.connect(engine, until_ns)?, session)?;
        loop {
            let now_ns = clock::monotonic_ns();
            connection.turn(now_ns, &mut on).map_err(CallError::Ended)?;
            if connection.session().is_open() {
                return Ok(connection);
            }
            let left_ms = until_ns.saturating_sub(now_ns).div_ceil(1_000_000);
            let left_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
            if !readable_within(connection.as_fd(), Some(left_ms))? {
                return Err(CallError::Late);
            }
        }
    }
}
