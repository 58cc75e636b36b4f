//! What comes in: bytes gathered into messages, and the rejects counted.

use super::reject::{Reject, Rejects};
use crate::wire::doorbell::{MESSAGE_BYTES, MessageBytes};

/// Holds less than one message, however the stream is cut, and the reject that ended the session.
pub(super) struct Intake {
    bytes: MessageBytes,
    filled: usize,
    rejects: Rejects,
    ended: Option<Reject>,
}

impl Intake {
    pub fn new() -> Self {
        Self { bytes: [0; MESSAGE_BYTES], filled: 0, rejects: Rejects::default(), ended: None }
    }

    /// Takes from the front of `stream`: the next message, or `None` while it is not whole.
    pub fn next(&mut self, stream: &mut &[u8]) -> Result<Option<MessageBytes>, Reject> {
        self.ended.map_or(Ok(()), Err)?;
        let (head, rest) = stream.split_at(stream.len().min(MESSAGE_BYTES - self.filled));
        self.bytes[self.filled..][..head.len()].copy_from_slice(head);
        self.filled += head.len();
        *stream = rest;
        if self.filled < MESSAGE_BYTES {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(self.bytes))
    }

    /// Counts a reject; an error if it ends the session.
    pub fn refuse(&mut self, reason: Reject, in_handshake: bool) -> Result<(), Reject> {
        self.rejects.count(reason);
        // A process that was paused for long finds old messages: they are dropped, what follows is in time. In
        // the handshake nothing is said twice, so there is nothing to wait for.
        if reason == Reject::Time && !in_handshake {
            return Ok(());
        }
        self.ended = Some(reason);
        Err(reason)
    }

    /// The stream has ended: it must have done so between two messages.
    pub fn end(&mut self) -> Result<(), Reject> {
        self.ended.map_or(Ok(()), Err)?;
        if self.filled == 0 { Ok(()) } else { self.refuse(Reject::Length, false) }
    }

    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_however_the_stream_is_cut() {
        let stream: Vec<u8> = (0..5 * MESSAGE_BYTES + 3).map(|at| at as u8).collect();
        for piece in [1, 2, 3, 127, 128, 129, 300, stream.len()] {
            let mut intake = Intake::new();
            let mut messages = Vec::new();
            for mut part in stream.chunks(piece) {
                while let Some(message) = intake.next(&mut part).expect("nothing was refused") {
                    messages.push(message);
                }
                assert!(part.is_empty());
            }
            assert_eq!(messages.concat(), stream[..5 * MESSAGE_BYTES], "pieces of {piece}");
            assert_eq!(intake.end(), Err(Reject::Length));
        }
        assert_eq!(Intake::new().end(), Ok(()));
    }

    #[test]
    fn every_reject_but_time_is_the_end() {
        for reason in Reject::ALL {
            for in_handshake in [false, true] {
                let mut intake = Intake::new();
                let goes_on = reason == Reject::Time && !in_handshake;
                assert_eq!(intake.refuse(reason, in_handshake).is_ok(), goes_on);
                assert_eq!(intake.next(&mut &[0; MESSAGE_BYTES][..]).is_ok(), goes_on);
                assert_eq!(intake.end().is_ok(), goes_on);
                assert_eq!((intake.rejects().of(reason), intake.rejects().total()), (1, 1));
            }
        }
    }
}
