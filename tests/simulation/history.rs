//! One random history: what callers, workers and clocks could do, done to the engine's books and to the model, which
//! are compared after every step. The rings are here, as lists: which frame is the oldest of its lane, and what
//! stands in front of a lane without room.

use std::collections::VecDeque;
use std::fmt::Write as _;

use handbell::testing::{Ending, Entry, Machine, Peer, Tables, Waiter};
use handbell::{Cause, Counters, Identity, KilledFor, TraceId};

use crate::model::{Model, State};
use crate::numbers::Numbers;

/// What did not agree.
pub type Step = Result<(), String>;

/// A process's seat, in its present life.
pub struct Lane {
    pub peer: Peer,
    pub group: u16,
    pub is_live: bool,
    /// Dead, and nothing follows.
    pub is_lost: bool,
    /// Tickets of what has been sent and whose LAST has not been read; the first has position `freed`.
    pub ring: VecDeque<u64>,
    pub freed: u64,
    /// Positions that the worker has begun.
    pub begun: u64,
    /// Hops that wait for room.
    pub queue: VecDeque<usize>,
}

pub struct History {
    numbers: Numbers,
    pub machine: Machine,
    pub model: Model,
    pub waiters: Vec<Waiter>,
    pub lanes: Vec<Lane>,
    pub groups: Vec<Group>,
    pub tables: Tables,
    capacity: usize,
    pub max_hops: u16,
    pub now_ns: u64,
    inputs: u64,
    /// What was done and what came of it.
    pub log: String,
    pub steps: u64,
}

pub struct Group {
    pub redispatch_unstarted: bool,
    pub idempotent: bool,
}

/// Compares what both sides say.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, books: T, model: T) -> Step {
    if books == model { Ok(()) } else { Err(format!("{what}: the books say {books:?}, the model {model:?}")) }
}

impl History {
    pub fn new(seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let groups = 1 + numbers.below(3) as u16;
        let processes = 1 + numbers.below(2) as u16;
        let tables = Tables {
            roots: 1 + numbers.below(5) as usize,
            max_branches: 1 + numbers.below(4) as usize,
            completed_history: 1 + numbers.below(12) as usize,
            lanes: usize::from(groups * processes),
        };
        let lane = |number: u16| Lane {
            peer: Peer { lane: number, incarnation: 1 },
            group: number / processes,
            is_live: true,
            is_lost: false,
            ring: VecDeque::new(),
            freed: 0,
            begun: 0,
            queue: VecDeque::new(),
        };
        let seats: Vec<u16> = (0..groups * processes).map(|lane| lane / processes).collect();
        let reach: Vec<Vec<u16>> = (0..groups).map(|group| (group + 1..groups).collect()).collect();
        let max_hops = [0, 0, 2, 4][numbers.below(4) as usize];
        let mut group = || {
            let redispatch_unstarted = numbers.below(3) != 0;
            Group { redispatch_unstarted, idempotent: redispatch_unstarted && numbers.below(3) != 0 }
        };
        Self {
            groups: (0..groups).map(|_| group()).collect(),
            machine: Machine::over(tables, &reach, &seats),
            model: Model::new(tables, reach, max_hops),
            waiters: Vec::new(),
            lanes: (0..groups * processes).map(lane).collect(),
            tables,
            capacity: 1 + numbers.below(4) as usize,
            max_hops,
            now_ns: 1,
            inputs: 0,
            log: String::new(),
            steps: 0,
            numbers,
        }
    }

    pub fn counters(&self) -> Counters {
        self.machine.counters().into_iter().fold(Counters::default(), |sum, lane| sum + lane)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.numbers.below(limit as u64) as usize
    }

    pub fn some_lane(&mut self, which: impl Fn(&Lane) -> bool) -> Option<usize> {
        let lanes: Vec<usize> = (0..self.lanes.len()).filter(|lane| which(&self.lanes[*lane])).collect();
        if lanes.is_empty() { None } else { Some(lanes[self.below(lanes.len())]) }
    }

    pub fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    /// Does so many things, and then lets everything end.
    pub fn run(&mut self) -> Step {
        let steps = if self.one_in(100) { 500 } else { 20 + self.below(60) };
        for _ in 0..steps {
            self.step()?;
            self.compare()?;
        }
        self.close()?;
        same("at the end, kept answers", self.model.kept.len(), 0)?;
        let (audit, roots) = (self.machine.audit(), self.tables.roots as u64);
        same("at the end, places", (audit.free, audit.in_flight, audit.not_taken), (roots, 0, 0))
    }

