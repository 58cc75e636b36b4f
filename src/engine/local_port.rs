//! Where the frames of a group go that runs in this process: straight to the correlation table.
//!
//! As in a worker, a frame is held back until the next one, or until the node has returned; so the last one
//! carries LAST, and a request is as long open, and takes as many entries, in either profile.

use super::answer::Answer;
use super::correlation::{Admitted, Correlation, Outcome, Source, Verdict};
use super::forward::{Carried, Wakes};
use super::local::Job;
use super::reply::Reply;
use super::shared::Shared;
use crate::base::clock::has_passed;
use crate::base::failure::ExecutionClass;
use crate::base::ids::{GroupId, NodeId};
use crate::base::sync::{AtomicU64, Ordering};
use crate::lane::LastMark;
use crate::node::EmitError;
use crate::node::executor::{Port, Way};
use crate::wire::envelope::{Envelope, flags, kind, status};
use crate::wire::error;

/// What a frame says beside what it carries back. Its envelope is put together when it is handed over: moved before,
/// it would cost more than all else here.
enum Said {
    Terminal,
    Error,
    Done,
    Output(Way),
}

/// The frames of one request, one after the other.
pub(super) struct LocalPort<'a> {
    source: Source,
    group: GroupId,
    shared: &'a Shared,
    job: &'a Job<'a>,
    /// The latest frame, and its payload as the reply that it may be.
    staged: Option<(Said, Reply)>,
    /// There was a frame before it.
    has_committed: bool,
    wakes: Wakes,
}

impl<'a> LocalPort<'a> {
    pub fn new(source: Source, group: GroupId, shared: &'a Shared, job: &'a Job<'a>) -> Self {
        Self { source, group, shared, job, staged: None, has_committed: false, wakes: Wakes::new() }
    }

    pub fn correlation(&self) -> &'a Correlation {
        &self.shared.correlation
    }

    /// Ends the request. Returns who must be told.
    #[inline(never)]
    pub fn finish(&mut self) -> Wakes {
        if self.staged.is_none() {
            self.stage(Said::Done, self.copy_of(&[]));
        }
        self.commit(LastMark::Ended);
        std::mem::take(&mut self.wakes)
    }

    /// Ends the request for its owner, who is here; with one reply, which is the usual case, at once. If not, returns
    /// who must be told.
    #[inline(always)]
    pub fn finish_own(&mut self, admitted: &Admitted) -> Result<Reply, Wakes> {
        let is_usual = !self.has_committed && matches!(self.staged, Some((Said::Terminal, _)));
        if is_usual
            && self.shared.correlation.end_own_run(admitted, self.source, self.now_ns())
            && let Some((_, reply)) = self.staged.take()
        {
            return Ok(reply);
        }
        Err(self.finish())
    }

    fn copy_of(&self, bytes: &[u8]) -> Reply {
        Reply::copy_of(self.job.identity, bytes)
    }

    fn envelope(&self, said: &Said) -> Envelope {
        let identity = self.job.identity;
        let carried = Envelope {
            trace_id: identity.trace_id.to_words(),
            ticket: self.job.ticket.0,
            reply_to: identity.reply_to,
            run: identity.run,
            scenario: identity.scenario,
            ..Envelope::default()
        };
        match said {
            Said::Terminal => Envelope { kind: kind::TERMINAL, status: status::SUCCESS, ..carried },
            Said::Error => Envelope { kind: kind::TERMINAL, status: status::ERROR, ..carried },
            Said::Done => Envelope { kind: kind::DONE, status: status::SUCCESS, ..carried },
            Said::Output(way) => Envelope {
                kind: kind::OUTPUT,
                status: status::SUCCESS,
                source: way.source.0,
                target: way.target.0,
                deadline_ns: way.key.unwrap_or(0),
                flags: if way.key.is_some() { flags::KEYED } else { 0 },
                ..carried
            },
        }
    }

    #[inline(always)]
    fn stage(&mut self, said: Said, payload: Reply) {
        if self.staged.is_some() {
            self.commit(LastMark::No);
        }
        self.staged = Some((said, payload));
    }

    /// Hands the staged frame over.
    #[inline(never)]
    fn commit(&mut self, last: LastMark) {
        let Some((said, payload)) = self.staged.take() else { return };
        self.has_committed = true;
        let envelope = self.envelope(&said);
        let now_ns = self.now_ns();
        if envelope.kind == kind::OUTPUT {
            let payload = payload.bytes();
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
    fn end(&mut self, envelope: &Envelope, payload: Reply, last: LastMark, now_ns: u64) {
        let (shared, index) = (self.shared, self.job.root.index);
        let len = payload.len();
        let outcome = match envelope.status {
            status::ERROR => Outcome::Error { len: len as u32 },
            _ if len > self.cell_bytes() => Outcome::Heap,
            _ => Outcome::Inline { len: len as u32 },
        };
        let mut payload = Some(payload);
        let fill = |cell: &[AtomicU64]| match outcome {
            Outcome::Heap => {
                shared.keep_payload(index, payload.take().map(Reply::into_vec).unwrap_or_default().into());
            }
            _ => fill_cell(cell, &payload.as_ref().map(Reply::bytes).unwrap_or_default()),
        };
        let verdict = shared.correlation.frame(self.source, envelope, last, |_| outcome, now_ns, fill);
        let mut verdict = verdict.expect("the engine's own frames keep the rules");
        if let (Verdict::Candidate(key), Some(payload)) = (verdict, payload) {
            let (source, group, bytes) = (self.source, self.group, payload.into_vec().into());
            verdict =
                shared.keep_answer(key, Answer { source, group, envelope: *envelope, bytes }, last, now_ns);
        }
        shared.follow(verdict, envelope, now_ns, &mut self.wakes);
    }

    /// The clock as frames of this request are judged by it.
    fn now_ns(&self) -> u64 {
        let now_ns = self.shared.clock_for(self.job.deadline_ns);
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
        self.stage(Said::Terminal, self.copy_of(payload));
        Ok(())
    }

    fn reply_with(
        &mut self,
        _source: NodeId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        self.check(len)?;
        let reply = Reply::filled(self.job.identity, len, fill);
        self.stage(Said::Terminal, reply);
        Ok(())
    }

    fn pass_on(&mut self, way: Way, payload: &[u8]) -> Result<(), EmitError> {
        self.check(payload.len())?;
        self.stage(Said::Output(way), self.copy_of(payload));
        Ok(())
    }

    fn fail(&mut self, _source: NodeId, class: ExecutionClass, code: u32, text: &str) {
        let mut payload = [0; error::MAX_BYTES];
        let len = error::encode(class, code, text, self.cell_bytes(), &mut payload);
        if class == ExecutionClass::Misrouted {
            self.shared.correlation.misrouted(self.source.lane);
        }
        self.stage(Said::Error, self.copy_of(&payload[..len]));
    }

    fn progress(&mut self) {}
}
