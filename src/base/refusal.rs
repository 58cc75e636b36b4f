//! Why a worker could not be started, as data: at which step, and what was in the way.

use super::ids::NodeId;

/// A step of a worker's start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum StartStep {
    /// Starting the process.
    Spawn,
    /// Handing over bundle and descriptors.
    Bundle,
    /// Waiting until the worker had mapped its segments.
    Mapped,
    /// The handshake on the doorbell.
    Handshake,
    /// Waiting until the worker had built its nodes.
    Ready,
}

impl StartStep {
    const ALL: [Self; 5] = [Self::Spawn, Self::Bundle, Self::Mapped, Self::Handshake, Self::Ready];

    /// The step's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::Bundle => "bundle",
            Self::Mapped => "mapped",
            Self::Handshake => "handshake",
            Self::Ready => "ready",
        }
    }
}

/// What was in the way of a worker's start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RefusedFor {
    /// The operating system refused.
    System {
        /// Its error number; 0 where it gave none.
        errno: i32,
    },
    /// The worker ended by itself with this code.
    Exit(i32),
    /// A signal ended the worker.
    Signal(i32),
    /// `start_timeout` passed.
    Timeout,
    /// It lived, and did not do its part: it was silent for too long, hung up, or said what nobody expects.
    NoAnswer,
    /// It could not read the start bundle.
    Bundle,
    /// It speaks another version of the start bundle.
    Version {
        /// The engine's.
        engine: u16,
        /// The worker's.
        worker: u16,
    },
    /// It was built with other layouts.
    Layout,
    /// A segment was not as it was announced.
    Segment,
    /// This node is not registered in its executable.
    NotRegistered(NodeId),
    /// This node could not be built.
    NotBuilt(NodeId),
}

/// Step and reason in the upper seven bytes of a word; the lowest is the caller's.
pub(crate) fn to_word(step: StartStep, reason: RefusedFor) -> u64 {
    let (kind, number) = match reason {
        RefusedFor::System { errno } => (0, errno as u32),
        RefusedFor::Exit(code) => (1, code as u32),
        RefusedFor::Signal(signal) => (2, signal as u32),
        RefusedFor::Timeout => (3, 0),
        RefusedFor::NoAnswer => (4, 0),
        RefusedFor::Bundle => (5, 0),
        RefusedFor::Version { engine, worker } => (6, u32::from(engine) << 16 | u32::from(worker)),
        RefusedFor::Layout => (7, 0),
        RefusedFor::Segment => (8, 0),
        RefusedFor::NotRegistered(node) => (9, node.0.into()),
        RefusedFor::NotBuilt(node) => (10, node.0.into()),
    };
    (step as u64) << 8 | kind << 16 | u64::from(number) << 32
}

/// What [`to_word`] made into `word`.
pub(crate) fn from_word(word: u64) -> (StartStep, RefusedFor) {
    let step = StartStep::ALL[usize::from((word >> 8) as u8) % StartStep::ALL.len()];
    let number = (word >> 32) as u32;
    let reason = match (word >> 16) as u8 {
        0 => RefusedFor::System { errno: number as i32 },
        1 => RefusedFor::Exit(number as i32),
        2 => RefusedFor::Signal(number as i32),
        3 => RefusedFor::Timeout,
        4 => RefusedFor::NoAnswer,
        5 => RefusedFor::Bundle,
        6 => RefusedFor::Version { engine: (number >> 16) as u16, worker: number as u16 },
        7 => RefusedFor::Layout,
        8 => RefusedFor::Segment,
        9 => RefusedFor::NotRegistered(NodeId(number as u16)),
        _ => RefusedFor::NotBuilt(NodeId(number as u16)),
    };
    (step, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_comes_back_from_its_word() {
        let reasons = [
            RefusedFor::System { errno: 12 },
            RefusedFor::Exit(-1),
            RefusedFor::Signal(9),
            RefusedFor::Timeout,
            RefusedFor::NoAnswer,
            RefusedFor::Bundle,
            RefusedFor::Version { engine: 3, worker: u16::MAX },
            RefusedFor::Layout,
            RefusedFor::Segment,
            RefusedFor::NotRegistered(NodeId(u16::MAX)),
            RefusedFor::NotBuilt(NodeId(7)),
        ];
        for step in StartStep::ALL {
            for reason in reasons {
                let word = to_word(step, reason);
                assert_eq!((from_word(word), word & 0xFF), ((step, reason), 0));
            }
        }
    }

    #[test]
    fn steps_stand_in_their_order_and_have_names_of_their_own() {
        assert!(StartStep::ALL.iter().enumerate().all(|(i, step)| *step as usize == i));
        let names: std::collections::BTreeSet<_> = StartStep::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), StartStep::ALL.len());
    }
}
