//! Order of a run: when a frame may enter a group.
//!
//! A frame's *place* is its input and the path of emission indices that led to it, compared lexicographically.
//! A frame is *live* while it executes in a group or is held before one. It enters a group when no live frame
//! of an earlier place can still reach that group. An executing frame at place `p` that has emitted `k` outputs
//! can add outputs from `p.k` on only; so it stands at `p.k`, behind the outputs that it has emitted.
//!
//! Places are never written down. An input stands behind all that came before it. An output takes the place
//! where its parent stood, and its parent stands right behind it; no place lies between the two:
//!
//! ```text
//!              a ── P ── b          P at p has emitted k outputs and stands at p.k
//!   output     a ── c ── P ── b     c stands at p.k, P now at p.(k+1)
//!   next       a ── c ── P ── b     c has entered: it stands at p.k.0 and still has the same neighbours
//! ```
//!
//! So the order is a linked list in which nothing moves. Beside the list of all live frames there is one of each
//! group. What an output can reach its parent can reach, so in each list the two are neighbours, too. Every
//! operation costs a few links for each group that the frame can still enter, however many frames are live.
//!
//! - The list of all has every live frame; those of one input are neighbours.
//! - The list of a group has the live frames that can still enter it, and no other.
//! - Its first frame may enter if it is held before that very group; all behind it wait for it.
//! - A group whose first frame has changed since it was looked at is in `touched`.
//!
//! The first frame of all is the first of every list that it is in: it waits for nobody, so something can
//! always move.
//!
//! An answer has a place, too: that of the output which its frame might have emitted instead. An input has one
//! *mark*, at the place of its first answer. It stands in the list of all like an output of the frame that
//! answered, reaches no group, and so holds nobody up. Of two answers of an input that one is first which a walk
//! back from the other meets.
//!
//! Owns what is held; knows no clock and no ring. Its user locks.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// "No slot": behind the last frame of a list, or before its first.
const NONE: u32 = u32::MAX;

/// Where the frames of a plan can go. The plan's edges form no circle between groups.
pub(crate) struct Reach {
    nodes: Box<[Ahead]>,
    groups: usize,
}

/// What lies ahead of a frame at one node, or of a mark: nothing.
struct Ahead {
    /// The group of the node.
    group: u16,
    /// The groups that a frame executing there can still enter, ascending.
    later: Box<[u16]>,
}

impl Reach {
    /// Both by node: its group, and the groups that a frame executing there can still enter, over any number
    /// of edges.
    ///
    /// # Panics
    ///
    /// If the two differ in length, or a node can reach its own group again.
    pub fn new(groups_of_nodes: Vec<u16>, reach_of_nodes: Vec<Vec<u16>>) -> Self {
        assert_eq!(groups_of_nodes.len(), reach_of_nodes.len(), "one entry for each node");
        let highest = groups_of_nodes.iter().chain(reach_of_nodes.iter().flatten()).max();
        let groups = highest.map_or(0, |group| usize::from(*group) + 1);
        let ahead = |(group, mut later): (u16, Vec<u16>)| {
            later.sort_unstable();
            later.dedup();
            assert!(!later.contains(&group), "a circle through group {group}");
            Ahead { group, later: later.into() }
        };
        let nodes = groups_of_nodes.into_iter().zip(reach_of_nodes).map(ahead);
        let of_marks = Ahead { group: 0, later: [].into() };
        Self { nodes: nodes.chain([of_marks]).collect(), groups }
    }

    fn ahead(&self, node: u16) -> &Ahead {
        &self.nodes[usize::from(node)]
    }

    /// Where marks stand: at no node of the plan.
    fn nowhere(&self) -> u16 {
        self.nodes.len() as u16 - 1
    }

    /// Whether what a frame held before node `to` can enter, one that executes at `from` can enter.
    fn leads(&self, from: u16, to: u16) -> bool {
        let later = &self.ahead(from).later;
        self.ahead(to).to_enter().all(|group| later.binary_search(&group).is_ok())
    }
}

impl Ahead {
    /// The groups that a frame held before the node can still enter.
    fn to_enter(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.group).chain(self.later.iter().copied())
    }
}

/// The live frames of one run, in order. `T` is what is held of a frame until it enters.
///
/// Frames are named by ids, unique among the live ones. Inputs are numbered in the order in which they are
/// added.
pub(crate) struct Order<T> {
    reach: Arc<Reach>,
    lists: Lists,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// The slot of each live frame, by id.
    ids: Map<u32>,
    /// The slot of the last live frame of each input that has one, or of its mark.
    inputs: Map<u32>,
    /// The slot of each input's mark.
    marks: Map<u32>,
    newest_input: Option<u64>,
}

/// A live frame, a mark, or a free slot.
struct Slot<T> {
    input: u64,
    /// `None`: a mark.
    id: Option<u64>,
    node: u16,
    /// `None`: it executes.
    held: Option<T>,
}

