//! What the books should say of the one run: its frames with their places written out, and its kept answers.

use std::collections::BTreeMap;

use handbell::testing::{End, Taken};
use handbell::{Cause, Event, EventKind};

use crate::model::Model;

/// A frame of the run: executing, or held before a group.
pub struct Live {
    hop: usize,
    /// Input, then the path of emission indices.
    path: Vec<u64>,
    group: u16,
    emitted: u64,
    is_held: bool,
}

impl Live {
    /// The least place that it, or what it will emit, can have in a group that it has not entered.
    fn stands_at(&self) -> Vec<u64> {
        let next = (!self.is_held).then_some(self.emitted);
        self.path.iter().copied().chain(next).collect()
    }
}

/// An answer that is kept until the last branch of its input has ended.
pub struct Kept {
    input: u64,
    /// Of the output which its frame might have emitted instead.
    place: Vec<u64>,
    lane: usize,
    group: u16,
    end: End,
}

/// What histories have in them that no counter tells.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Answers that were kept.
    pub kept: u64,
    /// Of these, those that stood before all that had been kept by then.
    pub overtaking: u64,
    /// Inputs that ended with a kept answer.
    pub answered: u64,
    /// Inputs with a kept answer whose deadline had passed when the last branch ended.
    pub expired: u64,
    /// Kept answers of inputs that something else ended.
    pub late: u64,
}

impl Seen {
    pub fn rows(&self) -> [(&'static str, u64); 5] {
        [
            ("answers kept", self.kept),
            ("before all kept so far", self.overtaking),
            ("inputs with such an end", self.answered),
            ("or due by then", self.expired),
            ("answers kept for nothing", self.late),
        ]
    }
}

impl std::ops::Add for Seen {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            kept: self.kept + other.kept,
            overtaking: self.overtaking + other.overtaking,
            answered: self.answered + other.answered,
            expired: self.expired + other.expired,
            late: self.late + other.late,
        }
    }
}

impl Model {
    // ---- frames ----

    pub fn run_input(&mut self, input: u64, hop: usize) {
        let group = self.hops[hop].group;
        self.live.push(Live { hop, path: vec![input], group, emitted: 0, is_held: true });
    }

    /// False if the parent does not execute.
    pub fn run_output(&mut self, parent: usize, hop: usize) -> bool {
        let group = self.hops[hop].group;
        let Some(parent) = self.live.iter_mut().find(|live| live.hop == parent && !live.is_held) else {
            return false;
        };
        let mut path = parent.path.clone();
        path.push(parent.emitted);
        parent.emitted += 1;
        self.live.push(Live { hop, path, group, emitted: 0, is_held: true });
        true
    }

    pub fn run_end(&mut self, hop: usize) {
        self.live.retain(|live| live.hop != hop || live.is_held);
    }

    /// An input that has ended leaves: its frames that were held, in order. What was kept of it is late.
    pub fn run_end_input(&mut self, input: u64, now_ns: u64) -> Vec<usize> {
        let of_input = self.live.iter().filter(|live| live.path[0] == input && live.is_held);
        let held: BTreeMap<_, _> = of_input.map(|live| (live.path.clone(), live.hop)).collect();
        self.live.retain(|live| live.path[0] != input);
        if let Some(root) = self.roots.iter().position(|root| root.input == Some(input)) {
            self.drop_kept_of(root, now_ns);
        }
        held.into_values().collect()
    }

    /// Of a frame that executes or is held.
    pub fn input_of(&self, hop: usize) -> Option<u64> {
        self.live.iter().find(|live| live.hop == hop).map(|live| live.path[0])
    }

    pub fn may_enter(&self) -> Vec<usize> {
        let can_reach = |live: &Live, group: u16| {
            self.reach[usize::from(live.group)].contains(&group) || live.is_held && live.group == group
        };
        let held = self.live.iter().filter(|live| live.is_held);
        let free = held.filter(|live| {
            let mut earlier = self.live.iter().filter(|other| other.stands_at() < live.path);
            !earlier.any(|other| can_reach(other, live.group))
        });
        free.map(|live| live.hop).collect()
    }

