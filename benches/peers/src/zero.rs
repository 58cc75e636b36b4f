//! ZeroMQ: a pair of sockets over `ipc`.

use handbell_measure::Place;
use zmq::{Context, DONTWAIT, PAIR, Socket};

use crate::link::{ADDRESS, Link, Message, Problem, Running, address, child};

struct Zero {
    socket: Socket,
    /// Where the socket's file lies, for who made it.
    file: Option<String>,
    spins: bool,
    _context: Context,
}

impl Link for Zero {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        Ok(self.socket.send(&message[..], 0)?)
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        let mut message = [0; 64];
        loop {
            match self.socket.recv_into(&mut message, if self.spins { DONTWAIT } else { 0 }) {
                Ok(64) => return Ok(message),
                Ok(count) => return Err(format!("a message of {count} bytes").into()),
                Err(zmq::Error::EAGAIN) => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Zero {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // It may be gone with the socket.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Bound here, connected there.
pub fn start(name: &str, place: &Place, spins: bool) -> Result<Running, Problem> {
    let file = std::env::temp_dir().join(format!("handbell-peers-{}-zmq", std::process::id()));
    let file = file.to_string_lossy().into_owned();
    let context = Context::new();
    let socket = context.socket(PAIR)?;
    let address = format!("ipc://{file}");
    socket.bind(&address)?;
    let process = child(name, place).env(ADDRESS, address).spawn()?;
    Ok(Running::with_process(Zero { socket, file: Some(file), spins, _context: context }, process))
}

/// In the child.
pub fn join(spins: bool) -> Result<impl Link, Problem> {
    let context = Context::new();
    let socket = context.socket(PAIR)?;
    socket.connect(&address()?)?;
    Ok(Zero { socket, file: None, spins, _context: context })
}
