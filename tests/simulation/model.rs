//! What the engine's books should say, as plainly as it can be written: lists that only grow, nothing is used
//! twice, everything is looked for by walking through all of it.

use handbell::testing::{
    End, Ending, Entry, Envelope, Judged, LastMark, NotRegistered, Passed, Peer, Tables, Taken, kind, status,
};
use handbell::{Audit, Category, Cause, Counters, Event, EventKind, ExecutionClass, Identity, Rule, TraceId};

use crate::run::{Kept, Live, Seen, passed};

/// A waiter. Its number is that of its first hop.
pub struct Root {
    pub number: u64,
    pub identity: Identity,
    has_callers_id: bool,
    pub deadline_ns: u64,
    home: u16,
    /// Which place of the table it has; known from its first ticket.
    place: u32,
    pub state: State,
    is_detached: bool,
    pub has_completed: bool,
    /// So many it has had.
    branches: usize,
    /// Its number in the run, if it is in one.
    pub input: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    Open,
    /// Ended, and not taken.
    Ended(Taken),
    /// Taken, taken back, or forgotten.
    Gone,
}

/// A hop. Its number is its place in the list, + 1, and its ticket's generation.
pub struct Hop {
    pub root: usize,
    pub slot: u32,
    pub peer: Option<Peer>,
    pub position: Option<u64>,
    pub group: u16,
    depth: u32,
    pub is_open: bool,
    outputs: u64,
    /// Outputs of a second run that have gone on in the first.
    to_skip: u64,
    is_rerun: bool,
}

pub struct Model {
    tables: Tables,
    pub roots: Vec<Root>,
    pub hops: Vec<Hop>,
    pub counters: Vec<Counters>,
    pub events: Vec<Event>,
    pub live: Vec<Live>,
    /// In the order in which they came.
    pub kept: Vec<Kept>,
    pub seen: Seen,
    pub reach: Vec<Vec<u16>>,
    /// How many hops a path may have; 0 = any number.
    max_hops: u16,
}

/// What a ticket names.
enum Named {
    /// An open hop that was asked of this peer.
    Own(usize),
    /// An open hop of an open root that was asked of somebody else, or of nobody yet.
    Foreign,
    /// What is over.
    Past,
}

impl Model {
    pub fn new(tables: Tables, reach: Vec<Vec<u16>>, max_hops: u16) -> Self {
        let counters = vec![Counters::default(); tables.lanes];
        let (roots, hops, events, live) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (kept, seen) = (Vec::new(), Seen::default());
        Self { tables, roots, hops, counters, events, live, kept, seen, reach, max_hops }
    }

    pub fn ticket(&self, hop: usize) -> u64 {
        handbell::testing::ticket(self.hops[hop].slot, hop as u64 + 1)
    }

    fn is_open(&self, root: usize) -> bool {
        self.roots[root].state == State::Open
    }

    fn places_taken(&self) -> usize {
        self.roots.iter().filter(|root| root.state != State::Gone).count()
    }

    /// The newest hop that has used a slot.
    fn newest_in(&self, slot: u32) -> Option<usize> {
        self.hops.iter().rposition(|hop| hop.slot == slot)
    }

    /// The root's open hops, by slot.
    pub fn open_hops(&self, root: usize) -> Vec<usize> {
        let hops = self.hops.iter().enumerate();
        let mut open: Vec<usize> =
            hops.filter(|(_, hop)| hop.root == root && hop.is_open).map(|(at, _)| at).collect();
        open.sort_by_key(|hop| self.hops[*hop].slot);
        open
    }

    // ---- the rules ----

    /// One branch more than a request may have in its life; `closing`: its parent ends with it, and it goes on in
    /// its place.
    fn is_one_too_many(&self, root: usize, closing: bool) -> bool {
        !closing && self.roots[root].branches >= self.tables.max_branches
    }

    /// The rule by which a second terminal is a duplicate: its request completed, and neither that nor its hop has
    /// been forgotten.
    fn is_remembered(&self, number: u64) -> bool {
        let is_young = |number: u64| self.hops.len() as u64 - number < self.tables.completed_history as u64;
        let Some(hop) = number.checked_sub(1).and_then(|at| self.hops.get(at as usize)) else { return false };
        let root = &self.roots[hop.root];
        root.has_completed && is_young(number) && is_young(root.number)
    }

