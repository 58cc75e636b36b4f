//! Where the frames of a group go that runs in this process: straight to the correlation table.
//!
//! As in a worker, a frame is held back until the next one, or until the node has returned; so the last one
//! carries LAST, and a request is as long open, and takes as many entries, in either profile.

use super::answer::Answer;
use super::correlation::{Outcome, Source, Verdict};
use super::forward::{Carried, Wakes};
use super::local::Job;
use super::shared::Shared;
use crate::base::clock::has_passed;
use crate::base::failure::ExecutionClass;
use crate::base::ids::{GroupId, NodeId};
use crate::base::sync::{AtomicU64, Ordering};
use crate::lane::LastMark;
use crate::node::EmitError;
use crate::node::executor::{Port, Way};
use crate::os::clock;
use crate::wire::envelope::{Envelope, flags, kind, status};
use crate::wire::error;

/// The frames of one request, one after the other.
pub(super) struct LocalPort<'a> {
    source: Source,
    group: GroupId,
    shared: &'a Shared,
    job: &'a Job,
    /// The latest frame and its payload.
    staged: Option<(Envelope, Vec<u8>)>,
    wakes: Wakes,
}

impl<'a> LocalPort<'a> {
    pub fn new(source: Source, group: GroupId, shared: &'a Shared, job: &'a Job) -> Self {
        Self { source, group, shared, job, staged: None, wakes: Wakes::new() }
    }

    /// Ends the request. Returns who must be told.
    pub fn finish(mut self) -> Wakes {
        if self.staged.is_none() {
            self.stage(self.envelope(kind::DONE, status::SUCCESS), Vec::new());
        }
        self.commit(LastMark::Ended);
        self.wakes
    }

    fn envelope(&self, kind: u8, status: u8) -> Envelope {
        let identity = self.job.identity;
        Envelope {
            trace_id: identity.trace_id.to_words(),
            ticket: self.job.ticket.0,
            reply_to: identity.reply_to,
            run: identity.run,
            scenario: identity.scenario,
            kind,
            status,
            ..Envelope::default()
        }
    }

    fn stage(&mut self, envelope: Envelope, payload: Vec<u8>) {
        self.commit(LastMark::No);
        self.staged = Some((envelope, payload));
    }

    /// Hands the staged frame over.
    fn commit(&mut self, last: LastMark) {
        let Some((envelope, payload)) = self.staged.take() else { return };
        let now_ns = self.now_ns();
        if envelope.kind == kind::OUTPUT {
            let payload = Carried::Heap(&payload);
            let (source, group) = (self.source, self.group);
            let passed = self.shared.pass(source, group, &envelope, last, payload, now_ns, &mut self.wakes);
            passed.expect("the engine's own frames keep the rules");
        } else {
            self.end(&envelope, payload, last, now_ns);
        }
        if last == LastMark::Ended {
            self.shared.branch_ended(&envelope, &mut self.wakes);
        }
    }

    /// A terminal, or the end of the branch.
    fn end(&mut self, envelope: &Envelope, payload: Vec<u8>, last: LastMark, now_ns: u64) {
        let (shared, index) = (self.shared, self.job.root.index);
        let len = payload.len() as u32;
        let outcome = match envelope.status {
            status::ERROR => Outcome::Error { len },
            _ if payload.len() > self.cell_bytes() => Outcome::Heap,
            _ => Outcome::Inline { len },
        };
        let mut payload = payload;
        let fill = |cell: &[AtomicU64]| match outcome {
            Outcome::Heap => shared.keep_payload(index, std::mem::take(&mut payload).into()),
            _ => fill_cell(cell, &payload),
        };
        let verdict = shared.correlation.frame(self.source, envelope, last, |_| outcome, now_ns, fill);
        let mut verdict = verdict.expect("the engine's own frames keep the rules");
        if let Verdict::Candidate(key) = verdict {
            let (source, group, bytes) = (self.source, self.group, payload.into());
            verdict =
                shared.keep_answer(key, Answer { source, group, envelope: *envelope, bytes }, last, now_ns);
        }
        shared.follow(verdict, envelope, now_ns, &mut self.wakes);
    }

    /// The clock as frames of this request are judged by it.
    fn now_ns(&self) -> u64 {
        let now_ns = if self.job.deadline_ns == 0 { clock::coarse_ns() } else { clock::monotonic_ns() };
        if has_passed(self.job.deadline_ns, now_ns) {
            // The node was not interrupted, but what comes after the deadline is late.
            self.shared.expire_if_due(self.job.root, now_ns);
        }
        now_ns
    }

    fn check(&self, len: usize) -> Result<(), EmitError> {
        let limit = self.max_payload();
        if len <= limit { Ok(()) } else { Err(EmitError::TooLarge { size: len, limit }) }
    }

    fn cell_bytes(&self) -> usize {
        8 * self.shared.correlation.cell(self.job.root.index).len()
    }
}

/// Puts bytes into a root's cell. Relaxed: published by the end of the root.
pub(super) fn fill_cell(cell: &[AtomicU64], payload: &[u8]) {
    for (word, bytes) in cell.iter().zip(payload.chunks(8)) {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(value), Ordering::Relaxed);
    }
}

impl Port for LocalPort<'_> {
    fn max_payload(&self) -> usize {
        self.shared.geometry.reply_arena_bytes
    }

    fn max_onward(&self) -> usize {
        self.max_payload().min(self.shared.max_payload())
    }

    fn reply(&mut self, _source: NodeId, payload: &[u8]) -> Result<(), EmitError> {
        self.check(payload.len())?;
        self.stage(self.envelope(kind::TERMINAL, status::SUCCESS), payload.to_vec());
        Ok(())
    }

    fn reply_with(
        &mut self,
        _source: NodeId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        self.check(len)?;
        let mut payload = vec![0; len];
        fill(&mut payload);
        self.stage(self.envelope(kind::TERMINAL, status::SUCCESS), payload);
        Ok(())
    }

    fn pass_on(&mut self, way: Way, payload: &[u8]) -> Result<(), EmitError> {
        self.check(payload.len())?;
        let envelope = Envelope {
            source: way.source.0,
            target: way.target.0,
            deadline_ns: way.key.unwrap_or(0),
            flags: if way.key.is_some() { flags::KEYED } else { 0 },
            ..self.envelope(kind::OUTPUT, status::SUCCESS)
        };
        self.stage(envelope, payload.to_vec());
        Ok(())
    }

    fn fail(&mut self, _source: NodeId, class: ExecutionClass, code: u32, text: &str) {
        let mut payload = [0; error::MAX_BYTES];
        let len = error::encode(class, code, text, self.cell_bytes(), &mut payload);
        if class == ExecutionClass::Misrouted {
            self.shared.correlation.misrouted(self.source.lane);
        }
        self.stage(self.envelope(kind::TERMINAL, status::ERROR), payload[..len].to_vec());
    }

    fn progress(&mut self) {}
}
