//! The round trip to a real worker process and back, by every way of waiting, on two processors and on one.
//!
//! `cargo bench --bench round_trip [-- NAME]`. For percentiles, and what the machine charges for the same cache lines,
//! see `handbell bench`; this is for comparing a change with the state before.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use handbell::{App, Deadline, Drain, Engine, NodeId, Plan, TraceId, Waiting};
use handbell_measure::{Place, allowed, apart, pin};

const DEADLINE: Duration = Duration::from_secs(60);
const LARGE: usize = 1 << 20;

fn main() {
    let app = App::new().node("echo", |request, output| Ok(output.reply(request.payload())?));
    app.serve_if_worker();
    let mut criterion = Criterion::default().configure_from_args();
    let home = allowed()[0];
    let mut places = vec![("one processor", Place::together(home)), ("unpinned", Place::anywhere())];
    if let Some(pair) = apart() {
        places.insert(0, ("two processors", Place::apart(pair)));
    }
    for (name, place) in &places {
        small(&app, &mut criterion, name, place);
    }
    let (name, place) = &places[0];
    large(&app, &mut criterion, name, place);
    criterion.final_summary();
}

fn small(app: &App, criterion: &mut Criterion, name: &str, place: &Place) {
    let mut group = criterion.benchmark_group(format!("round trip, 64 bytes, {name}"));
    for (name, waiting) in
        [("spin", Waiting::Spin), ("adaptive", Waiting::Adaptive), ("block", Waiting::Block)]
    {
        group.bench_function(name, |b| {
            // Started here, so that no other's worker looks for work meanwhile.
            let mut echo = Echo::start(app, waiting, place, 64);
            b.iter_custom(|times| echo.round_trips(times));
        });
    }
    group.finish();
}

fn large(app: &App, criterion: &mut Criterion, name: &str, place: &Place) {
    let mut group = criterion.benchmark_group(format!("written and read, {name}"));
    for bytes in [1024, 65_536, LARGE] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes} bytes"), |b| {
            let mut echo = Echo::start(app, Waiting::Adaptive, place, bytes);
            b.iter_custom(|times| echo.round_trips(times));
        });
    }
    group.finish();
}

struct Echo<'a> {
    engine: Engine,
    node: NodeId,
    place: &'a Place,
    sent: Vec<u8>,
    taken: Vec<u8>,
    number: u64,
}

impl<'a> Echo<'a> {
    fn start(app: &App, waiting: Waiting, place: &'a Place, bytes: usize) -> Self {
        let builder = app.engine(Plan::new().group("echo", ["echo"])).waiting(waiting);
        let builder = builder.request_arena_bytes(4 * LARGE).reply_arena_bytes(4 * LARGE);
        let builder = match place.partner {
            Some(processor) => builder.pin(processor),
            None => builder,
        };
        let engine = builder.start().expect("the engine starts");
        let node = engine.node("echo").expect("the plan has it");
        Self { engine, node, place, sent: vec![7; bytes], taken: vec![0; bytes], number: 0 }
    }

    /// Their time in all. Each payload is written in place and read, and every reply checked, outside that time.
    fn round_trips(&mut self, times: u64) -> Duration {
        pin(&self.place.caller);
        let took = (0..times).map(|_| self.round_trip()).sum();
        pin(&allowed());
        took
    }

    fn round_trip(&mut self) -> Duration {
        self.number += 1;
        self.sent[..8].copy_from_slice(&self.number.to_le_bytes());
        let id = TraceId::from(u128::from(self.number));
        let begin = Instant::now();
        let request = self.engine.request(self.node).trace_id(id).deadline(Deadline::after(DEADLINE));
        let reply = if self.sent.len() <= 64 {
            request.call(&self.sent)
        } else {
            let mut loan = request.loan(self.sent.len()).expect("there is room");
            loan.copy_from_slice(&self.sent);
            loan.call()
        };
        let reply = reply.expect("the echo answers");
        reply.copy_to(0, &mut self.taken);
        let took = begin.elapsed();
        assert!(self.taken == self.sent && reply.trace_id() == id, "the reply is what was sent");
        took
    }
}

impl Drop for Echo<'_> {
    fn drop(&mut self) {
        self.engine.stop(Drain::within(Duration::from_secs(5)));
    }
}
