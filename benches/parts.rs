//! Each part by itself, in one process and one thread: what a hand-off is made of, without the way between two
//! processors.
//!
//! `cargo bench --bench parts [-- NAME]`. Every result is checked once before it is measured.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use handbell::testing::parts::{Blocks, Nodes, Ring, Signer};
use handbell::testing::{Envelope, Judged, Table, flags};
use handbell::{App, Deadline, Identity, Plan, Profile, TraceId};
use std::time::Duration;

const PAYLOAD: [u8; 64] = [7; 64];

fn envelope(c: &mut Criterion) {
    let envelope = Envelope { payload_len: 64, ticket: 9, ..Envelope::default() };
    assert_eq!(Envelope::from_words(envelope.to_words()), envelope);
    c.bench_function("envelope: to words and back", |b| {
        b.iter(|| Envelope::from_words(black_box(black_box(envelope).to_words())));
    });
}

fn ring(c: &mut Criterion) {
    let mut ring = Ring::new(1024, 256);
    let mut taken = [0; 64];
    assert!(ring.read(&mut taken).is_none());
    c.bench_function("ring: write, commit, look, read, 64 bytes", |b| {
        b.iter(|| {
            ring.write(black_box(Envelope::default()), black_box(&PAYLOAD));
            ring.read(&mut taken).expect("it has just been committed")
        });
    });
    assert_eq!(taken, PAYLOAD);
}

fn arena(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena: take, hand over, get back");
    for bytes in [256, 4096, 65_536, 1 << 20] {
        let blocks = Blocks::new(4 << 20);
        assert!(blocks.around(bytes));
        group.bench_function(format!("{bytes} bytes"), |b| b.iter(|| blocks.around(black_box(bytes))));
    }
    group.finish();
}

fn correlation(c: &mut Criterion) {
    let table = Table::new(1024, 8, 65_536);
    let mut group = c.benchmark_group("correlation: register, complete, take");
    for (name, own_id) in [("the engine's id", false), ("the caller's id", true)] {
        let mut number = 0_u128;
        group.bench_function(name, |b| {
            b.iter(|| {
                number += 1;
                let trace_id = TraceId::from(if own_id { number } else { 0 });
                let identity = Identity { trace_id, ..Identity::default() };
                let waiter = table.register(identity, 1 << 62).expect("there is room");
                let terminal = Envelope { flags: flags::LAST, ..waiter.terminal() };
                assert_eq!(table.frame(&terminal, &PAYLOAD, 1), Judged::Ended);
                table.take(&waiter).expect("it has ended")
            });
        });
    }
    group.finish();
    assert_eq!(table.audit().in_flight, 0);
}

fn tag(c: &mut Criterion) {
    let signer = Signer::default();
    let message = [5; 96];
    let tag = signer.tag(&message);
    assert!(signer.verify(&message, &tag) && !signer.verify(&message[1..], &tag));
    let mut group = c.benchmark_group("doorbell tag");
    group.throughput(Throughput::Elements(1));
    group.bench_function("sign", |b| b.iter(|| signer.tag(black_box(&message))));
    group.bench_function("verify", |b| b.iter(|| signer.verify(black_box(&message), black_box(&tag))));
    group.finish();
}

fn app() -> App {
    App::new()
        .node("echo", |request, output| Ok(output.reply(request.payload())?))
        .node("pass", |request, output| Ok(output.emit(request.payload())?))
}

fn executor(c: &mut Criterion) {
    let mut group = c.benchmark_group("executor");
    let one = Plan::new().group("g", ["echo"]);
    let two = Plan::new().group("g", ["pass", "echo"]).edge("pass", "echo");
    for (name, plan) in [("one node", one), ("two nodes in a row", two)] {
        let mut nodes = Nodes::of(&app(), plan).expect("they are built");
        assert_eq!(nodes.run(&PAYLOAD), Some(64));
        group.bench_function(name, |b| b.iter(|| nodes.run(black_box(&PAYLOAD))));
    }
    group.finish();
}

fn memory_profile(c: &mut Criterion) {
    let engine = app().engine(Plan::new().group("g", ["echo"])).profile(Profile::Memory).start();
    let engine = engine.expect("the engine starts");
    let echo = engine.node("echo").expect("the plan has it");
    let mut number = 0_u128;
    let mut call = || {
        number += 1;
        let request = engine.request(echo).trace_id(TraceId::from(number));
        request.deadline(Deadline::after(Duration::from_secs(60))).call(&PAYLOAD).expect("the echo answers")
    };
    assert_eq!(*call().bytes(), PAYLOAD);
    c.bench_function("memory profile: call, 64 bytes", |b| b.iter(&mut call));
}

criterion_group!(parts, envelope, ring, arena, correlation, tag, executor, memory_profile);
criterion_main!(parts);