    fn named(&self, peer: Peer, ticket: u64, last: LastMark) -> Result<Named, Rule> {
        let (slot, number) = ((ticket & 0xFF_FFFF) as u32, ticket >> 24);
        if slot as usize >= self.tables.roots * self.tables.max_branches {
            return Err(Rule::Ticket);
        }
        let newest = self.newest_in(slot);
        if number > newest.map_or(0, |hop| hop as u64 + 1) {
            return Err(Rule::Ticket);
        }
        let Some(hop) = newest.filter(|hop| *hop as u64 + 1 == number && self.hops[*hop].is_open) else {
            return Ok(Named::Past);
        };
        if self.hops[hop].peer != Some(peer) {
            return Ok(if self.is_open(self.hops[hop].root) { Named::Foreign } else { Named::Past });
        }
        if last == LastMark::Stray {
            return Err(Rule::LastOutOfOrder);
        }
        Ok(Named::Own(hop))
    }

    // ---- calls ----

    /// Why an entry is refused, if it is.
    pub fn refusal(&self, entry: &Entry) -> Option<NotRegistered> {
        let is_in_flight =
            |root: &Root| root.state == State::Open && root.identity.trace_id == entry.identity.trace_id;
        if self.places_taken() == self.tables.roots {
            Some(NotRegistered::Full)
        } else if !entry.identity.trace_id.is_none() && self.roots.iter().any(is_in_flight) {
            Some(NotRegistered::TraceInFlight)
        } else {
            None
        }
    }

    /// Enters a request under the ticket that it was given.
    pub fn register(&mut self, entry: &Entry, ticket: u64, input: Option<u64>) -> Result<usize, String> {
        let (slot, number) = ((ticket & 0xFF_FFFF) as u32, self.hops.len() as u64 + 1);
        let place = slot / self.tables.max_branches as u32;
        let is_free = self.roots.iter().all(|root| root.state == State::Gone || root.place != place);
        if ticket >> 24 != number || slot % self.tables.max_branches as u32 != 0 || !is_free {
            return Err(format!("a request got the ticket {slot}.{}", ticket >> 24));
        }
        let mut identity = entry.identity;
        let has_callers_id = !identity.trace_id.is_none();
        if !has_callers_id {
            identity.trace_id = TraceId((u128::from(number) | 1 << 64).to_le_bytes());
        }
        self.counters[usize::from(entry.home)].registered += 1;
        self.roots.push(Root {
            number,
            identity,
            has_callers_id,
            deadline_ns: entry.deadline_ns,
            home: entry.home,
            place,
            state: State::Open,
            is_detached: false,
            branches: 1,
            has_completed: false,
            input,
        });
        let root = self.roots.len() - 1;
        self.open(root, slot, entry.target, entry.group, 1);
        Ok(root)
    }

    fn open(&mut self, root: usize, slot: u32, peer: Option<Peer>, group: u16, depth: u32) {
        let (outputs, to_skip, is_rerun) = (0, 0, false);
        let position = None;
        self.hops.push(Hop {
            root,
            slot,
            peer,
            position,
            group,
            depth,
            is_open: true,
            outputs,
            to_skip,
            is_rerun,
        });
    }

    pub fn withdraw(&mut self, root: usize) {
        self.counters[usize::from(self.roots[root].home)].registered -= 1;
        self.roots[root].state = State::Gone;
    }

    /// Gives a hop its lane, and its place there if it is sent at once; false if its root has ended.
    pub fn assign(&mut self, hop: usize, peer: Peer, position: Option<u64>) -> bool {
        if !self.is_open(self.hops[hop].root) {
            return false;
        }
        let hop = &mut self.hops[hop];
        hop.peer = Some(peer);
        hop.position = position.or(hop.position);
        true
    }

    pub fn put_down(&mut self, hop: usize) {
        self.hops[hop].is_open = false;
    }

    pub fn take_back(&mut self, peer: Peer, hop: usize) -> bool {
        let is_owed = self.is_open(self.hops[hop].root)
            && self.hops[hop].is_open
            && self.hops[hop].peer == Some(peer)
            && !self.hops[hop].is_rerun;
        if is_owed {
            let hop = &mut self.hops[hop];
            (hop.is_rerun, hop.to_skip, hop.position) = (true, hop.outputs, None);
            self.counters[usize::from(peer.lane)].taken_back += 1;
        }
        is_owed
    }

    pub fn is_rerun(&self, hop: usize) -> bool {
        self.hops[hop].is_rerun
    }

    pub fn detach(&mut self, root: usize) -> bool {
        self.roots[root].is_detached = true;
        let has_ended = !self.is_open(root);
        if has_ended {
            self.roots[root].state = State::Gone;
        }
        has_ended
    }

    pub fn is_detached(&self, root: usize) -> bool {
        self.roots[root].is_detached
    }

