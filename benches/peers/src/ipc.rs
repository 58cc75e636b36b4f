//! `ipc-channel`: bytes over sockets with file descriptors.

use handbell_measure::Place;
use ipc_channel::TryRecvError;
use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender, bytes_channel};

use crate::link::{ADDRESS, Link, Message, Problem, Running, address, child};

/// What the child sends to be reached: a way to it, and a way from it.
type Ends = (IpcBytesSender, IpcBytesReceiver);

struct Ipc {
    out: IpcBytesSender,
    back: IpcBytesReceiver,
    spins: bool,
}

impl Link for Ipc {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        Ok(self.out.send(message)?)
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        let bytes = loop {
            if !self.spins {
                break self.back.recv()?;
            }
            match self.back.try_recv() {
                Ok(bytes) => break bytes,
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        };
        Ok(bytes.as_slice().try_into()?)
    }
}

/// Two channels of bytes.
pub fn start(name: &str, place: &Place, spins: bool) -> Result<Running, Problem> {
    let (server, server_name) = IpcOneShotServer::<Ends>::new()?;
    let process = child(name, place).env(ADDRESS, server_name).spawn()?;
    let (_, (out, back)) = server.accept()?;
    Ok(Running::with_process(Ipc { out, back, spins }, process))
}

/// In the child.
pub fn join(spins: bool) -> Result<impl Link, Problem> {
    let ((their_out, back), (out, their_back)) = (bytes_channel()?, bytes_channel()?);
    IpcSender::<Ends>::connect(address()?)?.send((their_out, their_back))?;
    Ok(Ipc { out, back, spins })
}
