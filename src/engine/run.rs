//! A run: a stream of inputs with a window in flight, their outputs in the order of the inputs.
//!
//! Order holds at every hop, not only at the end: each group gets the frames of a run in the order of (input,
//! path of emissions), whatever the groups before it did and however many processes they have. An input ends with
//! its last branch, and the first of its answers in that order counts.

mod polled;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;

use super::correlation::{Admission, Admitted, Refused};
use super::dispatch::{NotTaken, Outbound, Payload};
use super::forward::{Onward, Wakes};
use super::handle::Engine;
use super::in_order::InOrder;
use super::pending::{CallError, Pending};
use super::reply::Reply;
use super::request::settled;
use super::room::RoomPlace;
use super::shared::Shared;
use crate::base::clock::Deadline;
use crate::base::ids::{Identity, NodeId};
use crate::wire::envelope::ENGINE;

/// Inputs of a run in flight, where nothing else is stated.
const WINDOW: usize = 64;

/// What a run does when an input fails.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum OnError {
    /// Its error is the last item: what is in flight behind it is cancelled, and no more inputs are taken.
    #[default]
    Stop,
    /// Its error stands in its place, and the run goes on.
    Record,
}

/// Why a run is not begun.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The window cannot be kept.
    #[error("window = {window}: must be between 1 and max_in_flight = {limit}")]
    Window {
        /// As stated.
        window: usize,
        /// The engine's setting.
        limit: usize,
    },
    /// Order cannot be kept where a request can come back to a group that it has left.
    #[error("the plan's groups form a circle: it cannot be run in order")]
    Circle,
    /// The node's group is keyed.
    #[error("the node belongs to a keyed group: the run needs a key for each input")]
    KeyMissing,
}

/// A run that is being stated. Everything is optional.
#[must_use = "a run does nothing until it is started"]
pub struct RunBuilder<'e, I: Iterator> {
    engine: &'e Engine,
    target: NodeId,
    inputs: I,
    manner: Manner<I::Item>,
}

type KeyOf<T> = Box<dyn Fn(u64, &T) -> u64 + Send>;

struct Manner<T> {
    window: usize,
    identity: Identity,
    deadline: Deadline,
    on_error: OnError,
    key: Option<KeyOf<T>>,
    asks_again: bool,
}

impl<'e, I: Iterator> RunBuilder<'e, I>
where
    I::Item: AsRef<[u8]>,
{
    pub(super) fn new(engine: &'e Engine, target: NodeId, inputs: I) -> Self {
        let manner = Manner {
            window: WINDOW,
            identity: Identity::default(),
            deadline: Deadline::Never,
            on_error: OnError::default(),
            key: None,
            asks_again: false,
        };
        Self { engine, target, inputs, manner }
    }

    /// Inputs in flight: 1 to `max_in_flight`. Default: 64.
    pub fn window(mut self, window: usize) -> Self {
        self.manner.window = window;
        self
    }

    /// When to give an input up, counted from when it is sent. Default: never.
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.manner.deadline = deadline;
        self
    }

    /// What to do when an input fails. Default: [`OnError::Stop`].
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.manner.on_error = on_error;
        self
    }

    /// Takes a `None` of the inputs for "none for now": each further item asks them again. For inputs that come
    /// by themselves, as those of [`try_iter`](std::sync::mpsc::Receiver::try_iter).
    ///
    /// The run gives `None` when it has nothing in flight and there is no input for now; it may give more after
    /// that. Default: the first `None` of the inputs is their end.
    pub fn ask_again(mut self) -> Self {
        self.manner.asks_again = true;
        self
    }

    /// The caller's tags, carried to every node and back unchanged.
    pub fn tags(mut self, run: u16, scenario: u16) -> Self {
        self.manner.identity.run = run;
        self.manner.identity.scenario = scenario;
        self
    }

    /// The caller's route for the answers, carried back unchanged.
    pub fn reply_to(mut self, reply_to: u32) -> Self {
        self.manner.identity.reply_to = reply_to;
        self
    }

    /// Each input's key, from its number and its bytes: chooses among the processes of the first group.
    ///
    /// If it panics, the run is as it was before: the input is still the next one, and asked for its key again.
    pub fn key(mut self, key: impl Fn(u64, &I::Item) -> u64 + Send + 'static) -> Self {
        self.manner.key = Some(Box::new(key));
        self
    }

    /// Checks the statement and begins. Inputs are taken, and sent, as the run is iterated.
    pub fn start(self) -> Result<Run<I>, RunError> {
        let shared = self.engine.shared();
        let (window, limit) = (self.manner.window, self.engine.summary().max_in_flight);
        if !(1..=limit).contains(&window) {
            return Err(RunError::Window { window, limit });
        }
        if shared.placement.has_circle() {
            return Err(RunError::Circle);
        }
        let group = shared.group_of(self.target);
        if self.manner.key.is_none() && shared.placement.groups[usize::from(group.0)].keyed {
            return Err(RunError::KeyMissing);
        }
        // One process and no way on: the ring itself keeps the order.
        let is_simple = shared.routes[usize::from(group.0)].processes == 1
            && shared.placement.reach(self.target).is_empty();
        let order = (!is_simple).then(|| {
            shared.runs.fetch_add(1, Ordering::SeqCst);
            Arc::new(InOrder::new(Arc::clone(&shared.reach)))
        });
        let lanes = if order.is_some() { shared.lanes_from(self.target) } else { Box::default() };
        let shared = Arc::clone(shared);
        let Self { target, inputs, manner, .. } = self;
        let flights = VecDeque::with_capacity(window);
        Ok(Run {
            shared,
            target,
            inputs,
            manner,
            order,
            lanes,
            flights,
            put_aside: None,
            room: None,
            sent: 0,
            taken: 0,
            is_over: false,
        })
    }
}