    pub fn take(&mut self, root: usize) -> Option<Taken> {
        let State::Ended(taken) = self.roots[root].state.clone() else { return None };
        self.roots[root].state = State::Gone;
        Some(taken)
    }

    // ---- frames ----

    /// Whether a success would end its request.
    pub fn ends(&self, peer: Peer, frame: &Envelope, last: LastMark) -> bool {
        let Ok(Named::Own(hop)) = self.named(peer, frame.ticket, last) else { return false };
        let root = self.hops[hop].root;
        self.is_open(root) && self.is_identity(root, frame)
    }

    pub fn frame(
        &mut self,
        peer: Peer,
        frame: &Envelope,
        last: LastMark,
        payload: &[u8],
        now_ns: u64,
    ) -> Judged {
        let lane = usize::from(peer.lane);
        let named = match self.named(peer, frame.ticket, last) {
            Ok(named) => named,
            Err(rule) => return Judged::Broke(rule),
        };
        self.counters[lane].terminals_received += u64::from(frame.kind == kind::TERMINAL);
        let Named::Own(hop) = named else {
            self.refuse(lane, frame, matches!(named, Named::Foreign), now_ns);
            return Judged::Dropped;
        };
        let root = self.hops[hop].root;
        if frame.kind == kind::TERMINAL {
            if !self.is_open(root) || !self.is_identity(root, frame) {
                self.refuse(lane, frame, self.is_open(root), now_ns);
            } else if self.must_wait(root, hop, last) {
                // Counted when its request has ended.
                self.counters[lane].terminals_received -= 1;
                self.keep(lane, hop, end_of(frame, payload));
            } else {
                self.counters[lane].terminals_that_ended += 1;
                if frame.status == status::ERROR {
                    self.counters[lane].failed += 1;
                } else {
                    self.counters[lane].completed_by_terminal += 1;
                    self.roots[root].has_completed = true;
                }
                let (end, group) = (end_of(frame, payload), self.hops[hop].group);
                self.hops[hop].is_open &= last != LastMark::Ended;
                self.finish(root, Taken { end, group, started: true }, now_ns);
                return Judged::Ended;
            }
        }
        if last == LastMark::Ended && self.end_branch(lane, hop, frame, now_ns) {
            return Judged::Ended;
        }
        Judged::Dropped
    }

    /// Whether a terminal does not end its request at once: that is of a run, and other branches of it are open, or
    /// have answered, or this one goes on.
    fn must_wait(&self, root: usize, hop: usize, last: LastMark) -> bool {
        let input = self.roots[root].input;
        let is_alone = last == LastMark::Ended && self.open_hops(root) == [hop];
        input.is_some() && (!is_alone || self.has_kept(input))
    }

    pub fn output(
        &mut self,
        peer: Peer,
        frame: &Envelope,
        last: LastMark,
        groups: (u16, u16),
        now_ns: u64,
        slot_given: Option<u32>,
    ) -> Result<Passed, String> {
        let lane = usize::from(peer.lane);
        let named = match self.named(peer, frame.ticket, last) {
            Ok(named) => named,
            Err(rule) => return Ok(Passed::Broke(rule)),
        };
        let Named::Own(hop) = named else {
            self.refuse(lane, frame, matches!(named, Named::Foreign), now_ns);
            return Ok(Passed::Dropped);
        };
        let (root, is_last) = (self.hops[hop].root, last == LastMark::Ended);
        let mut passed = Passed::Dropped;
        let depth = self.hops[hop].depth + 1;
        if !self.is_open(root) || !self.is_identity(root, frame) {
            self.refuse(lane, frame, self.is_open(root), now_ns);
        } else if self.max_hops != 0 && depth > u32::from(self.max_hops) {
            passed = self.fail(lane, root, ExecutionClass::TooManyHops, groups.0, now_ns);
        } else if self.hops[hop].to_skip > 0 {
            self.hops[hop].to_skip -= 1;
            self.counters[lane].replayed_output_drop += 1;
        } else {
            self.hops[hop].outputs += 1;
            if self.is_one_too_many(root, is_last) {
                passed = self.fail(lane, root, ExecutionClass::TooManyBranches, groups.0, now_ns);
            } else {
                self.hops[hop].is_open &= !is_last;
                self.roots[root].branches += usize::from(!is_last);
                self.counters[lane].forwarded += 1;
                let slot = slot_given.ok_or("an output did not go on")?;
                let is_theirs = slot / self.tables.max_branches as u32 == self.roots[root].place;
                if !is_theirs || self.open_hops(root).iter().any(|hop| self.hops[*hop].slot == slot) {
                    return Err(format!("an output goes on in slot {slot}, which is not free"));
                }
                self.open(root, slot, None, groups.1, depth);
                return Ok(Passed::On(self.ticket(self.hops.len() - 1)));
            }
        }
        if is_last && passed != Passed::Dropped {
            self.hops[hop].is_open = false;
        } else if is_last && self.end_branch(lane, hop, frame, now_ns) {
            passed = Passed::Ended;
        }
        Ok(passed)
    }

