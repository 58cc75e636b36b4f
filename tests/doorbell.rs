//! The doorbell on real sockets, between real processes, and besieged: SEC-IPC-01, -03, -04, -07, -08, -09,
//! KEY-IPC-01 and -02. Every edge of the state machines has a test beside them, in `src/doorbell/`.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use handbell::testing::doorbell::{
    CallError, Caller, Connection, Credentials, Ended, EngineSession, Listener, Loopback, Reject, Report,
    SECRET_BYTES, Secret, Session, Timing, Turn, WorkerSession, monotonic_ns, random,
};
use rustix::process::Signal;

mod common;
use common::bell::*;
use common::{kill, patiently, pause};

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("worker") => worker(),
        Ok("besieged") => besieged(),
        Ok("forgetful") => forgetful(),
        _ => {}
    }
    common::app().serve_if_worker();
    common::run(tests![
        sec_ipc_01_a_worker_process_is_let_go_drained_and_stopped,
        sec_ipc_03_a_worker_paused_for_longer_than_a_message_lives_obeys,
        sec_ipc_04_what_was_said_in_one_session_is_worthless_in_the_next,
        sec_ipc_07_it_listens_on_loopback_only,
        sec_ipc_08_no_secret_is_left_in_memory,
        sec_ipc_09_strangers_are_closed_unread,
        sec_ipc_09_a_caller_who_never_says_hello_has_two_seconds,
        sec_ipc_09_a_flood_does_not_hinder_a_start,
        key_ipc_02_a_static_secret_says_so,
        a_peer_that_never_reads_costs_nothing,
        a_call_that_comes_to_nothing_says_why,
    ]);
}

fn sec_ipc_01_a_worker_process_is_let_go_drained_and_stopped() {
    let mut listener = listener_at(81);
    let mut process = announced(&mut listener, Timing::default());
    let mut connection = finish(&mut listener).expect("the handshake is done");
    // The listener is closed for good. A process that another test starts holds it until it has become another
    // program.
    let again = || TcpStream::connect(listener.local()).map_err(|error| error.kind());
    while !matches!(again(), Err(ErrorKind::ConnectionRefused)) {}
    assert!(matches!(listener.turn(monotonic_ns()), Ok(Turn::Late)));
    assert_eq!((listener.next_ns(), listener.rejects().total()), (None, 0));

    hear(&mut connection, Report::Ready);
    // It beats, whether it is needed or not.
    hear(&mut connection, Report::Heartbeat);
    assert!(connection.session().heard_ns().is_some());
    connection.session().go();
    connection.session().drain(monotonic_ns());
    hear(&mut connection, Report::Drained);
    connection.session().stop(monotonic_ns());
    let reports = hear(&mut connection, Report::Bye);
    assert!(reports.contains(&Report::Stopped), "{reports:?}");
    assert_eq!(process.line(), "Go");
    assert_eq!(process.ends_well(), "Drain\nStop\ndropped 0\n");
    let end = loop {
        match connection.turn(monotonic_ns(), |report| panic!("{report:?} behind BYE")) {
            Ok(()) => std::thread::sleep(Duration::from_millis(1)),
            Err(ended) => break ended,
        }
    };
    assert_eq!((end, connection.session().rejects().total()), (Ended::Closed, 0));
}