enum Flight {
    Pending(Pending),
    /// It was refused; nothing was sent.
    Refused(CallError),
}

/// A run that is going on: an iterator over (number of the input, its reply or error), in input order.
///
/// It sends as it is iterated, and reads meanwhile; between two items it does nothing, though what is in flight
/// goes on. Dropping it cancels what is in flight. It is `Send` if its inputs are, and outlives the engine's handles:
/// once the engine has been stopped, inputs are refused.
///
/// Without a thread to wait in, [`Run::poll_next`] takes the place of [`Iterator::next`].
pub struct Run<I: Iterator> {
    shared: Arc<Shared>,
    target: NodeId,
    inputs: I,
    manner: Manner<I::Item>,
    /// None where the ring itself keeps the order.
    order: Option<Arc<InOrder>>,
    /// Those that its frames can enter; empty where there is but one.
    lanes: Box<[u16]>,
    /// The oldest first; it has number `taken`.
    flights: VecDeque<Flight>,
    /// The next input, which has not been sent: there was no room, or its key could not be told.
    put_aside: Option<I::Item>,
    /// While it is polled, has nothing in flight, and waits for room: its place, and the deadline of the next input.
    room: Option<(RoomPlace, u64)>,
    sent: u64,
    taken: u64,
    /// No more inputs are taken.
    is_over: bool,
}