/// What became of an answer's mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Marked {
    pub input: u64,
    /// No answer of the input that came before stands at an earlier place.
    pub is_first: bool,
}

impl<T> Order<T> {
    /// Of a run without frames.
    pub fn new(reach: Arc<Reach>) -> Self {
        Self {
            lists: Lists::new(reach.groups),
            reach,
            slots: Vec::new(),
            free: Vec::new(),
            ids: Map::default(),
            inputs: Map::default(),
            marks: Map::default(),
            newest_input: None,
        }
    }

    /// Holds the first frame of a new input before the group of `node`.
    ///
    /// # Panics
    ///
    /// If a later input was added before: its frames may have entered what this one has yet to enter.
    pub fn input(&mut self, input: u64, id: u64, node: u16, frame: T) {
        assert!(self.newest_input < Some(input), "inputs are added in their order");
        self.newest_input = Some(input);
        let slot = self.hold(Slot { input, id: Some(id), node, held: Some(frame) }, NONE);
        self.inputs.insert(input, slot);
    }

    /// Holds one more output of the executing frame `parent` before the group of `node`.
    ///
    /// # Errors
    ///
    /// The frame, if no frame `parent` executes, because it has ended, or its input has; or if the output could
    /// enter a group that its parent cannot reach.
    pub fn output(&mut self, parent: u64, id: u64, node: u16, frame: T) -> Result<(), T> {
        let Some(parent) = self.executing(parent) else { return Err(frame) };
        let Slot { input, node: from, .. } = self.slots[parent as usize];
        if !self.reach.leads(from, node) {
            return Err(frame);
        }
        self.hold(Slot { input, id: Some(id), node, held: Some(frame) }, parent);
        Ok(())
    }

    /// The executing frame `parent` answers: its input's mark is put where it stands, unless that is behind the
    /// mark. None if no frame `parent` executes.
    pub fn mark(&mut self, parent: u64) -> Option<Marked> {
        let parent = self.executing(parent)?;
        let input = self.slots[parent as usize].input;
        if let Some(&mark) = self.marks.get(&input) {
            if self.stands_before(mark, parent) {
                return Some(Marked { input, is_first: false });
            }
            self.leave(mark);
        }
        let mark = self.put(Slot { input, id: None, node: self.reach.nowhere(), held: None });
        self.lists.insert(self.lists.all(), mark, parent);
        self.marks.insert(input, mark);
        Some(Marked { input, is_first: true })
    }

    /// Whether the mark of a frame's input stands before the frame. Walks among the frames of the input.
    fn stands_before(&mut self, mark: u32, frame: u32) -> bool {
        let input = self.slots[frame as usize].input;
        let mut at = frame;
        while at != mark {
            at = self.lists.neighbours(at).before;
            if self.slots.get(at as usize).is_none_or(|slot| slot.input != input) {
                return false;
            }
        }
        true
    }

    /// The input of an executing frame.
    pub fn input_of(&self, id: u64) -> Option<u64> {
        self.executing(id).map(|slot| self.slots[slot as usize].input)
    }

    /// The executing frame `id` emits nothing more. Without effect if no such frame executes.
    pub fn end(&mut self, id: u64) {
        if let Some(slot) = self.executing(id) {
            self.leave(slot);
        }
    }

    /// All frames of an input leave. Returns those that were held, in order.
    pub fn end_input(&mut self, input: u64) -> Vec<T> {
        let mut held = Vec::new();
        while let Some(&last) = self.inputs.get(&input) {
            held.extend(self.leave(last));
        }
        self.marks.remove(&input);
        held.reverse();
        held
    }

    /// A frame that may enter its group now; from here on it executes there. Looks only at groups whose first
    /// frame has changed, each in its turn.
    pub fn next(&mut self) -> Option<T> {
        while let Some(group) = self.lists.next_touched() {
            let first = self.lists.first(group);
            if first == NONE {
                continue;
            }
            let slot = &mut self.slots[first as usize];
            if self.reach.ahead(slot.node).group == group
                && let Some(frame) = slot.held.take()
            {
                self.lists.remove(usize::from(group), first);
                return Some(frame);
            }
        }
        None
    }

    /// Live frames.
    #[cfg(all(test, not(loom)))]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no frame is live.
    #[cfg(all(test, not(loom)))]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Whether a frame of this id executes.
    pub fn executes(&self, id: u64) -> bool {
        self.executing(id).is_some()
    }

    /// What is held of a frame, if it is held.
    pub fn held_mut(&mut self, id: u64) -> Option<&mut T> {
        self.ids.get(&id).and_then(|slot| self.slots[*slot as usize].held.as_mut())
    }

    fn executing(&self, id: u64) -> Option<u32> {
        self.ids.get(&id).copied().filter(|slot| self.slots[*slot as usize].held.is_none())
    }