fn sec_ipc_03_a_worker_paused_for_longer_than_a_message_lives_obeys() {
    let (ttl_ns, mut process, mut connection) = patiently(200, |ttl_ms| {
        let mut listener = listener();
        let timing = Timing { ttl_ns: ttl_ms * 1_000_000, beat_ns: SECOND / 50 };
        let process = announced(&mut listener, timing);
        // A slow machine's HELLO may be too old already.
        finish(&mut listener).map(|connection| (timing.ttl_ns, process, connection))
    });
    hear(&mut connection, Report::Ready);
    let pid = process.child.id() as i32;
    pause(pid);
    // All of it is old when the worker sees it.
    connection.session().go();
    connection.session().drain(monotonic_ns());
    let until_ns = monotonic_ns() + 2 * ttl_ns + SECOND / 10;
    while monotonic_ns() < until_ns {
        connection.turn(monotonic_ns(), |_| ()).expect("its connection stands");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(pid, Signal::CONT);
    hear(&mut connection, Report::Drained);
    connection.session().stop(monotonic_ns());
    hear(&mut connection, Report::Stopped);
    assert_eq!((process.line(), process.line()), ("Go".into(), "Drain".into()));
    let said = process.ends_well();
    assert!(said.starts_with("Stop\ndropped ") && !said.contains("dropped 0"), "{said}");
}

// ---- strangers, liars, silence ----

fn sec_ipc_04_what_was_said_in_one_session_is_worthless_in_the_next() {
    let mut static_bytes = [5; SECRET_BYTES];
    let secret = Secret::take(&mut static_bytes);
    let fresh = || Credentials::with_static(&secret, random::fill).expect("random bytes");
    // Recorded in a first session, with the same secret.
    let first = fresh();
    let mut recorded = WorkerSession::new(copy(&first), worker_terms(), [1; 32]);
    let mut engine = EngineSession::new(&first, engine_terms(std::process::id()), [2; 32]);
    let hello = recorded.transmit(monotonic_ns()).expect("HELLO");
    engine.feed(&hello, monotonic_ns(), &mut |_| ()).expect("accepted there");
    assert!(engine.is_open());
    // A second one, from the announced place.
    let mut listener = Listener::open(Loopback::default(), fresh()).expect("it listens");
    let mut stream = TcpStream::connect(listener.local()).expect("connected");
    let port = stream.local_addr().expect("bound").port();
    listener.announce(port, engine_terms(std::process::id()), far_ns());
    stream.write_all(&hello).expect("sent");
    while listener.rejects().total() == 0 {
        assert!(matches!(listener.turn(monotonic_ns()), Ok(Turn::Waiting)));
    }
    assert_eq!(listener.rejects().of(Reject::Tag), 1);
    // Closed without a word.
    assert_eq!(stream.read(&mut [0; 1]).ok().unwrap_or(0), 0);
}

fn sec_ipc_07_it_listens_on_loopback_only() {
    for address in ["0.0.0.0", "::", "192.0.2.1"] {
        let address = address.parse().expect("an address");
        let error = Loopback::check("doorbell_address", address).expect_err("refused");
        assert_eq!((error.field, error.value), ("doorbell_address", address.to_string()));
    }
    for address in ["127.0.0.1", "127.3.2.1", "::1"] {
        let address = address.parse().expect("an address");
        let loopback = Loopback::check("doorbell_address", address).expect("loopback");
        match Listener::open(loopback, credentials()) {
            Ok(listener) => assert_eq!(listener.local().ip(), address),
            // A machine without IPv6.
            Err(error) => assert!(address.is_ipv6(), "{error}"),
        }
    }
}

fn sec_ipc_09_strangers_are_closed_unread() {
    let mut listener = listener();
    let connect = || TcpStream::connect(listener.local()).expect("connected");
    // Nobody is announced yet.
    let mut early: Vec<_> = (0..200).map(|_| connect()).collect();
    while listener.rejects().of(Reject::Stranger) < 200 {
        listener.turn(monotonic_ns()).expect("turned away");
    }
    // The announced port, but at another address.
    let elsewhere = Caller::bind(IpAddr::from([127, 0, 0, 2])).expect("bound");
    let begin_ns = monotonic_ns();
    listener.announce(elsewhere.port(), engine_terms(std::process::id()), begin_ns);
    let (to, secret) = (listener.local(), told_by(&listener));
    let call =
        std::thread::spawn(move || elsewhere.call(to, secret, worker_terms(), far_ns(), |_| ()).map(drop));
    while listener.rejects().of(Reject::Stranger) < 201 {
        assert!(
            matches!(listener.turn(begin_ns), Ok(Turn::Waiting)),
            "it has the secret, and is still a stranger"
        );
    }
    assert!(matches!(listener.turn(begin_ns + 2 * SECOND), Ok(Turn::Late)));
    // It may have been hung up on before it was told that it is connected.
    let refused = call.join().expect("no panic").expect_err("refused");
    let resets = [CallError::Ended(Ended::Closed), CallError::System(ErrorKind::ConnectionReset)];
    assert!(resets.contains(&refused), "{refused:?}");
    assert_eq!(listener.rejects().of(Reject::Stranger), 201);
    assert_eq!(listener.rejects().of(Reject::Silence), 1);
    for stream in &mut early {
        assert_eq!(stream.read(&mut [0; 1]).ok().unwrap_or(0), 0);
    }
}

fn sec_ipc_09_a_caller_who_never_says_hello_has_two_seconds() {
    for bytes_said in [0, 1, 127] {
        let mut listener = listener();
        let mut stream = TcpStream::connect(listener.local()).expect("connected");
        let port = stream.local_addr().expect("bound").port();
        // The clock is an argument: no need to wait.
        let begin_ns = 50 * SECOND;
        listener.announce(port, engine_terms(std::process::id()), begin_ns);
        for said in 0..bytes_said {
            stream.write_all(b"H").expect("sent");
            let now_ns = begin_ns + said * SECOND / 100;
            assert!(matches!(listener.turn(now_ns), Ok(Turn::Waiting)));
        }
        assert_eq!(listener.next_ns(), Some(begin_ns + 2 * SECOND));
        assert!(matches!(listener.turn(begin_ns + 2 * SECOND - 1), Ok(Turn::Waiting)));
        assert!(matches!(listener.turn(begin_ns + 2 * SECOND), Ok(Turn::Late)));
        assert_eq!(listener.rejects().of(Reject::Silence), 1);
        assert_eq!(stream.read(&mut [0; 1]).ok().unwrap_or(0), 0);
    }
}

// ---- a flood ----

/// Descriptors and resident bytes of this process.
fn held() -> (usize, u64) {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    (descriptors, pages * 4096)
}

/// What a worker waits on purpose before it is announced; the listener goes on turning strangers away.
const WAITS_NS: u64 = SECOND / 4;

/// A worker from its start to READY, and how long that took beside what it waited on purpose.
fn birth(
    listener: &mut Listener,
    mut look: impl FnMut(&Listener),
) -> (Process, Box<Connection<EngineSession>>, u64) {
    let begin_ns = monotonic_ns();
    let mut process = unannounced(listener);
    let until_ns = monotonic_ns() + WAITS_NS;
    while monotonic_ns() < until_ns {
        listener.turn(monotonic_ns()).expect("turned away");
        look(listener);
    }
    announce(listener, &mut process, Timing::default());
    let mut connection = finish(listener).expect("the start succeeds all the same");
    hear(&mut connection, Report::Ready);
    (process, connection, monotonic_ns() - begin_ns - WAITS_NS)
}

fn end(process: Process, mut connection: Box<Connection<EngineSession>>) {
    connection.session().go();
    connection.session().stop(monotonic_ns());
    hear(&mut connection, Report::Bye);
    process.ends_well();
}

/// An engine under siege: starts a worker in peace, says its port, waits until it is told that this was enough, then
/// starts its worker in the middle of it, and says what it cost.
fn besieged() -> ! {
    let (process, connection, quiet_ns) = birth(&mut listener(), |_| ());
    end(process, connection);
    let mut listener = listener();
    let _ = listener.turn(monotonic_ns());
    let before = held();
    println!("{}", listener.local().port());
    let mut most = before;
    let mut look = |listener: &Listener| {
        if listener.rejects().total().is_multiple_of(64) {
            let now = held();
            most = (most.0.max(now.0), most.1.max(now.1));
        }
    };
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    std::thread::spawn(move || {
        std::io::stdin().read_exact(&mut [0]).expect("told");
        told.store(true, Ordering::Relaxed);
    });
    while !enough.load(Ordering::Relaxed) {
        listener.turn(monotonic_ns()).expect("turned away");
        look(&listener);
    }
    let (process, mut connection, siege_ns) = birth(&mut listener, look);
    let rejects = *listener.rejects();
    let counted = Reject::ALL.map(|reason| format!("{} {}", reason.name(), rejects.of(reason)));
    println!("{}, in the session {}", counted.join(", "), connection.session().rejects().total());
    end(process, connection);
    for figure in [
        rejects.of(Reject::Stranger),
        rejects.total() - rejects.of(Reject::Stranger),
        (most.0 - before.0) as u64,
        before.1,
        most.1,
        quiet_ns / 1000,
        siege_ns / 1000,
    ] {
        println!("{figure}");
    }
    std::process::exit(0);
}

fn sec_ipc_09_a_flood_does_not_hinder_a_start() {
    let mut engine = play("besieged");
    let port: u16 = engine.line().parse().expect("a port");
    let (over, frames, calls) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let shared = Arc::new((over, frames, calls));
    // 1,000 connections a second: some silent, some of a byte, some that say 600 frames of garbage.
    let hostile = |which: u64| {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || {
            let (over, frames, calls) = &*shared;
            let mut garbage = common::Numbers(which + 1);
            let mut silent = std::collections::VecDeque::new();
            let begin_ns = monotonic_ns();
            for call in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let due_ns = begin_ns + call * 2_000_000;
                std::thread::sleep(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
                // It may have been hung up on before it was told that it is connected.
                calls.fetch_add(1, Ordering::Relaxed);
                let Ok(mut stream) = TcpStream::connect((HERE, port)) else { continue };
                let _ = stream.set_nonblocking(true);
                let mut bytes = [0; 128 * 600];
                bytes.iter_mut().for_each(|byte| *byte = garbage.below(256) as u8);
                let said = match (call + which) % 3 {
                    0 => 0,
                    1 => 1,
                    _ => bytes.len(),
                };
                let sent = stream.write(&bytes[..said]).unwrap_or(0);
                frames.fetch_add(sent as u64 / 128, Ordering::Relaxed);
                silent.push_back(stream);
                if silent.len() > 100 {
                    silent.pop_front();
                }
            }
        })
    };
    let hostile: Vec<_> = (0..2).map(hostile).collect();
    while shared.1.load(Ordering::Relaxed) < 100_000 || shared.2.load(Ordering::Relaxed) < 1000 {
        std::thread::sleep(Duration::from_millis(1));
    }
    engine.tell(b".");
    let rejects = engine.line();
    let figures = [(); 7].map(|()| engine.line().parse::<u64>().expect("a figure"));
    shared.0.store(true, Ordering::Relaxed);
    hostile.into_iter().for_each(|thread| thread.join().expect("it ends"));
    engine.ends_well();
    let (frames, calls) = (shared.1.load(Ordering::Relaxed), shared.2.load(Ordering::Relaxed));
    let [strangers, others, descriptors, before, most, quiet_us, siege_us] = figures;
    println!("{calls} calls, {frames} frames of garbage, 0 accepted; rejects: {rejects}");
    println!("spawned to READY: {quiet_us} us in peace, {siege_us} us besieged");
    println!(
        "resident: {before} bytes before, {most} at the most; {descriptors} descriptors more at the most"
    );
    // Each was closed unread, and the worker's own session met nothing.
    assert!(strangers >= 800 && calls >= strangers && others == 0, "{strangers} of {calls}: {rejects}");
    assert!(rejects.ends_with("in the session 0"), "{rejects}");
    // One stranger is open at a time, and one worker has two pipes.
    assert!(descriptors <= 8, "{descriptors} descriptors");
    assert!(most - before < 4 << 20, "{before} and {most} bytes");
}

