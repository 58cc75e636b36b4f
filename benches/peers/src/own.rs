//! Handbell itself: as everywhere with a deadline and an id of the caller's on each request.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use handbell::{App, Deadline, Drain, Engine, NodeId, Plan, RequestBuilder, TraceId, Waiting};
use handbell_measure::{Pace, Place, Slice, Subject};

use crate::link::{Message, Problem, STRETCH, Task};

const DEADLINE: Duration = Duration::from_secs(60);
const WINDOW: usize = 64;
/// Requests of a stream between two readings of the clock.
const SAMPLED: u64 = 64;

/// What its workers run.
pub fn app() -> App {
    App::new().node("echo", |request, output| Ok(output.reply(request.payload())?))
}

/// An engine and its worker, started for their turn.
pub struct Own<'a> {
    app: &'a App,
    waiting: Waiting,
    place: Place,
    task: Task,
    engine: Option<Engine>,
    number: u64,
}

impl<'a> Own<'a> {
    /// Waiting like this.
    pub fn new(app: &'a App, waiting: Waiting, place: &Place, task: Task) -> Self {
        Self { app, waiting, place: place.clone(), task, engine: None, number: 0 }
    }

    fn next(&mut self) -> (Message, TraceId) {
        self.number += 1;
        let mut message = [7; 64];
        message[8..16].copy_from_slice(&self.number.to_le_bytes());
        (message, TraceId::from(u128::from(self.number)))
    }

    fn echo(&mut self, time: Duration, engine: &Engine, node: NodeId) -> Result<Slice, Problem> {
        Slice::of(time, || {
            let (message, id) = self.next();
            let begin = Instant::now();
            let reply = request(engine, node, id).call(&message)?;
            let took = begin.elapsed();
            if *reply.bytes() == message && reply.trace_id() == id {
                Ok(took)
            } else {
                Err("another message came back".into())
            }
        })
    }

    /// Each request is answered, and each answer checked: twice the messages of a stream one way.
    fn stream(&mut self, time: Duration, engine: &Engine, node: NodeId) -> Result<Slice, Problem> {
        let mut slice = Slice::empty();
        let mut flights = VecDeque::with_capacity(WINDOW);
        let (begin, mut pace, mut ends) = (Instant::now(), Pace::start(STRETCH), false);
        loop {
            if slice.count.is_multiple_of(SAMPLED) {
                let now = Instant::now();
                pace.note(slice.count, now);
                ends = ends || now - begin >= time;
            }
            while !ends && flights.len() < WINDOW {
                let (message, id) = self.next();
                flights.push_back((request(engine, node, id).dispatch(&message)?, message));
            }
            let Some((pending, message)) = flights.pop_front() else {
                slice.took = begin.elapsed();
                slice.steady_per_s = pace.per_s();
                return Ok(slice);
            };
            if *pending.wait()?.bytes() != message {
                return Err("another message came back".into());
            }
            slice.count += 1;
        }
    }
}

fn request(engine: &Engine, node: NodeId, id: TraceId) -> RequestBuilder<'_> {
    engine.request(node).trace_id(id).deadline(Deadline::after(DEADLINE))
}

impl Subject<Problem> for Own<'_> {
    fn wake(&mut self) -> Result<(), Problem> {
        let builder = self.app.engine(Plan::new().group("echo", ["echo"])).waiting(self.waiting);
        let builder = match self.place.partner {
            Some(processor) => builder.pin(processor),
            None => builder,
        };
        self.engine = Some(builder.start()?);
        Ok(())
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let engine = self.engine.clone().ok_or("it is asleep")?;
        let node = engine.node("echo")?;
        match self.task {
            Task::Echo => self.echo(time, &engine, node),
            Task::Stream => self.stream(time, &engine, node),
        }
    }

    fn rest(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop(Drain::within(Duration::from_secs(5)));
        }
    }
}