    /// Enters a held frame into its lists, right before slot `after`, or at their ends.
    fn hold(&mut self, frame: Slot<T>, after: u32) -> u32 {
        let (id, node) = (frame.id.expect("a frame has an id"), frame.node);
        let slot = self.put(frame);
        assert!(self.ids.insert(id, slot).is_none(), "ids are unique among live frames");
        self.lists.insert(self.lists.all(), slot, after);
        for group in self.reach.ahead(node).to_enter() {
            self.lists.insert(usize::from(group), slot, after);
        }
        slot
    }

    /// Gives a frame or a mark a slot, in no list yet.
    fn put(&mut self, frame: Slot<T>) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = frame;
                slot
            }
            None => {
                assert!(self.slots.len() < NONE as usize, "a slot has a number");
                self.slots.push(frame);
                self.lists.add_slot();
                self.slots.len() as u32 - 1
            }
        }
    }

    /// Takes a frame or a mark out of all its lists. Returns what was held of it.
    fn leave(&mut self, slot: u32) -> Option<T> {
        let Slot { input, id, node, ref mut held } = self.slots[slot as usize];
        let held = held.take();
        let ahead = self.reach.ahead(node);
        ahead.later.iter().for_each(|group| self.lists.remove(usize::from(*group), slot));
        if held.is_some() {
            self.lists.remove(usize::from(ahead.group), slot);
        }
        let is_of_input =
            |other: &u32| self.slots.get(*other as usize).is_some_and(|slot| slot.input == input);
        let Link { before, after } = self.lists.neighbours(slot);
        if !is_of_input(&after) {
            match Some(before).filter(is_of_input) {
                Some(before) => self.inputs.insert(input, before),
                None => self.inputs.remove(&input),
            };
        }
        self.lists.remove(self.lists.all(), slot);
        if let Some(id) = id {
            self.ids.remove(&id);
        }
        self.free.push(slot);
        held
    }
}

/// Doubly linked lists over the same slots: one of each group, and one of all.
struct Lists {
    /// By list. That of all is the last one.
    ends: Box<[Ends]>,
    /// By slot, then by list. Has a meaning while the slot is in the list.
    links: Vec<Link>,
    /// Groups to be looked at, each once.
    touched: VecDeque<u16>,
}

#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
    is_touched: bool,
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

impl Lists {
    fn new(groups: usize) -> Self {
        let mut ends = vec![Ends { first: NONE, last: NONE, is_touched: false }; groups + 1];
        // Nobody enters "all": as if touched already, it never gets into `touched`.
        ends[groups].is_touched = true;
        Self { ends: ends.into(), links: Vec::new(), touched: VecDeque::with_capacity(groups) }
    }

    fn all(&self) -> usize {
        self.ends.len() - 1
    }

    fn add_slot(&mut self) {
        let links = self.links.len() + self.ends.len();
        self.links.resize(links, Link { before: NONE, after: NONE });
    }

    fn link(&mut self, list: usize, slot: u32) -> &mut Link {
        let lists = self.ends.len();
        &mut self.links[slot as usize * lists + list]
    }

    fn neighbours(&mut self, slot: u32) -> Link {
        *self.link(self.all(), slot)
    }

    fn first(&self, group: u16) -> u32 {
        self.ends[usize::from(group)].first
    }

    fn next_touched(&mut self) -> Option<u16> {
        let group = self.touched.pop_front()?;
        self.ends[usize::from(group)].is_touched = false;
        Some(group)
    }

    /// Inserts `slot` right before `after`, or at the end.
    fn insert(&mut self, list: usize, slot: u32, after: u32) {
        let before = if after == NONE { self.ends[list].last } else { self.link(list, after).before };
        self.join(list, before, slot);
        self.join(list, slot, after);
    }

    fn remove(&mut self, list: usize, slot: u32) {
        let Link { before, after } = *self.link(list, slot);
        self.join(list, before, after);
    }

    /// Makes neighbours of two slots, or of a slot and an end.
    fn join(&mut self, list: usize, before: u32, after: u32) {
        match before {
            NONE => self.set_first(list, after),
            _ => self.link(list, before).after = after,
        }
        match after {
            NONE => self.ends[list].last = before,
            _ => self.link(list, after).before = before,
        }
    }

    fn set_first(&mut self, list: usize, slot: u32) {
        let ends = &mut self.ends[list];
        ends.first = slot;
        if !ends.is_touched {
            ends.is_touched = true;
            self.touched.push_back(list as u16);
        }
    }
}

type Map<V> = HashMap<u64, V, BuildHasherDefault<Mix>>;

/// Hashes numbers of the engine's own: no peer chooses them, so they need to be spread only. Both halves of the
/// product count, because a ticket's low bits alone may be the same in all.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(number) * 0x9E37_79B9_7F4A_7C15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
