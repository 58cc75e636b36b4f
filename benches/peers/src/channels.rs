//! Channels between threads: no process to die, nothing to map, so a lower bound for who needs neither.

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use handbell_measure::Place;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::link::{Link, Message, Problem, Running};

const SLOTS: usize = 1024;

struct Crossbeam {
    out: Sender<Message>,
    back: Receiver<Message>,
    spins: bool,
}

impl Link for Crossbeam {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        Ok(self.out.send(*message)?)
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        if !self.spins {
            return Ok(self.back.recv()?);
        }
        loop {
            match self.back.try_recv() {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// `crossbeam-channel`, bounded.
pub fn crossbeam(place: &Place, spins: bool) -> Result<Running, Problem> {
    let ((out, their_back), (their_out, back)) = (bounded(SLOTS), bounded(SLOTS));
    let other = Crossbeam { out: their_out, back: their_back, spins };
    Ok(Running::with_thread(Crossbeam { out, back, spins }, other, place))
}

struct Rtrb {
    out: Producer<Message>,
    back: Consumer<Message>,
}

impl Link for Rtrb {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        while self.out.push(*message).is_err() {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        loop {
            match self.back.pop() {
                Ok(message) => return Ok(message),
                Err(_) if self.back.is_abandoned() => return Err("the other side is gone".into()),
                Err(_) => std::hint::spin_loop(),
            }
        }
    }
}

/// `rtrb`.
pub fn rtrb(place: &Place) -> Result<Running, Problem> {
    let ((out, their_back), (their_out, back)) = (RingBuffer::new(SLOTS), RingBuffer::new(SLOTS));
    Ok(Running::with_thread(Rtrb { out, back }, Rtrb { out: their_out, back: their_back }, place))
}