// ---- secrets ----

fn key_ipc_02_a_static_secret_says_so() {
    let (fresh, _) = common::start(&["echo"]);
    let (fixed, echo) =
        common::started(common::engine(&["echo"]).development_secret(&[5; SECRET_BYTES]), "echo");
    assert!(fixed.call(echo, b"works", common::far()).is_ok());
    let says_so = |engine: &handbell::Engine| engine.summary().to_string().contains("DEVELOPMENT");
    assert_eq!((says_so(&fresh), says_so(&fixed)), (false, true));
    common::stop(&fresh);
    common::stop(&fixed);
}

/// The secret that [`forgetful`] forgets, so written that this program's file does not contain it.
fn canary(at: usize) -> u8 {
    (at as u8).wrapping_mul(37) ^ 0xA5
}

/// Runs a whole session in one process, then looks for its secret in all of its memory.
fn forgetful() -> ! {
    let mut bytes: Box<[u8; SECRET_BYTES]> = Box::new([0; SECRET_BYTES]);
    bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = canary(at));
    // The search finds what is there.
    assert!(sightings() > 0);
    let secret = Secret::take(&mut bytes);
    let ours = Credentials::with_static(&secret, random::fill).expect("random bytes");
    drop(secret);
    let mut listener = Listener::open(Loopback::default(), ours).expect("it listens");
    let caller = Caller::bind(HERE).expect("bound");
    listener.announce(caller.port(), engine_terms(std::process::id()), far_ns());
    let (to, theirs) = (listener.local(), told_by(&listener));
    let call = std::thread::spawn(move || caller.call(to, theirs, worker_terms(), far_ns(), |_| ()));
    let engine = finish(&mut listener).expect("the handshake is done");
    let worker = call.join().expect("no panic").expect("answered");
    assert!(listener.credentials().is_none());
    // Both sessions are open.
    println!("{}", sightings());
    drop((engine, worker));
    std::process::exit(0);
}

