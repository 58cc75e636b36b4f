//! Sockets and pipes, asleep until something comes, or asking for it without end.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use handbell_measure::Place;

use crate::link::{Link, Message, Problem, Running, child};

/// A way in and a way out.
pub struct Descriptors {
    out: File,
    back: File,
}

impl Descriptors {
    fn new(out: OwnedFd, back: OwnedFd, spins: bool) -> Result<Self, Problem> {
        rustix::io::ioctl_fionbio(&out, spins)?;
        rustix::io::ioctl_fionbio(&back, spins)?;
        Ok(Self { out: File::from(out), back: File::from(back) })
    }

    /// In the child: what it was given as its standard input and output.
    pub fn inherited(is_socket: bool, spins: bool) -> Result<Self, Problem> {
        let back = std::io::stdin().as_fd().try_clone_to_owned()?;
        let out =
            if is_socket { back.try_clone()? } else { std::io::stdout().as_fd().try_clone_to_owned()? };
        Self::new(out, back, spins)
    }
}

impl Link for Descriptors {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        let mut rest = &message[..];
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        let mut message = [0; 64];
        let mut rest = &mut message[..];
        while !rest.is_empty() {
            match self.back.read(rest) {
                Ok(0) => return Err("the other side has closed".into()),
                Ok(count) => rest = &mut rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(message)
    }
}

/// A pair of stream sockets.
pub fn sockets(name: &str, place: &Place, spins: bool) -> Result<Running, Problem> {
    let (ours, theirs) = UnixStream::pair()?;
    let ours = OwnedFd::from(ours);
    let process =
        child(name, place).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).spawn()?;
    Ok(Running::with_process(Descriptors::new(ours.try_clone()?, ours, spins)?, process))
}

/// Two pipes.
pub fn pipes(name: &str, place: &Place, spins: bool) -> Result<Running, Problem> {
    let (their_end, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (back, their_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let process = child(name, place).stdin(Stdio::from(their_end)).stdout(Stdio::from(their_out)).spawn()?;
    Ok(Running::with_process(Descriptors::new(out, back, spins)?, process))
}