    fn is_identity(&self, root: usize, frame: &Envelope) -> bool {
        let Identity { trace_id, reply_to, run, scenario } = self.roots[root].identity;
        let id = u128::from(frame.trace_id[0]) | u128::from(frame.trace_id[1]) << 64;
        TraceId(id.to_le_bytes()) == trace_id
            && (frame.reply_to, frame.run, frame.scenario) == (reply_to, run, scenario)
    }

    /// A frame that does not count: rejected if it lies about an open request, else duplicate or late.
    fn refuse(&mut self, lane: usize, frame: &Envelope, is_lie: bool, now_ns: u64) {
        let is_terminal = frame.kind == kind::TERMINAL;
        let is_remembered = self.is_remembered(frame.ticket >> 24);
        let counters = &mut self.counters[lane];
        let kind = if is_lie {
            counters.rejected += 1;
            counters.rejected_terminal += u64::from(is_terminal);
            EventKind::Rejected
        } else if is_terminal && is_remembered {
            counters.duplicate_terminal += 1;
            EventKind::DuplicateTerminal
        } else if is_terminal {
            counters.late_reply_drop += 1;
            EventKind::LateReplyDrop
        } else {
            counters.late_output_drop += u64::from(frame.kind == kind::OUTPUT);
            return;
        };
        let id = u128::from(frame.trace_id[0]) | u128::from(frame.trace_id[1]) << 64;
        let trace_id = TraceId(id.to_le_bytes());
        self.events.push(Event { kind, trace_id, at_ns: now_ns, status: None });
    }

    /// A hop has ended; true if its root has ended by that.
    fn end_branch(&mut self, lane: usize, hop: usize, frame: &Envelope, now_ns: u64) -> bool {
        self.hops[hop].is_open = false;
        let (root, group) = (self.hops[hop].root, self.hops[hop].group);
        if !self.open_hops(root).is_empty() {
            return false;
        }
        if !self.is_open(root) {
            // What was kept of it is known to be late now, at the latest when its owner takes it.
            self.drop_kept_of(root, now_ns);
            return false;
        }
        let deadline_ns = self.roots[root].deadline_ns;
        let is_due = deadline_ns != 0 && now_ns >= deadline_ns;
        if self.has_kept(self.roots[root].input) {
            // A worker that skips a frame for its deadline ends the branch with nothing else.
            let passed = is_due.then(|| passed(group, frame.kind != kind::DONE));
            self.end_with_answer(root, passed, now_ns);
        } else if is_due {
            self.counters[lane].expired += 1;
            self.finish(root, passed(group, false), now_ns);
        } else {
            self.counters[lane].completed_by_last += 1;
            self.roots[root].has_completed = true;
            self.finish(root, Taken { end: End::Success(Vec::new()), group, started: true }, now_ns);
        }
        true
    }

    fn fail(&mut self, lane: usize, root: usize, class: ExecutionClass, group: u16, now_ns: u64) -> Passed {
        self.counters[lane].failed += 1;
        let end = End::Failed(Cause::Execution { class, code: 0 });
        self.finish(root, Taken { end, group, started: true }, now_ns);
        Passed::Ended
    }

    // ---- ends ----

    pub fn finish(&mut self, root: usize, taken: Taken, now_ns: u64) {
        let (kind, status) = match &taken.end {
            End::Success(_) => (EventKind::Completed, None),
            End::Cancelled => (EventKind::Cancelled, None),
            End::Error(_) | End::Failed(Cause::Execution { .. }) => {
                (EventKind::Failed, Some(Category::Execution))
            }
            End::Failed(Cause::Deadline) => (EventKind::Expired, Some(Category::Timeout)),
            End::Failed(Cause::Stopped) => (EventKind::Failed, Some(Category::Shutdown)),
            End::Failed(_) => (EventKind::Failed, Some(Category::Transport)),
        };
        let root = &mut self.roots[root];
        self.events.push(Event { kind, trace_id: root.identity.trace_id, at_ns: now_ns, status });
        root.state = if root.is_detached { State::Gone } else { State::Ended(taken) };
    }