/// How often the canary stands in the memory of this process.
fn sightings() -> usize {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    let memory = std::fs::File::open("/proc/self/mem").expect("proc");
    let mut seen = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [begin, end] = [range.0, range.1].map(|at| u64::from_str_radix(at, 16).expect("an address"));
        let mut page = [0; 4096 + SECRET_BYTES];
        for at in (begin..end).step_by(4096) {
            let Ok(read) = memory.read_at(&mut page, at) else { continue };
            let is_canary = |window: &[u8]| window.iter().enumerate().all(|(at, byte)| *byte == canary(at));
            seen += page[..read].windows(SECRET_BYTES).filter(|window| is_canary(window)).count();
        }
    }
    seen
}

fn sec_ipc_08_no_secret_is_left_in_memory() {
    let mut process = play("forgetful");
    assert_eq!(process.line(), "0", "places in memory where the secret stands");
    process.ends_well();
}

// ---- trouble ----

fn a_peer_that_never_reads_costs_nothing() {
    let mut listener = listener();
    let caller = Caller::bind(HERE).expect("bound");
    listener.announce(caller.port(), engine_terms(std::process::id()), far_ns());
    let (to, secret) = (listener.local(), told_by(&listener));
    let call = std::thread::spawn(move || caller.call(to, secret, worker_terms(), far_ns(), |_| ()));
    let mut engine = finish(&mut listener).expect("the handshake is done");
    let mut worker = call.join().expect("no panic").expect("answered");
    // The engine is stopped for months of heartbeats: the socket fills, and nothing else does.
    let mut now_ns = monotonic_ns();
    let begin_ns = now_ns;
    let mut beats = 0;
    while worker.is_flushed() {
        now_ns += SECOND / 2;
        worker.turn(now_ns, |_| ()).expect("a full socket is no end");
        beats += 1;
        assert!(beats < 10_000_000, "the socket has no end");
    }
    assert_eq!(worker.next_ns(), Some(now_ns + SECOND), "looks again later");
    for _ in 0..1000 {
        now_ns += SECOND;
        worker.turn(now_ns, |_| ()).expect("still");
    }
    // It goes on, and finds the latest beats among the old ones.
    println!("{beats} messages fill a socket");
    let mut reports = 0;
    while reports == 0 {
        engine.turn(now_ns, |_| reports += 1).expect("no fault");
        worker.turn(now_ns, |_| ()).expect("still");
    }
    let rejects = engine.session().rejects();
    assert!(now_ns - begin_ns > 5 * SECOND && rejects.of(Reject::Time) > 0);
    assert_eq!(rejects.of(Reject::Time), rejects.total());
}

fn a_call_that_comes_to_nothing_says_why() {
    // Nobody listens.
    let closed = listener_at(82).local();
    let call = |to, until_ns| {
        let caller = Caller::bind(HERE).expect("bound");
        let called = caller.call(to, credentials(), worker_terms(), until_ns, |_| ());
        called.err().expect("it comes to nothing")
    };
    while call(closed, far_ns()) != CallError::System(ErrorKind::ConnectionRefused) {}
    // Nobody answers.
    let silent = listener();
    assert_eq!(call(silent.local(), monotonic_ns() + SECOND / 100), CallError::Late);
    // Somebody answers who does not know the secret.
    let liar = std::net::TcpListener::bind((HERE, 0)).expect("bound");
    let to = liar.local_addr().expect("bound");
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = liar.accept().expect("called");
        let mut hello = [0; 128];
        stream.read_exact(&mut hello).expect("HELLO");
        stream.write_all(&hello).expect("reflected");
        let _ = stream.read(&mut hello);
    });
    assert_eq!(call(to, far_ns()), CallError::Ended(Ended::Rejected(Reject::Tag)));
    answer.join().expect("no panic");
}
