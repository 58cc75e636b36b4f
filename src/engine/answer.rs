//! Answers in a run, of inputs that have other branches: kept until the last of them has ended.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::correlation::{Outcome, RootKey, Source, Tally, Verdict, Winner};
use super::forward::Wakes;
use super::local_port::fill_cell;
use super::order::{Marked, Order, Reach};
use super::shared::Shared;
use crate::base::ids::{GroupId, TraceId};
use crate::lane::LastMark;
use crate::wire::envelope::{Envelope, status};

/// A terminal, copied into this process.
pub(crate) struct Answer {
    pub source: Source,
    /// That it came from.
    pub group: GroupId,
    pub envelope: Envelope,
    pub bytes: Box<[u8]>,
}

/// Those of one input.
pub(crate) struct Answers {
    /// In the order of places; the payloads of the others are not kept.
    pub first: Answer,
    pub tally: Tally,
}

impl Answers {
    /// The one that counts; beyond `cell_bytes` its payload does not fit the request's cell.
    pub fn winner(&self, cell_bytes: usize) -> Winner {
        let Answer { source, group, envelope, bytes } = &self.first;
        let len = bytes.len() as u32;
        let outcome = match envelope.status {
            status::ERROR => Outcome::Error { len },
            _ if bytes.len() > cell_bytes => Outcome::Heap,
            _ => Outcome::Inline { len },
        };
        Winner { lane: source.lane, group: *group, outcome }
    }
}

/// The frames of one run, in order, and its answers. Its user locks.
pub(crate) struct Answered<T> {
    pub order: Order<T>,
    /// Of inputs whose requests have not ended.
    answers: BTreeMap<u64, Answers>,
}

impl<T> Answered<T> {
    /// Of a run without frames.
    pub fn new(reach: Arc<Reach>) -> Self {
        Self { order: Order::new(reach), answers: BTreeMap::new() }
    }

    /// An answer by the executing frame `parent`, of an input that has other branches. What comes back is the answer
    /// whose payload does not count by this, or by the one that stands before it.
    ///
    /// # Errors
    ///
    /// The answer, if no frame `parent` executes: its input has ended.
    pub fn answer(&mut self, parent: u64, answer: Answer) -> Result<Option<Answer>, Answer> {
        let Some(Marked { input, is_first }) = self.order.mark(parent) else { return Err(answer) };
        let lane = answer.source.lane;
        match self.answers.entry(input) {
            Entry::Vacant(place) => {
                let mut tally = Tally::new(TraceId::from_words(answer.envelope.trace_id));
                tally.add(lane);
                place.insert(Answers { first: answer, tally });
                Ok(None)
            }
            Entry::Occupied(mut place) => {
                let answers = place.get_mut();
                answers.tally.add(lane);
                let later = if is_first { std::mem::replace(&mut answers.first, answer) } else { answer };
                Ok(Some(later))
            }
        }
    }

    /// Takes the answers of the input that this frame belongs to; its was the last branch.
    pub fn take_answers(&mut self, id: u64) -> Option<Answers> {
        self.answers.remove(&self.order.input_of(id)?)
    }

    /// An input leaves, whose request has ended: its frames that were held, in order, and its answers, which are late.
    pub fn leave(&mut self, input: u64) -> (Vec<T>, Option<Answers>) {
        (self.order.end_input(input), self.answers.remove(&input))
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
        let Some(answers) = order.and_then(|order| order.take_answers(self, envelope.ticket)) else {
            // Something else has ended the input, and its owner has left.
            return debug_assert!(!self.correlation.is_open(key));
        };
        let winner = answers.winner(8 * self.correlation.cell(key.index).len());
        let Answers { first: Answer { bytes, .. }, tally } = answers;
        let verdict = self.correlation.end_with_answer(envelope, key, winner, &tally, now_ns, |cell| {
            match winner.outcome {
                Outcome::Heap => self.keep_payload(key.index, bytes),
                _ => fill_cell(cell, &bytes),
            }
        });
        if let Verdict::Ended(index, aftermath) = verdict {
            self.settle(index, aftermath, wakes);
        }
    }
}
