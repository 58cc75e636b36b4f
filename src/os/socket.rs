//! The bootstrap socket pair and descriptor passing.
//!
//! Owns whole messages over `SOCK_SEQPACKET` and the descriptors that travel
//! with them. Never interprets a byte of a message and never carries requests:
//! those go through shared memory.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use super::{clock, poll};

/// How many descriptors the kernel lets one message carry (`SCM_MAX_FD`).
const MOST_FDS: usize = 253;
const CONTROL_BYTES: usize = cmsg_space!(ScmRights(MOST_FDS));

/// What [`receive`] found.
#[derive(Debug)]
pub enum Received {
    /// One message.
    Message {
        /// How much of the buffer it fills, in bytes.
        bytes: usize,
        /// The descriptors that came with it, close-on-exec, in the order sent.
        fds: Vec<OwnedFd>,
    },
    /// The other end is closed and every message it sent has been read.
    End,
}

/// Creates the two ends of a connection that keeps message boundaries, both
/// close-on-exec.
///
/// # Errors
/// Whatever `socketpair` reports (no descriptor left).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends `bytes` and `fds` as one message; blocks while the other end's queue
/// is full.
///
/// # Errors
/// `InvalidInput` for an empty message (the receiver could not tell it from
/// the end) or for more than 253 descriptors; `BrokenPipe` if the other end is
/// closed (no signal is raised); else what `sendmsg` reports, such as a message
/// larger than the send buffer. Nothing was sent then.
pub fn send(fd: BorrowedFd, bytes: &[u8], fds: &[BorrowedFd]) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > MOST_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(bytes)];
    match retry_on_intr(|| sendmsg(fd, &parts, &mut control, SendFlags::NOSIGNAL))? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Waits for one message of at most `buffer.len()` bytes and `max_fds`
/// descriptors.
///
/// # Errors
/// `InvalidData` if the message or its descriptors did not fit (or this process
/// has no room for the descriptors): the message is lost and everything that
/// came with it is closed. Else what `recvmsg` reports; interruptions are
/// retried.
pub fn receive(fd: BorrowedFd, buffer: &mut [u8], max_fds: usize) -> io::Result<Received> {
    receive_now(fd, buffer, max_fds, RecvFlags::empty())
}

