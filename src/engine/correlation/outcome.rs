//! How a request ended, as it stands in its root until the owner takes it: three words.

use super::hop::Source;
use crate::base::failure::{Cause, ExecutionClass, KilledFor, Rule};
use crate::base::ids::GroupId;
use crate::base::refusal;
use crate::base::sync::{AtomicU64, Ordering};
use crate::lane::BlockPlace;

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// A success terminal; the payload is in the root's cell.
    Inline {
        /// Bytes.
        len: u32,
    },
    /// A success terminal; the payload is a held block of this lane.
    Block {
        /// Whose.
        source: Source,
        /// Which.
        block: BlockPlace,
    },
    /// A success terminal; the payload is kept beside the root.
    Heap,
    /// An error terminal; its payload is in the root's cell.
    Error {
        /// Bytes.
        len: u32,
    },
    /// No terminal came, or will count.
    Failed(Cause),
    /// The caller gave it up.
    Cancelled,
}

/// The words.
#[derive(Default)]
pub(super) struct OutcomeCell {
    what: AtomicU64,
    detail: AtomicU64,
}

impl OutcomeCell {
    /// Relaxed: the root's state is published after this, with Release.
    pub fn put(&self, outcome: Outcome, group: GroupId, started: bool) {
        let (what, detail) = match outcome {
            Outcome::Inline { len } => (0, u64::from(len)),
            Outcome::Block { source, block: BlockPlace { payload_at, len } } => {
                let Source { lane, incarnation } = source;
                debug_assert!(incarnation <= u64::from(u16::MAX));
                let whose = u64::from(lane) << 32 | incarnation << 48;
                (1 | whose, u64::from(payload_at) << 32 | u64::from(len))
            }
            Outcome::Heap => (2, 0),
            Outcome::Error { len } => (3, u64::from(len)),
            Outcome::Failed(cause) => (4, cause_to_word(cause)),
            Outcome::Cancelled => (5, 0),
        };
        let what = what | u64::from(started) << 8 | u64::from(group.0) << 16;
        self.what.store(what, Ordering::Relaxed);
        self.detail.store(detail, Ordering::Relaxed);
    }

    /// The outcome, the group that it speaks of, and whether the worker had started.
    pub fn get(&self) -> (Outcome, GroupId, bool) {
        let what = self.what.load(Ordering::Relaxed);
        let detail = self.detail.load(Ordering::Relaxed);
        let outcome = match what & 0xFF {
            0 => Outcome::Inline { len: detail as u32 },
            1 => Outcome::Block {
                source: Source { lane: (what >> 32) as u16, incarnation: what >> 48 },
                block: BlockPlace { payload_at: (detail >> 32) as u32, len: detail as u32 },
            },
            2 => Outcome::Heap,
            3 => Outcome::Error { len: detail as u32 },
            4 => Outcome::Failed(cause_from_word(detail)),
            _ => Outcome::Cancelled,
        };
        (outcome, GroupId((what >> 16) as u16), what >> 8 & 1 != 0)
    }
}

/// A cause as one word: kind in the low half, number in the high half.
pub(crate) fn cause_to_word(cause: Cause) -> u64 {
    let (kind, number) = match cause {
        Cause::Deadline => (0, 0),
        Cause::Exit(code) => (1, code as u32),
        Cause::Signal(signal) => (2, signal as u32),
        Cause::Killed(KilledFor::Corruption(rule)) => (3, rule as u32),
        Cause::Killed(KilledFor::ConnectionLost) => (4, 0),
        Cause::Killed(KilledFor::StopOverrun) => (5, 0),
        Cause::Stopped => (6, 0),
        Cause::Killed(KilledFor::HeartbeatLost { silence_ms }) => (8, silence_ms),
        Cause::Killed(KilledFor::Hung) => (9, 0),
        Cause::OutOfMemory => (10, 0),
        Cause::Execution { class, code } => (7 | u64::from(class as u16) << 8, code),
        Cause::StartRefused { step, reason } => return 11 | refusal::to_word(step, reason),
    };
    kind | u64::from(number) << 32
}

/// The cause that [`cause_to_word`] made into `word`.
pub(crate) fn cause_from_word(word: u64) -> Cause {
    let number = (word >> 32) as u32;
    match word & 0xFF {
        0 => Cause::Deadline,
        1 => Cause::Exit(number as i32),
        2 => Cause::Signal(number as i32),
        3 => Cause::Killed(KilledFor::Corruption(Rule::ALL[number as usize % Rule::ALL.len()])),
        4 => Cause::Killed(KilledFor::ConnectionLost),
        5 => Cause::Killed(KilledFor::StopOverrun),
        6 => Cause::Stopped,
        8 => Cause::Killed(KilledFor::HeartbeatLost { silence_ms: number }),
        9 => Cause::Killed(KilledFor::Hung),
        10 => Cause::OutOfMemory,
        11 => {
            let (step, reason) = refusal::from_word(word);
            Cause::StartRefused { step, reason }
        }
        _ => {
            let class = ExecutionClass::from_code((word >> 8) as u16).unwrap_or(ExecutionClass::NodeError);
            Cause::Execution { class, code: number }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::base::refusal::{RefusedFor, StartStep};

    #[test]
    fn every_outcome_comes_back_as_it_was_put() {
        let causes = [
            Cause::Deadline,
            Cause::Exit(-7),
            Cause::Signal(9),
            Cause::OutOfMemory,
            Cause::Killed(KilledFor::ConnectionLost),
            Cause::Killed(KilledFor::StopOverrun),
            Cause::Killed(KilledFor::HeartbeatLost { silence_ms: 10_000 }),
            Cause::Killed(KilledFor::Hung),
            Cause::Stopped,
            Cause::Execution { class: ExecutionClass::NoRoom, code: u32::MAX },
            Cause::StartRefused { step: StartStep::Ready, reason: RefusedFor::System { errno: -1 } },
        ];
        let corrupt = Rule::ALL.map(|rule| Cause::Killed(KilledFor::Corruption(rule)));
        let failed = causes.into_iter().chain(corrupt).map(Outcome::Failed);
        let others = [
            Outcome::Inline { len: 64 },
            Outcome::Block {
                source: Source { lane: 7, incarnation: 4096 },
                block: BlockPlace { payload_at: 4097, len: u32::MAX },
            },
            Outcome::Heap,
            Outcome::Error { len: 8 },
            Outcome::Cancelled,
        ];
        let cell = OutcomeCell::default();
        for (i, outcome) in failed.chain(others).enumerate() {
            cell.put(outcome, GroupId(i as u16), i % 2 == 0);
            assert_eq!(cell.get(), (outcome, GroupId(i as u16), i % 2 == 0));
        }
    }
}