impl<I: Iterator> Run<I>
where
    I::Item: AsRef<[u8]>,
{
    /// Inputs sent whose outputs have not been taken.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Sends inputs until the window is full, or there is no room before an older one has been taken.
    fn fill(&mut self, may_wait: bool) {
        while !self.is_over && self.flights.len() < self.manner.window && self.has_room() {
            if self.put_aside.is_none() {
                self.put_aside = self.inputs.next();
            }
            // It stays there until it has been sent: its key and its bytes come from the user's code, which may panic.
            let Some(input) = &self.put_aside else {
                self.is_over = !self.manner.asks_again;
                return;
            };
            let flight = match self.send(self.sent, input, may_wait && self.flights.is_empty()) {
                Ok(Some(pending)) => Flight::Pending(pending),
                // What it lacks may be what an older input holds.
                Ok(None) => return,
                Err(error) => Flight::Refused(error),
            };
            self.sent += 1;
            self.flights.push_back(flight);
            self.room = None;
            self.put_aside = None;
        }
    }

    /// Without anything in flight there is always room, sooner or later.
    fn has_room(&self) -> bool {
        self.flights.is_empty() || !self.shared.is_full(self.target)
    }

    /// Sends an input; none if there is no room.
    fn send(&self, number: u64, input: &I::Item, may_wait: bool) -> Result<Option<Pending>, CallError> {
        let shared = &self.shared;
        let deadline_ns = match &self.room {
            // It has been waiting since; the clock must tell whether it still may.
            Some((_, deadline_ns)) => {
                shared.read_clock();
                *deadline_ns
            }
            None => shared.resolve(self.manner.deadline),
        };
        let outbound = Outbound {
            target: self.target.into(),
            identity: self.manner.identity,
            deadline_ns,
            key: self.manner.key.as_ref().map(|key| key(number, input)),
            lane: None,
        };
        let bytes = input.as_ref();
        if self.order.is_none()
            && let Some((link, sent)) = shared.submit_at_once(&outbound, bytes)
        {
            link.end.prefetch_ahead_of(sent.position);
            return Ok(Some(Pending::of_sent(shared, sent)));
        }
        let bytes = Payload::Bytes(bytes);
        let admitted = match &self.order {
            None if may_wait => shared.submit_or_wait(&outbound, bytes),
            None => shared.submit(&outbound, bytes),
            Some(order) => shared.submit_in_order(order, number, &outbound, input.as_ref(), may_wait),
        };
        match admitted {
            Ok(admitted) => Ok(Some(Pending::new(shared, admitted))),
            Err(NotTaken::Busy(_)) => Ok(None),
            Err(refused) => Err(settled(refused).into()),
        }
    }

    fn take(&mut self, flight: Flight) -> Result<Reply, CallError> {
        let number = self.taken;
        self.taken += 1;
        match flight {
            Flight::Refused(error) => Err(error),
            Flight::Pending(pending) => {
                if let Some(order) = &self.order {
                    self.shared.wait_in_run(pending.key(), &self.lanes);
                    self.shared.leave_order(order, number, &pending);
                }
                pending.wait()
            }
        }
    }

    /// Takes the oldest input's outcome. The first error ends the run, if so stated.
    fn take_oldest(&mut self) -> Option<(u64, Result<Reply, CallError>)> {
        let number = self.taken;
        let flight = self.flights.pop_front()?;
        let result = self.take(flight);
        if result.is_err() && self.manner.on_error == OnError::Stop {
            self.is_over = true;
            self.cancel_all();
        }
        Some((number, result))
    }
}

impl<I: Iterator> Iterator for Run<I>
where
    I::Item: AsRef<[u8]>,
{
    type Item = (u64, Result<Reply, CallError>);

    fn next(&mut self) -> Option<Self::Item> {
        self.fill(true);
        self.take_oldest()
    }
}

impl<I: Iterator> Run<I> {
    fn cancel_all(&mut self) {
        let shared = &self.shared;
        // All of them before any is forgotten: none may enter a group because an earlier one has left.
        for flight in &self.flights {
            if let Flight::Pending(pending) = flight {
                pending.cancel();
            }
        }
        for flight in self.flights.drain(..) {
            if let (Flight::Pending(pending), Some(order)) = (&flight, &self.order) {
                shared.leave_order(order, self.taken, pending);
            }
            self.taken += 1;
        }
    }
}