/// Like [`receive`], but gives up after `timeout_ms` milliseconds.
///
/// # Errors
/// `TimedOut` if nothing came; else as [`receive`].
pub fn receive_within(
    fd: BorrowedFd,
    buffer: &mut [u8],
    max_fds: usize,
    timeout_ms: u32,
) -> io::Result<Received> {
    let until = clock::monotonic_ns() + u64::from(timeout_ms) * 1_000_000;
    loop {
        let left = until.saturating_sub(clock::monotonic_ns());
        let left_ms = left.div_ceil(1_000_000) as u32;
        if !poll::readable_within(fd, Some(left_ms))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Another reader may have taken the message since: do not block on it.
        match receive_now(fd, buffer, max_fds, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// The process at the other end, as the kernel recorded it when the connection
/// was made; 0 if that process is not visible from here.
///
/// For a [`pair`] that is the process that created it, seen from both ends:
/// a child that inherited its end learns who its parent is.
///
/// # Errors
/// Whatever `getsockopt` reports.
pub fn peer_pid(fd: BorrowedFd) -> io::Result<i32> {
    let (pid, uid, gid) = (0, 0, 0);
    let mut who = libc::ucred { pid, uid, gid };
    let mut bytes = size_of_val(&who) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes, the size of the
    // structure, whose fields take any value.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &mut bytes,
        )
    };
    match result {
        0 => Ok(who.pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for room for `bytes` bytes of messages that were sent and not yet read,
/// which also bounds the largest message. The kernel silently caps the request
/// at the system's limit (`net.core.wmem_max`).
///
/// # Errors
/// Whatever `setsockopt` reports.
pub fn set_send_buffer(fd: BorrowedFd, bytes: usize) -> io::Result<()> {
    Ok(sockopt::set_socket_send_buffer_size(fd, bytes)?)
}

fn receive_now(fd: BorrowedFd, buffer: &mut [u8], max_fds: usize, flags: RecvFlags) -> io::Result<Received> {
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let room = match max_fds {
        0 => 0,
        some => cmsg_space!(ScmRights(some.min(MOST_FDS))),
    };
    let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
    let message = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg(fd, &mut parts, &mut control, flags) {
            Err(Errno::INTR) => {}
            // Reported once, ahead of what is queued, if the other end closed
            // with messages of ours unread; its own last words are still there.
            Err(Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    // The control buffer is rounded up, so more than asked for may have come.
    let truncated = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if message.flags.intersects(truncated) || fds.len() > max_fds {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match message.bytes {
        0 if fds.is_empty() => Ok(Received::End),
        bytes => Ok(Received::Message { bytes, fds }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::memfd;
    use super::*;
    use std::os::fd::AsFd;

    fn message(received: Received) -> (usize, Vec<OwnedFd>) {
        match received {
            Received::Message { bytes, fds } => (bytes, fds),
            Received::End => panic!("end"),
        }
    }

    #[test]
    fn messages_keep_their_boundaries_and_their_descriptors() {
        let (one, two) = pair().unwrap();
        let file = memfd::create("passed", 12345).unwrap();
        send(one.as_fd(), b"first", &[file.as_fd(), one.as_fd()]).unwrap();
        send(one.as_fd(), b"second", &[]).unwrap();
        let mut buffer = [0; 64];
        let (bytes, fds) = message(receive(two.as_fd(), &mut buffer, 2).unwrap());
        assert_eq!(&buffer[..bytes], b"first");
        assert_eq!(fds.len(), 2);
        assert_eq!(memfd::size(fds[0].as_fd()).unwrap(), 12345);
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let (bytes, fds) = message(receive(two.as_fd(), &mut buffer, 2).unwrap());
        assert_eq!((&buffer[..bytes], fds.len()), (&b"second"[..], 0));
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_is_closed() {
        let (one, two) = pair().unwrap();
        let mut buffer = [0; 8];
        for (bytes, count, max_fds) in [(9, 0, 0), (9, 1, 1), (1, 1, 0), (1, 2, 1), (1, 9, 1)] {
            let (watched, passed) = pair().unwrap();
            let fds = vec![passed.as_fd(); count];
            send(one.as_fd(), &vec![7; bytes], &fds).unwrap();
            drop(passed);
            let error = receive(two.as_fd(), &mut buffer, max_fds).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            // The other end's end is seen only once every copy is closed.
            let end = receive_within(watched.as_fd(), &mut buffer, 0, 10_000).unwrap();
            assert!(matches!(end, Received::End));
        }
        assert!(send(one.as_fd(), b"", &[]).is_err());
        assert!(send(one.as_fd(), b"many", &[one.as_fd(); MOST_FDS + 1]).is_err());
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_allows() {
        let (one, two) = pair().unwrap();
        send(one.as_fd(), b"many", &[one.as_fd(); MOST_FDS]).unwrap();
        let mut buffer = [0; 8];
        let (_, fds) = message(receive(two.as_fd(), &mut buffer, usize::MAX).unwrap());
        assert_eq!(fds.len(), MOST_FDS);
    }

    #[test]
    fn the_end_comes_after_the_last_message() {
        let (one, two) = pair().unwrap();
        // Left unread by the closing end, which makes the kernel report a reset.
        send(two.as_fd(), b"unread", &[]).unwrap();
        send(one.as_fd(), b"last words", &[]).unwrap();
        drop(one);
        let mut buffer = [0; 64];
        let (bytes, _) = message(receive(two.as_fd(), &mut buffer, 0).unwrap());
        assert_eq!(&buffer[..bytes], b"last words");
        for _ in 0..2 {
            let end = receive(two.as_fd(), &mut buffer, 0).unwrap();
            assert!(matches!(end, Received::End));
        }
        let error = send(two.as_fd(), b"nobody", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn silence_times_out_and_a_late_message_does_not() {
        let (one, two) = pair().unwrap();
        let before = clock::monotonic_ns();
        let error = receive_within(two.as_fd(), &mut [0; 8], 0, 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::monotonic_ns() - before >= 20_000_000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                send(one.as_fd(), b"late", &[]).unwrap();
            });
            let received = receive_within(two.as_fd(), &mut [0; 8], 0, 20_000);
            assert_eq!(message(received.unwrap()).0, 4);
        });
    }

    #[test]
    fn options() {
        let (one, two) = pair().unwrap();
        assert_eq!(peer_pid(one.as_fd()).unwrap(), std::process::id() as i32);
        assert_eq!(peer_pid(two.as_fd()).unwrap(), std::process::id() as i32);
        let file = memfd::create("no socket", 1).unwrap();
        assert!(peer_pid(file.as_fd()).is_err());
        set_send_buffer(one.as_fd(), 20_000).unwrap();
        send(one.as_fd(), &[1; 20_000], &[]).unwrap();
        set_send_buffer(one.as_fd(), 4096).unwrap();
        assert!(send(one.as_fd(), &[1; 200_000], &[]).is_err());
    }
}