    /// Ends a root; where its frames stand, and one of its hops that had not ended, if it was open.
    pub fn end(
        &mut self,
        root: usize,
        place: Option<Peer>,
        cause: Option<Cause>,
        now_ns: u64,
        started: &dyn Fn(Peer, u64) -> bool,
    ) -> Option<Ending> {
        if !self.is_open(root) {
            return None;
        }
        let counters = &mut self.counters[usize::from(self.roots[root].home)];
        match cause {
            None => counters.cancelled += 1,
            Some(Cause::Deadline) => counters.expired += 1,
            Some(_) => counters.failed += 1,
        }
        let lane_of = |peer: Option<Peer>| peer.map(|peer| peer.lane);
        let is_there = |hop: &usize| place.is_none() || lane_of(self.hops[*hop].peer) == lane_of(place);
        let is_of_another_life = |hop: usize| place.is_some() && self.hops[hop].peer != place;
        let open = self.open_hops(root);
        // The oldest open one, rather of this life; between two hops of a path, the latest one.
        let oldest = open.iter().copied().filter(is_there).min_by_key(|hop| (is_of_another_life(*hop), *hop));
        let failed = oldest.or_else(|| {
            let is_left = |hop: &usize| {
                self.hops[*hop].root == root && self.newest_in(self.hops[*hop].slot) == Some(*hop)
            };
            (0..self.hops.len()).rev().filter(is_left).find(is_there)
        });
        let placed = |hop: usize| Some((self.hops[hop].peer?, self.hops[hop].position?));
        let taken = Taken {
            end: cause.map_or(End::Cancelled, End::Failed),
            group: failed.map_or(0, |hop| self.hops[hop].group),
            started: failed.and_then(placed).is_some_and(|(peer, position)| started(peer, position)),
        };
        let trace_id = self.roots[root].identity.trace_id;
        let hop = open.first().map(|hop| self.ticket(*hop));
        let frames = open.into_iter().filter_map(placed).collect();
        self.finish(root, taken, now_ns);
        Some(Ending { trace_id, frames, hop })
    }

    /// Open roots that are due, in the order in which they end.
    pub fn due(&self, now_ns: u64) -> Vec<usize> {
        let is_due =
            |root: &Root| root.state == State::Open && root.deadline_ns != 0 && now_ns >= root.deadline_ns;
        let mut due: Vec<usize> = (0..self.roots.len()).filter(|root| is_due(&self.roots[*root])).collect();
        due.sort_by_key(|root| self.roots[*root].deadline_ns);
        due
    }

    /// Open roots with a hop that a dead worker owes: of this life, and sent; without a successor, all that is asked
    /// of its lane.
    pub fn owed_by(&self, peer: Peer, has_successor: bool) -> Vec<usize> {
        let is_owed = |hop: &usize| {
            let hop = &self.hops[*hop];
            match has_successor {
                true => hop.peer == Some(peer) && hop.position.is_some(),
                // What waits for one may have been asked of an earlier life.
                false => hop.peer.is_some_and(|of| of.lane == peer.lane),
            }
        };
        let open = (0..self.roots.len()).filter(|root| self.is_open(*root));
        open.filter(|root| self.open_hops(*root).iter().any(is_owed)).collect()
    }

    // ---- the books ----

    pub fn audit(&self) -> Audit {
        let open: Vec<usize> = (0..self.roots.len()).filter(|root| self.is_open(*root)).collect();
        let with_id = open.iter().filter(|root| self.roots[**root].has_callers_id);
        Audit {
            in_flight: open.len() as u64,
            not_taken: (self.places_taken() - open.len()) as u64,
            free: (self.tables.roots - self.places_taken()) as u64,
            ids_in_flight: with_id.count() as u64,
            open_hops: open.iter().map(|root| self.open_hops(*root).len() as u64).sum(),
        }
    }

    /// Open roots of which nothing can come any more: they would wait for ever.
    pub fn forgotten(&self) -> Vec<usize> {
        let open = (0..self.roots.len()).filter(|root| self.is_open(*root));
        open.filter(|root| self.open_hops(*root).is_empty()).collect()
    }

    pub fn newest_events(&self) -> &[Event] {
        &self.events[self.events.len().saturating_sub(256)..]
    }
}

/// What a terminal says.
fn end_of(frame: &Envelope, payload: &[u8]) -> End {
    match frame.status {
        status::ERROR => End::Error(payload.to_vec()),
        _ => End::Success(payload.to_vec()),
    }
}
