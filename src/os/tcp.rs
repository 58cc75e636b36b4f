//! TCP sockets on loopback, as far as the standard library does not have them.
//!
//! Owns a listener's backlog and a socket that knows its port before it connects.
//! Never decides who may connect. Descriptors are close-on-exec and never block.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::clock;

/// Listens at `address` on a port that the kernel chooses; the kernel keeps up
/// to `backlog` connections until they are accepted (capped by
/// `net.core.somaxconn`).
///
/// # Errors
/// Whatever `socket`, `bind` or `listen` reports.
pub fn listen(address: IpAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = bound(address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket.into())
}

/// A socket at `address` with a port that the kernel chose, not connected.
#[derive(Debug)]
pub struct Bound(OwnedFd);

impl Bound {
    /// Binds it.
    ///
    /// # Errors
    /// Whatever `socket` or `bind` reports.
    pub fn new(address: IpAddr) -> io::Result<Self> {
        bound(address).map(Self)
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// Whatever `getsockname` reports.
    pub fn local(&self) -> io::Result<SocketAddr> {
        Ok(rustix::net::getsockname(&self.0)?.try_into()?)
    }

    /// Connects to `peer`, before `until_ns` (absolute monotonic nanoseconds).
    ///
    /// # Errors
    /// `TimedOut` after that; else what `connect` reports, such as
    /// `ConnectionRefused`.
    pub fn connect(self, peer: SocketAddr, until_ns: u64) -> io::Result<TcpStream> {
        let socket = self.0;
        match rustix::net::connect(&socket, &peer) {
            Ok(()) => return Ok(socket.into()),
            // An interrupted one goes on by itself.
            Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            let left = clock::timespec(until_ns.saturating_sub(clock::monotonic_ns()));
            match poll(&mut [PollFd::new(&socket.as_fd(), PollFlags::OUT)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        sockopt::socket_error(&socket)??;
        Ok(socket.into())
    }
}

/// Closes a connection unread and leaves nothing of it in the kernel, where a
/// closed one would wait for a minute.
pub fn hang_up(stream: TcpStream) {
    // If it cannot be told so, it waits.
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

fn bound(address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(address, 0))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::poll::readable_within;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_bound_socket_connects_from_its_port() {
        let listener = listen(HERE, 8).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), HERE);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let bound = Bound::new(HERE).unwrap();
        let local = bound.local().unwrap();
        assert_ne!(local.port(), 0);
        let until_ns = clock::monotonic_ns() + 20_000_000_000;
        let stream = bound.connect(listener.local_addr().unwrap(), until_ns).unwrap();
        assert!(readable_within(listener.as_fd(), Some(20_000)).unwrap());
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, local);
        for fd in [listener.as_fd(), stream.as_fd(), accepted.as_fd()] {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn who_is_hung_up_on_is_told() {
        let listener = listen(HERE, 8).unwrap();
        let until_ns = clock::monotonic_ns() + 20_000_000_000;
        let caller = Bound::new(HERE).unwrap().connect(listener.local_addr().unwrap(), until_ns);
        let mut caller = caller.unwrap();
        assert!(readable_within(listener.as_fd(), Some(20_000)).unwrap());
        hang_up(listener.accept().unwrap().0);
        assert!(readable_within(caller.as_fd(), Some(20_000)).unwrap());
        let error = std::io::Read::read(&mut caller, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_closed_port_refuses_and_a_full_backlog_times_out() {
        // At an address of its own, where nobody else listens by chance. A child that another test starts
        // holds it until it has become another program.
        let closed = listen(IpAddr::from([127, 0, 0, 83]), 8).unwrap().local_addr().unwrap();
        let until_ns = clock::monotonic_ns() + 20_000_000_000;
        let refused = || Bound::new(HERE).unwrap().connect(closed, until_ns).map_err(|error| error.kind());
        while !matches!(refused(), Err(io::ErrorKind::ConnectionRefused)) {}
        let listener = listen(HERE, 0).unwrap();
        let peer = listener.local_addr().unwrap();
        let mut kept = Vec::new();
        let error = loop {
            let until_ns = clock::monotonic_ns() + 50_000_000;
            match Bound::new(HERE).unwrap().connect(peer, until_ns) {
                Ok(stream) if kept.len() < 16 => kept.push(stream),
                Ok(_) => panic!("the backlog has no end"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn both_families() {
        if let Ok(listener) = listen(std::net::Ipv6Addr::LOCALHOST.into(), 8) {
            assert!(listener.local_addr().unwrap().is_ipv6());
        }
        let elsewhere = listen(IpAddr::from([127, 0, 0, 9]), 8).unwrap();
        assert_eq!(elsewhere.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 9]));
        assert!(listen(IpAddr::from([192, 0, 2, 1]), 8).is_err());
    }
}