    fn step(&mut self) -> Step {
        self.steps += 1;
        match self.below(44) {
            0..=7 => self.request(),
            8..=10 => {
                let lane = self.below(self.lanes.len());
                let lane = &mut self.lanes[lane];
                lane.begun = (lane.begun + 1).min(lane.freed + lane.ring.len() as u64);
                Ok(())
            }
            11..=24 => self.answer(),
            25..=27 => self.lie(),
            28..=29 => self.give_up(),
            30..=32 => self.pass_time(),
            33..=36 => self.take(),
            37 => self.detach(),
            38..=39 => {
                let cause = [Cause::Exit(3), Cause::Signal(9), Cause::Killed(KilledFor::Hung)][self.below(3)];
                match self.some_lane(|lane| lane.is_live && !lane.ring.is_empty()) {
                    Some(lane) => self.die(lane, cause),
                    None => Ok(()),
                }
            }
            _ => match self.some_lane(|lane| !lane.is_live && !lane.is_lost) {
                Some(lane) if self.one_in(6) => self.give_up_on(lane),
                Some(lane) => self.revive(lane),
                None => Ok(()),
            },
        }
    }

    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.log, "{:>4} at {}: {what}", self.steps, self.now_ns);
    }

    // ---- callers ----

    fn request(&mut self) -> Step {
        let lane = self.below(self.lanes.len());
        let in_run = self.one_in(3);
        let waits = in_run || self.one_in(3);
        let has_room = self.lanes[lane].is_live && self.lanes[lane].ring.len() < self.capacity;
        if self.lanes[lane].is_lost || !waits && (!has_room || !self.lanes[lane].queue.is_empty()) {
            return Ok(());
        }
        let trace_id =
            if self.one_in(2) { TraceId::default() } else { TraceId::from(1 + self.below(4) as u128) };
        let entry = Entry {
            identity: Identity {
                trace_id,
                reply_to: self.below(2) as u32,
                run: self.below(2) as u16,
                scenario: self.below(2) as u16,
            },
            deadline_ns: if self.one_in(2) { 0 } else { self.now_ns + self.below(40) as u64 },
            home: lane as u16,
            target: (!waits).then_some(self.lanes[lane].peer),
            group: self.lanes[lane].group,
        };
        let refusal = self.model.refusal(&entry);
        let waiter = self.machine.register(&entry);
        let Identity { reply_to, run, scenario, .. } = entry.identity;
        self.note(format_args!(
            "request of {trace_id} {reply_to}/{run}/{scenario} due {} of lane {lane}, waits {waits}, in a run \
             {in_run}: {:?}",
            entry.deadline_ns,
            waiter.as_ref().map(Waiter::ticket)
        ));
        same("refusal", waiter.as_ref().err().copied(), refusal)?;
        let Ok(waiter) = waiter else { return Ok(()) };
        let input = in_run.then(|| {
            self.inputs += 1;
            self.inputs
        });
        let root = self.model.register(&entry, waiter.ticket(), input)?;
        same("trace id", waiter.trace_id(), self.model.roots[root].identity.trace_id)?;
        self.waiters.push(waiter);
        let hop = self.model.hops.len() - 1;
        if let Some(input) = input {
            self.machine.input(input, &waiter, entry.group);
            self.model.run_input(input, hop);
            self.enter_all()
        } else if waits {
            self.hand_on(hop)
        } else if self.one_in(10) {
            self.note(format_args!("withdrawn"));
            self.machine.withdraw(&waiter);
            self.model.withdraw(root);
            Ok(())
        } else {
            let position = self.sent(lane, waiter.ticket());
            self.machine.placed(waiter.ticket(), position);
            self.model.hops[hop].position = Some(position);
            Ok(())
        }
    }

    fn some_root(&mut self) -> Option<usize> {
        let roots = self.model.roots.len();
        (roots > 0).then(|| roots - 1 - self.below(roots.min(8)))
    }

    fn give_up(&mut self) -> Step {
        let Some(root) = self.some_root() else { return Ok(()) };
        let cause = self.one_in(3).then_some(Cause::Deadline);
        let due = &self.model.roots[root];
        if cause.is_some() && (due.deadline_ns == 0 || self.now_ns < due.deadline_ns) {
            return Ok(());
        }
        if self.model.roots[root].state == State::Gone {
            // Its owner has let go of it.
            return Ok(());
        }
        let begun = self.begun();
        let started = |peer, position| begun(peer, position);
        let ended = self.machine.end(&self.waiters[root], cause, self.now_ns, started);
        let expected = self.model.end(root, None, cause, self.now_ns, &started);
        self.note(format_args!("request {root} given up ({cause:?}): {ended:?}"));
        same("its end", ended.as_ref(), expected.as_ref())?;
        if ended.is_some() { self.make_way(&[root]) } else { Ok(()) }
    }

    fn take(&mut self) -> Step {
        let Some(root) = self.some_root() else { return Ok(()) };
        self.take_root(root)
    }

    pub fn take_root(&mut self, root: usize) -> Step {
        if self.model.roots[root].state == State::Gone {
            return Ok(());
        }
        if let (State::Ended(_), Some(input)) = (&self.model.roots[root].state, self.model.roots[root].input)
        {
            self.leave_run(input)?;
        }
        let taken = self.machine.take(&self.waiters[root]);
        self.note(format_args!("request {root} taken: {taken:?}"));
        same("outcome", taken, self.model.take(root))
    }

    fn detach(&mut self) -> Step {
        let Some(root) = self.some_root() else { return Ok(()) };
        let is_held = self.model.roots[root].state != State::Gone;
        if !is_held || self.model.roots[root].input.is_some() || self.model.is_detached(root) {
            return Ok(());
        }
        let has_ended = self.machine.detach(&self.waiters[root]);
        self.note(format_args!("request {root} left alone: {has_ended}"));
        same("detached", has_ended, self.model.detach(root))
    }

    fn pass_time(&mut self) -> Step {
        self.now_ns += self.below(20) as u64;
        if self.one_in(3) {
            return Ok(());
        }
        let begun = self.begun();
        let ended = self.machine.expire(self.now_ns, &begun);
        let due = self.model.due(self.now_ns);
        self.note(format_args!("{} are due: {ended:?}", due.len()));
        self.end_in_model(ended, due, None, Cause::Deadline, &begun)
    }

    /// What a lane's worker says that it had begun.
    pub fn begun(&self) -> impl Fn(Peer, u64) -> bool + use<> {
        let begun: Vec<(Peer, u64)> = self.lanes.iter().map(|lane| (lane.peer, lane.begun)).collect();
        move |peer, position| begun.iter().any(|(of, begun)| *of == peer && *begun > position)
    }

    pub fn end_in_model(
        &mut self,
        ended: Vec<Ending>,
        roots: Vec<usize>,
        place: Option<Peer>,
        cause: Cause,
        begun: &dyn Fn(Peer, u64) -> bool,
    ) -> Step {
        let end = |root: &usize| self.model.end(*root, place, Some(cause), self.now_ns, begun);
        let expected: Vec<Ending> = roots.iter().filter_map(end).collect();
        same("ends", ended, expected)?;
        self.make_way(&roots)
    }

    /// What has ended otherwise than by its frames leaves its run, mostly at once, at the latest when it is taken.
    fn make_way(&mut self, roots: &[usize]) -> Step {
        for root in roots {
            // It is found by any hop that had not ended. None if another that made way has taken it along.
            let hop = self.model.open_hops(*root).first().copied();
            let input = hop.and_then(|hop| self.machine.input_of(self.model.ticket(hop)));
            same("input", input, hop.and_then(|hop| self.model.input_of(hop)))?;
            if let Some(input) = input.filter(|_| !self.one_in(4)) {
                self.leave_run(input)?;
            }
        }
        Ok(())
    }

    // ---- between groups ----

    /// A hop gets a lane of its group: the least loaded one that is not lost.
    pub fn hand_on(&mut self, hop: usize) -> Step {
        let group = self.model.hops[hop].group;
        let load = |lane: &&Lane| (!lane.is_live, lane.ring.len() + lane.queue.len());
        let of_group = self.lanes.iter().filter(|lane| lane.group == group && !lane.is_lost);
        let Some(lane) = of_group.min_by_key(load).map(|lane| usize::from(lane.peer.lane)) else {
            // Nobody is left: it is asked of the dead, whose end takes the root with it.
            let lane = self.lanes.iter().position(|lane| lane.group == group).expect("a group has lanes");
            self.assign(hop, lane, None)?;
            return self.end_lane(lane, false, Cause::Exit(3));
        };
        let lane_is_ready = self.lanes[lane].is_live && self.lanes[lane].queue.is_empty();
        if lane_is_ready && self.lanes[lane].ring.len() < self.capacity {
            let position = self.sent(lane, self.model.ticket(hop));
            self.assign(hop, lane, Some(position))
        } else {
            self.lanes[lane].queue.push_back(hop);
            self.assign(hop, lane, None)
        }
    }

    /// A frame is put into the lane's ring.
    pub fn sent(&mut self, lane: usize, ticket: u64) -> u64 {
        let lane = &mut self.lanes[lane];
        lane.ring.push_back(ticket);
        lane.freed + lane.ring.len() as u64 - 1
    }

    fn assign(&mut self, hop: usize, lane: usize, position: Option<u64>) -> Step {
        let (peer, ticket) = (self.lanes[lane].peer, self.model.ticket(hop));
        let waiter = &self.waiters[self.model.hops[hop].root];
        let is_open = match position {
            Some(position) => self.machine.send(waiter, ticket, peer, position),
            None => self.machine.assign(waiter, ticket, peer),
        };
        self.note(format_args!("hop {} to {peer:?} at {position:?}", hop + 1));
        same("the root of a hop is open", is_open, self.model.assign(hop, peer, position))
    }

    pub fn put_down(&mut self, hop: usize) {
        let ticket = self.model.ticket(hop);
        self.machine.put_down(&self.waiters[self.model.hops[hop].root], ticket);
        self.model.put_down(hop);
    }

    pub fn is_open(&self, hop: usize) -> bool {
        self.model.roots[self.model.hops[hop].root].state == State::Open
    }

    /// Sends what waits in front of a lane, as far as there is room.
    pub fn flush(&mut self, lane: usize) -> Step {
        while self.lanes[lane].is_live
            && let Some(&hop) = self.lanes[lane].queue.front()
        {
            if self.is_open(hop) {
                if self.lanes[lane].ring.len() == self.capacity {
                    break;
                }
                let position = self.sent(lane, self.model.ticket(hop));
                self.assign(hop, lane, Some(position))?;
            } else {
                self.put_down(hop);
            }
            self.lanes[lane].queue.pop_front();
        }
        Ok(())
    }

    pub fn enter_all(&mut self) -> Step {
        loop {
            let may = self.model.may_enter();
            let Some(ticket) = self.machine.enter() else {
                return same("what may enter", Vec::new(), may);
            };
            let hop = (ticket >> 24) as usize - 1;
            self.note(format_args!("hop {} enters", hop + 1));
            same("it may enter", true, may.contains(&hop))?;
            self.model.enter(hop);
            if self.is_open(hop) {
                self.hand_on(hop)?;
            } else {
                self.put_down(hop);
                let input = self.model.roots[self.model.hops[hop].root].input;
                self.leave_run(input.expect("it was held in the run"))?;
            }
        }
    }

    fn leave_run(&mut self, input: u64) -> Step {
        let held = self.machine.leave(input, self.now_ns);
        let held: Vec<usize> = held.into_iter().map(|ticket| (ticket >> 24) as usize - 1).collect();
        self.note(format_args!("input {input} leaves, with {held:?}"));
        same("held", held.clone(), self.model.run_end_input(input, self.now_ns))?;
        held.into_iter().for_each(|hop| self.put_down(hop));
        self.enter_all()
    }

    // ---- the end ----

    /// Everything ends: by its workers, by its deadline, or by a stop.
    fn close(&mut self) -> Step {
        for lane in 0..self.lanes.len() {
            for _ in 0..self.below(6) {
                if self.lanes[lane].is_live && !self.lanes[lane].ring.is_empty() {
                    self.steps += 1;
                    self.answer_of(lane)?;
                    self.compare()?;
                }
            }
        }
        let begun = self.begun();
        let ended = self.machine.end_all(Cause::Stopped, self.now_ns, &begun);
        let open = (0..self.model.roots.len()).filter(|root| self.model.roots[*root].state == State::Open);
        let open: Vec<usize> = open.collect();
        self.note(format_args!("stopped: {ended:?}"));
        self.end_in_model(ended, open, None, Cause::Stopped, &begun)?;
        self.compare()?;
        (0..self.model.roots.len()).try_for_each(|root| self.take_root(root))?;
        self.compare()
    }

    /// Counters, events, tables, ledger.
    fn compare(&mut self) -> Step {
        let counters = self.machine.counters();
        let sum = self.counters();
        same("counters", counters, self.model.counters.clone())?;
        let audit = self.machine.audit();
        same("tables", audit, self.model.audit())?;
        same("requests that wait for nothing", self.model.forgotten(), Vec::new())?;
        same("the ledger balances", sum.balances(audit.in_flight), true)?;
        let deadlines =
            self.model.roots.iter().filter(|root| root.state == State::Open && root.deadline_ns != 0);
        if let Some(earliest_ns) = deadlines.map(|root| root.deadline_ns).min() {
            let bound_ns = self.machine.earliest_deadline().unwrap_or(u64::MAX);
            same("no deadline is earlier than the bound", bound_ns <= earliest_ns, true)?;
        }
        let events = self.machine.events();
        same("events", events.as_slice(), self.model.newest_events())
    }
}