    pub fn enter(&mut self, hop: usize) {
        let live = self.live.iter_mut().find(|live| live.hop == hop).expect("it may enter");
        live.is_held = false;
    }

    // ---- answers ----

    pub fn has_kept(&self, input: Option<u64>) -> bool {
        self.kept.iter().any(|kept| Some(kept.input) == input)
    }

    /// An answer by a frame that executes.
    pub fn keep(&mut self, lane: usize, hop: usize, end: End) {
        let frame = self.live.iter().find(|live| live.hop == hop && !live.is_held).expect("it executes");
        let (input, place, group) = (frame.path[0], frame.stands_at(), self.hops[hop].group);
        let others = self.kept.iter().filter(|kept| kept.input == input);
        self.seen.kept += 1;
        if let Some(first) = others.map(|kept| &kept.place).min() {
            self.seen.overtaking += u64::from(place < *first);
        }
        self.kept.push(Kept { input, place, lane, group, end });
    }

    fn take_kept(&mut self, input: u64) -> Vec<Kept> {
        let kept = std::mem::take(&mut self.kept);
        let (taken, left) = kept.into_iter().partition(|kept| kept.input == input);
        self.kept = left;
        taken
    }

    /// The last branch of an input has ended, and there are answers: that one counts which stands first, of two in the
    /// same place the earlier. `passed` is how it ends if its deadline has passed.
    pub fn end_with_answer(&mut self, root: usize, passed: Option<Taken>, now_ns: u64) {
        let input = self.roots[root].input.expect("answers are kept of a run");
        let kept = self.take_kept(input);
        let winner = kept.iter().min_by_key(|kept| &kept.place).expect("there are answers");
        if let Some(taken) = passed {
            self.seen.expired += 1;
            self.counters[winner.lane].expired += 1;
            self.finish(root, taken, now_ns);
            return self.too_late(root, &kept, now_ns);
        }
        self.seen.answered += 1;
        let counters = &mut self.counters[winner.lane];
        counters.terminals_that_ended += 1;
        if matches!(winner.end, End::Error(_)) {
            counters.failed += 1;
        } else {
            counters.completed_by_terminal += 1;
            self.roots[root].has_completed = true;
        }
        let taken = Taken { end: winner.end.clone(), group: winner.group, started: true };
        self.finish(root, taken, now_ns);
        for (lane, count) in by_lane(&kept) {
            let others = count - u64::from(lane == winner.lane);
            self.counters[lane].terminals_received += count;
            self.counters[lane].duplicate_terminal += others;
            self.drop_kept(root, EventKind::DuplicateTerminal, others, now_ns);
        }
    }

    /// What was kept of an input that something else has ended is late.
    pub fn drop_kept_of(&mut self, root: usize, now_ns: u64) {
        if let Some(input) = self.roots[root].input {
            let kept = self.take_kept(input);
            self.too_late(root, &kept, now_ns);
        }
    }

    fn too_late(&mut self, root: usize, kept: &[Kept], now_ns: u64) {
        for (lane, count) in by_lane(kept) {
            self.seen.late += count;
            self.counters[lane].terminals_received += count;
            self.counters[lane].late_reply_drop += count;
            self.drop_kept(root, EventKind::LateReplyDrop, count, now_ns);
        }
    }

    fn drop_kept(&mut self, root: usize, kind: EventKind, count: u64, now_ns: u64) {
        let event = Event { kind, trace_id: self.roots[root].identity.trace_id, at_ns: now_ns, status: None };
        self.events.extend((0..count).map(|_| event));
    }
}

/// How many came by each lane; the one that was first to answer comes first.
fn by_lane(kept: &[Kept]) -> Vec<(usize, u64)> {
    let mut lanes: Vec<(usize, u64)> = Vec::new();
    for kept in kept {
        match lanes.iter_mut().find(|(lane, _)| *lane == kept.lane) {
            Some((_, count)) => *count += 1,
            None => lanes.push((kept.lane, 1)),
        }
    }
    lanes
}

/// How an input ends whose deadline has passed when its last branch ends.
pub fn passed(group: u16, has_run: bool) -> Taken {
    Taken { end: End::Failed(Cause::Deadline), group, started: has_run }
}
