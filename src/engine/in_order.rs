//! One run at the entrances of its groups: frames that may not enter yet are held here, copied into this
//! process; those that may are handed on, in order, under this run's lock. And one run's answers: of an input that
//! has other branches open, the first in the order of places is kept here.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::answer::{Answer, Answered, Answers};
use super::correlation::{Branch, RootKey};
use super::forward::{Carried, Onward, Wakes};
use super::order::Reach;
use super::shared::Shared;
use crate::base::failure::Rule;
use crate::base::ids::Ticket;
use crate::plan::placement::Placement;

/// A frame that is held.
struct Held {
    root: RootKey,
    ticket: Ticket,
    onward: Onward,
    /// None while whoever brought it may still hand it on without a copy.
    payload: Option<Box<[u8]>>,
}

/// A run's frames, in order, and its answers.
pub(super) struct InOrder {
    state: Mutex<State>,
}

type State = Answered<Held>;

impl InOrder {
    pub fn new(reach: Arc<Reach>) -> Self {
        Self { state: Mutex::new(State::new(reach)) }
    }

    /// What the runs of a plan need to know of it.
    pub fn reach(placement: &Placement) -> Reach {
        let groups = placement.nodes.iter().map(|node| node.group.0).collect();
        let reach = (0..placement.nodes.len() as u16).map(|node| {
            placement.reach(crate::base::ids::NodeId(node)).iter().map(|group| group.0).collect()
        });
        Reach::new(groups, reach.collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next input, on its way into its first group.
    pub fn input(
        &self,
        shared: &Shared,
        input: u64,
        branch: Branch<'_>,
        onward: Onward,
        payload: &[u8],
        wakes: &mut Wakes,
    ) {
        let state = &mut *self.lock();
        let held = Held { root: branch.root, ticket: branch.ticket, onward, payload: None };
        state.order.input(input, branch.ticket.0, onward.target.number(), held);
        hand_on(shared, state, branch, Carried::Heap(payload), wakes);
    }

    /// An output of the hop with ticket `parent`, on its way into the next group.
    pub fn output(
        &self,
        shared: &Shared,
        parent: u64,
        branch: Branch<'_>,
        onward: Onward,
        payload: Carried<'_>,
        wakes: &mut Wakes,
    ) -> Result<(), Rule> {
        let state = &mut *self.lock();
        let held = Held { root: branch.root, ticket: branch.ticket, onward, payload: None };
        match state.order.output(parent, branch.ticket.0, onward.target.number(), held) {
            Ok(()) => hand_on(shared, state, branch, payload, wakes),
            Err(_) if state.order.executes(parent) => return Err(Rule::Edge),
            // The input has ended, and its owner knows.
            Err(held) => shared.correlation.put_down(held.root, held.ticket),
        }
        Ok(())
    }

    /// The hop with this ticket will emit nothing more.
    pub fn branch_ended(&self, shared: &Shared, ticket: u64, wakes: &mut Wakes) {
        let state = &mut *self.lock();
        state.order.end(ticket);
        hand_on_held(shared, state, wakes);
    }

    /// An answer by the hop with ticket `parent`, of an input that has other branches. False if the input has
    /// ended, and its owner knows.
    pub fn answer(&self, shared: &Shared, parent: u64, answer: Answer) -> bool {
        let state = &mut *self.lock();
        // Before anything is taken off, so that the sum never falls below nought.
        shared.forwarded_bytes.fetch_add(answer.bytes.len() as u64, Ordering::Relaxed);
        let kept = state.answer(parent, answer);
        let is_kept = kept.is_ok();
        if let Ok(Some(gone)) | Err(gone) = kept {
            shared.forward_gone(&gone.bytes);
        }
        is_kept
    }

    /// Takes the answers of the input that the hop with this ticket belongs to; it was the last one.
    pub fn take_answers(&self, shared: &Shared, ticket: u64) -> Option<Answers> {
        let taken = self.lock().take_answers(ticket)?;
        shared.forward_gone(&taken.first.bytes);
        Some(taken)
    }

    /// The input that the hop with this ticket belongs to has ended otherwise than by its frames, of which none may
    /// come any more: the others need not wait until its owner takes it.
    pub fn end_input_of(&self, shared: &Shared, ticket: Ticket, wakes: &mut Wakes) {
        let state = &mut *self.lock();
        leave_with(shared, state, ticket);
        hand_on_held(shared, state, wakes);
    }

    /// The input's request has ended, and its owner is about to take it.
    pub fn end_input(&self, shared: &Shared, input: u64, wakes: &mut Wakes) {
        let state = &mut *self.lock();
        leave(shared, state, input);
        hand_on_held(shared, state, wakes);
    }
}

/// The frames of an input whose request has ended leave, and its answers: they are late.
fn leave(shared: &Shared, state: &mut State, input: u64) {
    let (held, answers) = state.leave(input);
    held.iter().for_each(|held| put_down(shared, held));
    if let Some(answers) = answers {
        shared.forward_gone(&answers.first.bytes);
        shared.correlation.too_late(&answers.tally, shared.clock_ns.load(Ordering::Relaxed));
    }
}

/// The same for the input that the hop with this ticket belongs to.
fn leave_with(shared: &Shared, state: &mut State, hop: Ticket) {
    if let Some(input) = state.order.input_of(hop.0) {
        leave(shared, state, input);
    }
}

/// Hands on what may enter. The frame of `branch` is among the held ones: if it is its turn it goes without a
/// copy in between, else its payload is copied here.
fn hand_on(shared: &Shared, state: &mut State, branch: Branch<'_>, payload: Carried<'_>, wakes: &mut Wakes) {
    let ticket = branch.ticket;
    let mut newcomer = Some(branch);
    while let Some(held) = state.order.next() {
        match newcomer.take_if(|branch| branch.ticket == held.ticket) {
            Some(branch) => {
                shared.hand_on(branch, held.onward, payload, wakes);
                leave_if_ended(shared, state, &held);
            }
            None => hand_on_one(shared, state, &held, wakes),
        }
    }
    if let Some(held) = state.order.held_mut(ticket.0) {
        let copy = payload.to_heap();
        shared.forwarded_bytes.fetch_add(copy.len() as u64, Ordering::Relaxed);
        held.payload = Some(copy);
    }
}

fn hand_on_held(shared: &Shared, state: &mut State, wakes: &mut Wakes) {
    while let Some(held) = state.order.next() {
        hand_on_one(shared, state, &held, wakes);
    }
}

fn hand_on_one(shared: &Shared, state: &mut State, held: &Held, wakes: &mut Wakes) {
    match shared.correlation.take_up(held.root, held.ticket) {
        Some(branch) => {
            let payload = held.payload.as_deref().unwrap_or_default();
            shared.hand_on(branch, held.onward, Carried::Heap(payload), wakes);
            shared.forward_gone(payload);
            leave_if_ended(shared, state, held);
        }
        None => {
            put_down(shared, held);
            // Its root has ended; who stands behind it, or behind another of its frames, need not wait for that.
            leave_with(shared, state, held.ticket);
        }
    }
}

/// What is handed on to a group that nobody serves any more ends its input.
fn leave_if_ended(shared: &Shared, state: &mut State, held: &Held) {
    if !shared.correlation.is_open(held.root) {
        leave_with(shared, state, held.ticket);
    }
}

fn put_down(shared: &Shared, held: &Held) {
    shared.forward_gone(held.payload.as_deref().unwrap_or_default());
    shared.correlation.put_down(held.root, held.ticket);
}
