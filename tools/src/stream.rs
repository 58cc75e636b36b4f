//! The lines on their way through one side's engine: a run of the plan, fed as the lines come.
//!
//! Lines are sent when the oldest one's reply is taken, as many as the window and the room in the engine allow;
//! what has not been sent stays in its batch, which all sides share. Replies come in input order, and a line
//! that is too long for an engine is answered in its place among them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use handbell::Deadline;

use crate::exit::{Exit, Problem};
use crate::input::Batch;
use crate::load_limits::Options;
use crate::load_limits::reply::{Reason, write_reply};
use crate::side::{Latency, Session, Side, latency, record};

/// One profile's lines in flight.
pub struct Stream {
    run: handbell::Run<Lines>,
    feed: Rc<RefCell<Feed>>,
    options: Options,
    latency: Latency,
    /// What the oldest line was answered, once taken.
    reply: Vec<u8>,
}

impl Stream {
    /// Of the lines of one input.
    pub fn start(side: &Side) -> Result<Self, Problem> {
        let feed = Rc::new(RefCell::new(Feed::default()));
        let manner = side.manner();
        let run = side.engine().run(side.entry(), Lines(Rc::clone(&feed)));
        let run = run.tags(Session::Stream as u16, manner.options.to_scenario());
        let run = run.window(manner.window).deadline(Deadline::after(manner.deadline)).ask_again().start();
        let run = run.map_err(|error| Problem { exit: Exit::Start, message: error.to_string() })?;
        Ok(Self { run, feed, options: manner.options, latency: latency(), reply: Vec::new() })
    }

    /// Hands in the next lines. All before them have been sent.
    pub fn hand_in(&mut self, batch: Rc<Batch>) {
        let mut feed = self.feed.borrow_mut();
        assert!(!feed.has_unsent(), "one batch after the other");
        feed.batch = batch;
        feed.next = 0;
    }

    /// Whether lines wait to be sent.
    pub fn has_unsent(&self) -> bool {
        self.feed.borrow().has_unsent()
    }

    /// Sends what may be sent, then waits for the reply to the oldest line.
    pub fn take_oldest(&mut self) -> Result<&[u8], Problem> {
        self.reply.clear();
        if self.feed.borrow_mut().take_too_long() {
            // As the nodes answer any line of which nothing can be read.
            write_reply(&mut self.reply, "", "", Some(Reason::InputParseError), self.options.reasons);
        } else if let Some((_, reply)) = self.run.next() {
            let flight = self.feed.borrow_mut().flights.pop_front();
            let reply = reply?;
            if let Some(Flight::Sent(sent)) = flight {
                record(&mut self.latency, sent);
            }
            self.reply.extend_from_slice(&reply.bytes());
        }
        Ok(&self.reply)
    }

    /// How long the lines took, from being sent to their reply being taken. The run is over.
    pub fn finish(self) -> Latency {
        self.latency
    }
}

/// What a run is fed with.
#[derive(Default)]
struct Feed {
    batch: Rc<Batch>,
    /// The next line of the batch.
    next: usize,
    /// Lines whose replies have not been taken, the oldest first.
    flights: VecDeque<Flight>,
}

enum Flight {
    Sent(Instant),
    /// No engine sees it.
    TooLong,
}

impl Feed {
    fn has_unsent(&self) -> bool {
        self.next < self.batch.len()
    }

    /// Whether the oldest line is too long; if so, it has been taken.
    fn take_too_long(&mut self) -> bool {
        match self.flights.front() {
            Some(Flight::TooLong) => {
                self.flights.pop_front();
                true
            }
            Some(Flight::Sent(_)) => false,
            // It may be the next one to be sent.
            None => {
                let too_long = self.has_unsent() && self.batch.range(self.next).is_none();
                self.next += usize::from(too_long);
                too_long
            }
        }
    }
}

/// The lines that a run asks for; none for now once the batch has been sent.
struct Lines(Rc<RefCell<Feed>>);

impl Iterator for Lines {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        let mut feed = self.0.borrow_mut();
        while feed.has_unsent() {
            let range = feed.batch.range(feed.next);
            feed.next += 1;
            match range {
                Some(range) => {
                    feed.flights.push_back(Flight::Sent(Instant::now()));
                    return Some(Line { batch: Rc::clone(&feed.batch), range });
                }
                None => feed.flights.push_back(Flight::TooLong),
            }
        }
        None
    }
}

/// A line of a batch.
struct Line {
    batch: Rc<Batch>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Line {
    fn as_ref(&self) -> &[u8] {
        self.batch.bytes(self.range.clone())
    }
}