impl<I: Iterator> Drop for Run<I> {
    fn drop(&mut self) {
        self.cancel_all();
        if self.order.is_some() {
            self.shared.runs.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Shared {
    /// The lanes that a request to this node can enter, the first group's first.
    fn lanes_from(&self, target: NodeId) -> Box<[u16]> {
        let groups =
            std::iter::once(self.group_of(target)).chain(self.placement.reach(target).iter().copied());
        let routes = groups.map(|group| self.routes[usize::from(group.0)]);
        routes.flat_map(|route| route.first..route.first + route.processes).collect()
    }

    /// Whether a request to this node might have to wait for room now.
    fn is_full(&self, target: NodeId) -> bool {
        let route = self.routes[usize::from(self.group_of(target).0)];
        let lanes = usize::from(route.first)..usize::from(route.first + route.processes);
        self.holds_too_much()
            || lanes.into_iter().all(|lane| match self.lanes[lane].link() {
                Some(link) => !link.is_live() || link.forwards.waiting() != 0 || !link.end.has_room(),
                None => false,
            })
    }

    /// Takes an input of a run; waits for a place in the table until the deadline, if it may.
    fn submit_in_order<'a>(
        &self,
        order: &Arc<InOrder>,
        number: u64,
        outbound: &Outbound,
        input: &'a [u8],
        may_wait: bool,
    ) -> Result<Admitted, NotTaken<'a>> {
        let group = self.may_enter(outbound)?;
        let limit = self.max_payload();
        if input.len() > limit {
            return Err(NotTaken::TooLarge { size: input.len(), limit });
        }
        let admission = Admission {
            identity: outbound.identity,
            deadline_ns: outbound.deadline_ns,
            home: self.routes[usize::from(group.0)].first,
            target: None,
            group,
        };
        let mut admitted = self.correlation.register(&admission);
        if matches!(admitted, Err(Refused::Full)) {
            if !may_wait {
                return Err(NotTaken::Busy(Payload::Bytes(input)));
            }
            self.wait_for_room(outbound, || {
                admitted = self.correlation.register(&admission);
                !matches!(admitted, Err(Refused::Full))
            })?;
        }
        let admitted = admitted.map_err(|_| NotTaken::TraceInFlight)?;
        self.correlation.join_run(admitted.root());
        self.set_order(admitted.index, Some(Arc::clone(order)));
        fence(Ordering::SeqCst);
        self.correlation.published(admitted.root(), outbound.deadline_ns);
        // A root that has ended by now is taken like any other.
        if let Some(branch) = self.correlation.take_up(admitted.root(), admitted.ticket) {
            let onward = Onward { source: ENGINE, target: outbound.target.node(), key: outbound.key };
            let mut wakes = Wakes::new();
            order.input(self, number, branch, onward, input, &mut wakes);
            self.wake(wakes);
        }
        Ok(admitted)
    }

    /// An input's request has ended and is about to be taken.
    fn leave_order(&self, order: &InOrder, number: u64, pending: &Pending) {
        let mut wakes = Wakes::new();
        order.end_input(self, number, &mut wakes);
        self.set_order(pending.key().index, None);
        self.wake(wakes);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::base::failure::NodeError;
    use crate::engine::EngineBuilder;
    use crate::node::registry::Registry;
    use crate::node::{Node, Output, Request};
    use crate::plan::plan::Plan;
    use crate::plan::settings::Profile;

    struct Echo;

    impl Node for Echo {
        fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
            Ok(output.reply(request.payload())?)
        }
    }

    fn engine() -> Engine {
        let mut registry = Registry::default();
        registry.add(["echo".to_owned()], Arc::new(|| Ok(Box::new(Echo) as Box<dyn Node>)));
        let plan = Plan::new().group("g", ["echo"]);
        EngineBuilder::new(registry, plan).profile(Profile::Memory).start().unwrap()
    }

    #[test]
    fn order_01_inputs_that_come_by_themselves_feed_one_run() {
        let engine = engine();
        let (sender, inputs) = channel::<Vec<u8>>();
        let run = engine.run(engine.node("echo").unwrap(), inputs.try_iter()).window(2).ask_again();
        let mut run = run.start().unwrap();
        let mut number = 0;
        for pause in 0..3 {
            assert!(run.next().is_none(), "pause {pause}");
            (0..5).for_each(|input| sender.send(vec![pause, input]).unwrap());
            for input in 0..5 {
                let (found, reply) = run.next().unwrap();
                assert_eq!((found, &*reply.unwrap().bytes()), (number, &[pause, input][..]));
                number += 1;
            }
        }
    }

    #[test]
    fn order_01_the_first_none_is_the_end_where_nothing_else_is_stated() {
        let engine = engine();
        let (sender, inputs) = channel::<Vec<u8>>();
        let mut run = engine.run(engine.node("echo").unwrap(), inputs.try_iter()).start().unwrap();
        assert!(run.next().is_none());
        sender.send(Vec::new()).unwrap();
        assert!(run.next().is_none());
    }
    #[test]
    fn a_run_is_sent_where_its_inputs_are() {
        fn sent<T: Send + 'static>(_: T) {}
        let engine = engine();
        let run = engine.run(engine.node("echo").unwrap(), [b"one"]).key(|number, _| number).start().unwrap();
        sent(run);
    }
}
