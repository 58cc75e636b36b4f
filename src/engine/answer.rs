//! Answers in a run, of inputs that have other branches: kept until the last of them has ended.

use std::collections::btree_map::Entry;

use super::correlation::{Outcome, RootKey, Source, Tally, Verdict, Winner};
use super::forward::Wakes;
use super::local_port::fill_cell;
use super::shared::Shared;
use crate::base::ids::{GroupId, TraceId};
use crate::base::sync::Ordering;
use crate::lane::LastMark;
use crate::wire::envelope::{Envelope, status};

/// A terminal, copied into this process.
pub(super) struct Answer {
    pub source: Source,
    /// That it came from.
    pub group: GroupId,
    pub envelope: Envelope,
    pub bytes: Box<[u8]>,
}

/// Those of one input.
pub(super) struct Answers {
    /// In the order of places; the payloads of the others are not kept.
    first: Answer,
    pub tally: Tally,
}

impl Answers {
    /// Adds one to those of its input. Its bytes count as held between groups.
    pub fn add(of_input: Entry<'_, u64, Self>, shared: &Shared, answer: Answer, is_first: bool) {
        let lane = answer.source.lane;
        let held = |answer: &Answer| answer.bytes.len() as u64;
        match of_input {
            Entry::Vacant(place) => {
                shared.forwarded_bytes.fetch_add(held(&answer), Ordering::Relaxed);
                let mut tally = Tally::new(TraceId::from_words(answer.envelope.trace_id));
                tally.add(lane);
                place.insert(Self { first: answer, tally });
            }
            Entry::Occupied(mut place) => {
                let answers = place.get_mut();
                answers.tally.add(lane);
                if is_first {
                    shared.forwarded_bytes.fetch_add(held(&answer), Ordering::Relaxed);
                    answers.let_go(shared);
                    answers.first = answer;
                }
            }
        }
    }

    /// Its bytes are not held any more.
    pub fn let_go(&self, shared: &Shared) {
        shared.forward_gone(&self.first.bytes);
    }
}

impl Shared {
    /// Keeps an answer of an input that has other branches. What then follows is the verdict on its frame.
    #[cold]
    pub fn keep_answer(&self, key: RootKey, answer: Answer, last: LastMark, now_ns: u64) -> Verdict {
        let (source, envelope) = (answer.source, answer.envelope);
        let order = self.order_of(key.index);
        let is_kept = order.is_some_and(|order| order.answer(self, envelope.ticket, answer));
        self.correlation.candidate(source, &envelope, key, last, is_kept, now_ns)
    }

    /// The last branch of an input has ended, and there are answers.
    #[cold]
    pub fn end_with_answer(&self, envelope: &Envelope, key: RootKey, now_ns: u64, wakes: &mut Wakes) {
        let order = self.order_of(key.index);
        let answers = order.and_then(|order| order.take_answers(self, envelope.ticket));
        let Some(Answers { first, tally }) = answers else {
            // Something else has ended the input, and its owner has left.
            return debug_assert!(!self.correlation.is_open(key));
        };
        let Answer { source, group, envelope: answered, bytes } = first;
        let len = bytes.len() as u32;
        let outcome = match answered.status {
            status::ERROR => Outcome::Error { len },
            _ if bytes.len() > 8 * self.correlation.cell(key.index).len() => Outcome::Heap,
            _ => Outcome::Inline { len },
        };
        let winner = Winner { lane: source.lane, group, outcome };
        let verdict =
            self.correlation.end_with_answer(envelope, key, winner, &tally, now_ns, |cell| match outcome {
                Outcome::Heap => self.keep_payload(key.index, bytes),
                _ => fill_cell(cell, &bytes),
            });
        if let Verdict::Ended(index, aftermath) = verdict {
            self.settle(index, aftermath, wakes);
        }
    }
}
