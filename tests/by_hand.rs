//! Births that do not go as they should, step by step: BOOT-02 to -04, SEC-IPC-02 and -09, KEY-IPC-01. Workers that answer
//! the engine by hand, and bundles that no engine would send.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handbell::testing::by_hand::{
    BOOTSTRAP_VERSION, BirthByHand, Refusal, Refused, hand_over, hand_over_twice,
};
use handbell::testing::doorbell::{
    CREDENTIALS_BYTES, Caller, Connection, Ended, Order, Poller, SECRET_BYTES, Session, WorkerSession,
    monotonic_ns,
};
use handbell::{
    Category, Cause, Engine, KilledFor, Plan, RefusedFor, Restart, StartError, StartStep, StopMode,
    WorkerEvent,
};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::Signal;

mod common;
use common::{Notices, engine, failure, far, kill, patiently, started, stop, transport, worker_pid};

/// Set in workers that are born by hand, to how; with "then", to how in the first life and in all later ones.
const WAY: &str = "HANDBELL_TEST_WAY";

/// Set in a process that is an engine, and is paused, to how its worker does that.
const ROLE: &str = "HANDBELL_TEST_ROLE";

fn main() {
    if let Ok(way) = std::env::var(WAY)
        && let Some(birth) = BirthByHand::receive_if_worker()
    {
        let is_first = birth.terms.life.incarnation == 1;
        let (first, later) = way.split_once(" then ").unwrap_or((&way, &way));
        be_born(&birth, if is_first { first } else { later });
    }
    common::app().serve_if_worker();
    if let Ok(way) = std::env::var(ROLE) {
        starts_though_it_is_paused(&way);
    }
    common::run(tests![
        boot_02_a_malformed_bundle_ends_the_child,
        boot_02_a_bundle_of_another_version_ends_the_child,
        boot_02_a_refused_version_is_told_with_both,
        key_ipc_01_every_life_has_secrets_of_its_own,
        key_ipc_03_a_bundle_is_read_once,
        key_ipc_03_a_bundle_that_is_published_twice_ends_the_child,
        boot_03_a_worker_by_hand_is_ready_when_it_says_so,
        boot_04_who_never_calls_fails_the_start,
        boot_04_who_is_busy_and_never_calls_fails_the_start,
        stop_ipc_05_an_engine_that_is_paused_in_the_handshake_blames_nobody,
        boot_03_a_worker_that_is_stopped_in_the_handshake_starts,
        boot_04_who_dies_before_it_calls_fails_the_start,
        boot_04_who_calls_from_elsewhere_fails_the_start,
        boot_04_who_calls_and_says_nothing_fails_the_start,
        boot_04_who_speaks_with_other_secrets_fails_the_start,
        boot_04_who_is_never_ready_fails_the_start_though_it_beats,
        boot_04_who_dies_with_its_connections_held_fails_the_start,
        restart_01_a_successor_that_is_refused_tells_step_and_reason,
        sec_ipc_09_an_engine_starts_under_a_flood,
        sec_ipc_09_a_second_call_is_a_stranger,
        sec_ipc_02_a_broken_message_ends_the_worker_and_is_told,
    ]);
}

// ---- in the worker ----

fn far_ns() -> u64 {
    monotonic_ns() + 3_600_000_000_000
}

fn be_born(birth: &BirthByHand, way: &str) -> ! {
    let caller = Caller::bind(birth.doorbell.ip()).expect("a port is left");
    let port = caller.port();
    let call = |caller: Caller, credentials| {
        caller.call(birth.doorbell, credentials, birth.terms, far_ns(), |_| unreachable!("before READY"))
    };
    match way {
        "other_version" => refuse(birth, Refusal::Version(BOOTSTRAP_VERSION + 1)),
        "refuses_the_bundle" => refuse(birth, Refusal::Bundle),
        "refuses_the_layout" => refuse(birth, Refusal::Layout),
        "refuses_a_segment" => refuse(birth, Refusal::Segment),
        "lacks_a_node" => refuse(birth, Refusal::NotRegistered(0)),
        "tells_its_secrets" => {
            let mut bytes = [0; CREDENTIALS_BYTES];
            birth.credentials().write(&mut bytes);
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("{digits}");
            birth.map(port);
        }
        "never_calls" => birth.map(port),
        "pauses_its_engine" | "calls_a_paused_engine" => {
            birth.map(port);
            let engine = rustix::process::getppid().expect("it has one").as_raw_nonzero().get();
            common::pause(engine);
            // Longer than a handshake may take; what is said meanwhile is older than a message may be.
            let is_called = way == "calls_a_paused_engine";
            let goes_on = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(if is_called { 6 } else { 3 }));
                kill(engine, Signal::CONT);
            });
            if !is_called {
                goes_on.join().expect("it has gone on");
                // Who is to be late is late by now.
                std::thread::sleep(Duration::from_millis(300));
            }
            obey(call(caller, birth.credentials()).expect("answered"), birth, way);
        }
        "stands_still" => {
            birth.map(port);
            let own = std::process::id();
            let goes_on = format!("sleep 3; kill -CONT {own}");
            let mut sh =
                std::process::Command::new("sh").args(["-c", &goes_on]).spawn().expect("there is a shell");
            kill(own as i32, Signal::STOP);
            sh.wait().expect("it has ended");
            obey(call(caller, birth.credentials()).expect("answered"), birth, way);
        }
        "is_busy" => {
            birth.map(port);
            loop {
                std::hint::spin_loop();
            }
        }
        "exits" => {
            birth.map(port);
            std::process::exit(7);
        }
        "calls_from_elsewhere" => {
            birth.map(port);
            let elsewhere = Caller::bind(birth.doorbell.ip()).expect("a port is left");
            assert!(call(elsewhere, birth.credentials()).is_err());
        }
        "says_nothing" => {
            let socket =
                rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            let anywhere = SocketAddr::new(birth.doorbell.ip(), 0);
            rustix::net::bind(&socket, &anywhere).expect("a port is left");
            let own = rustix::net::getsockname(&socket).expect("it is bound");
            birth.map(SocketAddr::try_from(own).expect("an address").port());
            rustix::net::connect(&socket, &birth.doorbell).expect("it listens");
            park();
        }
        "other_secrets" => {
            birth.map(port);
            let other = handbell::testing::doorbell::Credentials::take(&mut [9; CREDENTIALS_BYTES]);
            assert!(call(caller, other).is_err());
        }
        "reads_twice" => {
            assert!(birth.has_nothing_to_read() && BirthByHand::receive_if_worker().is_none());
            birth.map(port);
            // Nor when all has been said there.
            assert!(birth.has_nothing_to_read() && BirthByHand::receive_if_worker().is_none());
            obey(call(caller, birth.credentials()).expect("answered"), birth, way);
        }
        "under_a_flood" => {
            let place = birth.doorbell;
            let strangers: Vec<_> = (0..2).map(|_| std::thread::spawn(move || flood(place))).collect();
            std::thread::sleep(Duration::from_secs(1));
            birth.map(port);
            let connection = call(caller, birth.credentials()).expect("answered");
            strangers.into_iter().for_each(|strangers| strangers.join().expect("it ends"));
            obey(connection, birth, way);
        }
        "strangers_first" => {
            birth.map(port);
            (0..3).for_each(|_| hung_up_on(birth.doorbell));
            obey(call(caller, birth.credentials()).expect("answered"), birth, way);
        }
        _ => {
            birth.map(port);
            obey(call(caller, birth.credentials()).expect("answered"), birth, way);
        }
    }
    park()
}

fn refuse(birth: &BirthByHand, refusal: Refusal) -> ! {
    birth.refuse(refusal);
    std::process::exit(82);
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// Connects from anywhere, and is closed unread.
fn hung_up_on(place: SocketAddr) {
    hung_up(TcpStream::connect(place).expect("it listens"));
}

fn hung_up(mut stranger: TcpStream) {
    let read = stranger.read(&mut [0; 8]);
    assert!(matches!(&read, Ok(0)) || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
}

/// Five hundred strangers a second, silent or with garbage, until the door is closed; the latest hundred stay.
fn flood(place: SocketAddr) {
    let mut open = std::collections::VecDeque::new();
    for number in 0.. {
        match TcpStream::connect(place) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            // It was hung up on before it was told that it is connected.
            Err(_) => {}
            Ok(mut stranger) => {
                let _ = stranger.write(&[0x5A; 12_800][..[0, 1, 12_800][number % 3]]);
                open.push_back(stranger);
                if open.len() > 100 {
                    open.pop_front();
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says READY, and does what it is told.
fn obey(mut connection: Connection<WorkerSession>, birth: &BirthByHand, way: &str) -> ! {
    // A second call: nobody takes it any more, and a moment later there is no door.
    while let Ok(second) = TcpStream::connect(birth.doorbell) {
        hung_up(second);
    }
    if way == "is_long_in_building" {
        std::thread::sleep(Duration::from_millis(600));
    }
    if way == "leaves_a_child" {
        // The child holds both connections, as after a fork without an exec.
        for held in [connection.as_fd(), birth.socket()] {
            rustix::io::fcntl_setfd(held, rustix::io::FdFlags::empty()).expect("it is open");
        }
        let mut sleeper = Command::new("sleep");
        sleeper.arg("1000").spawn().expect("sleep starts");
        std::process::exit(6);
    }
    if way != "is_never_ready" {
        connection.session().ready(monotonic_ns());
    }
    let poller = Poller::new().expect("a descriptor is left");
    poller.add(connection.as_fd(), 0).expect("added");
    let mut tokens = Vec::new();
    loop {
        let mut orders = Vec::new();
        match connection.turn(monotonic_ns(), |order| orders.push(order)) {
            Ok(()) => {}
            Err(Ended::Closed) => std::process::exit(1),
            Err(ended) => panic!("{ended:?}"),
        }
        for order in orders {
            match order {
                Order::Go if way == "breaks_a_message" => {
                    std::thread::sleep(Duration::from_millis(600));
                    let mut wrong =
                        connection.session().transmit(monotonic_ns()).expect("a heartbeat is due");
                    wrong[127] ^= 1;
                    rustix::io::write(connection.as_fd(), &wrong).expect("written");
                    park();
                }
                Order::Go => {}
                Order::Drain => connection.session().drained(),
                Order::Stop => {
                    connection.session().stopped();
                    connection.session().bye();
                    while !connection.session().has_left() || !connection.is_flushed() {
                        connection.turn(monotonic_ns(), |_| {}).expect("the engine lives");
                    }
                    std::process::exit(0);
                }
            }
        }
        poller.wait(&mut tokens, connection.next_ns()).expect("waited");
    }
}

// ---- in the engine ----

fn born(way: &str) -> (Result<Engine, StartError>, Notices) {
    let notices = Notices::default();
    let builder = engine(&["echo"]).env(WAY, way).on_worker_event(notices.listener());
    (builder.start(), notices)
}

/// The start is refused; what it says. Its worker has been told of, and of its end.
fn refused(way: &str) -> StartError {
    refused_and_rejected(way).0
}

/// The same, and for what reasons the doorbell refused what came: each is told once.
fn refused_and_rejected(way: &str) -> (StartError, Vec<&'static str>) {
    let (started, notices) = born(way);
    let error = started.map(drop).expect_err("it cannot start");
    let (mut events, mut reasons) = (Vec::new(), Vec::new());
    for event in notices.events() {
        match event {
            WorkerEvent::DoorbellReject(reason) => reasons.push(reason),
            event => events.push(event),
        }
    }
    assert_eq!(events, [WorkerEvent::Started, WorkerEvent::Stopped { gracefully: false }], "{way}");
    let pid = notices.all()[0].pid;
    assert_eq!(common::watch::state_of(pid), None, "it has been reaped");
    (error, reasons)
}

/// A bundle's first bytes, and room for what follows and for the credentials.
fn bundle(version: u16, len: usize) -> Vec<u8> {
    let mut bytes = [&[1][..], b"HBLB", &version.to_le_bytes()].concat();
    bytes.resize(len, 0);
    bytes
}

fn boot_02_a_malformed_bundle_ends_the_child() {
    let malformed = |said: &str| Refused {
        answer: vec![4, 1, 0, 0],
        code: Some(82),
        said: format!("worker cannot start: the start bundle {said}\n"),
    };
    let good = bundle(BOOTSTRAP_VERSION, 500);
    assert_eq!(hand_over(&good, 3), malformed("is malformed"), "zeroes only");
    assert_eq!(hand_over(&good[..20], 3), malformed("is too short"));
    assert_eq!(hand_over(&[0xEE; 500], 3), malformed("is malformed"));
    assert_eq!(hand_over(&good, 2), malformed("is malformed"), "a descriptor is lacking");
    // So long that it does not even arrive.
    let long = hand_over(&[1; 150_000], 3);
    assert_eq!(long.code, Some(82), "{long:?}");
    assert!(long.said.starts_with("worker cannot start: the start bundle was not received"), "{long:?}");
}

fn boot_02_a_bundle_of_another_version_ends_the_child() {
    let other = BOOTSTRAP_VERSION + 4;
    let [low, high] = BOOTSTRAP_VERSION.to_le_bytes();
    let said = format!(
        "worker cannot start: the start bundle has version {other}, this worker knows {BOOTSTRAP_VERSION}\n"
    );
    let expected = Refused { answer: vec![4, 2, low, high], code: Some(82), said };
    assert_eq!(hand_over(&bundle(other, 500), 3), expected);
}

fn boot_02_a_refused_version_is_told_with_both() {
    let error = refused("other_version");
    assert!(matches!(&error, StartError::Refused { group, .. } if group == "g"), "{error:?}");
    let (ours, theirs) = (BOOTSTRAP_VERSION, BOOTSTRAP_VERSION + 1);
    let version = RefusedFor::Version { engine: ours, worker: theirs };
    assert_eq!(error.refusal(), Some((StartStep::Mapped, version)));
    assert_eq!(
        error.to_string(),
        format!(
            "start refused by the worker of group 'g': the engine's bootstrap version is {ours}, the \
             worker's is {theirs}"
        )
    );
}

fn key_ipc_01_every_life_has_secrets_of_its_own() {
    let secrets = |stated: Option<[u8; SECRET_BYTES]>| -> Vec<String> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let plan = Plan::new().group("g", ["echo"]).processes(2);
        let builder = common::app().engine(plan).env(common::TOKEN, common::token());
        let builder = builder.env(WAY, "tells_its_secrets").on_output(move |line| {
            sink.lock().unwrap().push(String::from_utf8_lossy(line.text).into_owned());
        });
        let builder = if let Some(stated) = stated { builder.development_secret(&stated) } else { builder };
        builder.start().map(drop).expect_err("it tells, and never calls");
        std::mem::take(&mut *told.lock().unwrap())
    };
    // Two digits a byte; behind the secret stands the session's id.
    let split = |told: &String| {
        assert_eq!(told.len(), 2 * CREDENTIALS_BYTES);
        let (secret, session) = told.split_at(2 * SECRET_BYTES);
        (secret.to_owned(), session.to_owned())
    };
    let fresh: Vec<_> = [secrets(None), secrets(None)].concat().iter().map(split).collect();
    let stated = [secrets(Some([5; SECRET_BYTES])), secrets(Some([5; SECRET_BYTES]))].concat();
    let stated: Vec<_> = stated.iter().map(split).collect();
    assert_eq!((fresh.len(), stated.len()), (4, 4));
    assert!(stated.iter().all(|(secret, _)| *secret == "05".repeat(SECRET_BYTES)));
    let zero = "00".repeat(SECRET_BYTES);
    let secrets: BTreeSet<&String> = fresh.iter().map(|(secret, _)| secret).chain([&zero]).collect();
    let sessions: BTreeSet<&String> = fresh.iter().chain(&stated).map(|(_, session)| session).collect();
    assert_eq!((secrets.len(), sessions.len()), (5, 8), "no two are the same");
}

fn key_ipc_03_a_bundle_is_read_once() {
    let engine = born("reads_twice").0.expect("what it finds is nothing, twice");
    stop(&engine);
}

fn key_ipc_03_a_bundle_that_is_published_twice_ends_the_child() {
    let ended = hand_over_twice("echo");
    // The first was whole: its segments have been mapped.
    assert_eq!((ended.answer.first(), ended.code), (Some(&2), Some(82)), "{ended:?}");
    assert_eq!(ended.said, "worker cannot start: the engine did not seal the reply segment\n");
}

fn boot_03_a_worker_by_hand_is_ready_when_it_says_so() {
    let begin = Instant::now();
    let (started, notices) = born("is_long_in_building");
    let engine = started.expect("it says READY");
    assert!(begin.elapsed() >= Duration::from_millis(600), "READY is its own word");
    assert_eq!(notices.events(), [WorkerEvent::Started, WorkerEvent::Ready]);
    assert!(engine.doorbell_rejects().iter().all(|(_, count)| *count == 0));
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    let gracefully = WorkerEvent::Stopped { gracefully: true };
    assert_eq!(notices.events()[2..], [WorkerEvent::Drained, gracefully]);
}

fn boot_03_a_worker_that_is_stopped_in_the_handshake_starts() {
    let begin = Instant::now();
    let engine = born("stands_still").0.expect("it goes on");
    assert!(begin.elapsed() >= Duration::from_secs(3), "it stood still for longer than a handshake may take");
    stop(&engine);
}

/// It had two seconds, and so many things of it were refused.
fn not_done(way: &str, rejects: u64) {
    let begin = Instant::now();
    let said = refused(way).to_string();
    assert!(begin.elapsed() >= Duration::from_secs(2), "{way}: never early");
    assert_eq!(
        said,
        format!(
            "start refused by the worker of group 'g': it did not do its part at step handshake ({rejects} \
             messages rejected)"
        ),
        "{way}"
    );
}

fn boot_04_who_never_calls_fails_the_start() {
    not_done("never_calls", 1);
}

fn boot_04_who_is_busy_and_never_calls_fails_the_start() {
    // It wants a processor, as one does that is kept from it; but it has had one.
    not_done("is_busy", 1);
}

fn stop_ipc_05_an_engine_that_is_paused_in_the_handshake_blames_nobody() {
    for way in ["pauses_its_engine", "calls_a_paused_engine"] {
        let mut engine = Command::new("/proc/self/exe");
        engine.env(ROLE, way).env(common::TOKEN, common::token());
        assert!(engine.status().expect("this program starts").success(), "{way}");
    }
}

/// Not a test: an engine whose worker pauses it for some seconds before it calls, or while it does.
fn starts_though_it_is_paused(way: &str) -> ! {
    let engine = born(way).0.expect("the pause was not its worker's fault");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    std::process::exit(0);
}

fn boot_04_who_calls_from_elsewhere_fails_the_start() {
    // The stranger, and the silence of the one that was awaited. It knows that it was turned away, and ends.
    let (error, reasons) = refused_and_rejected("calls_from_elsewhere");
    assert!(matches!(error, StartError::Refused { .. } | StartError::Died { .. }), "{error}");
    assert_eq!(reasons[0], "stranger");
}

fn boot_04_who_calls_and_says_nothing_fails_the_start() {
    not_done("says_nothing", 1);
}

fn boot_04_who_speaks_with_other_secrets_fails_the_start() {
    // Its HELLO is refused for its tag, once; it is not heard again.
    not_done("other_secrets", 2);
}

fn died(way: &str, at: StartStep, code: i32) {
    let error = refused(way);
    let StartError::Died { group, step, cause } = &error else { panic!("{way}: {error:?}") };
    assert_eq!((group.as_str(), *step, *cause), ("g", at, Cause::Exit(code)), "{way}");
}

fn boot_04_who_dies_before_it_calls_fails_the_start() {
    died("exits", StartStep::Handshake, 7);
}

fn boot_04_who_dies_with_its_connections_held_fails_the_start() {
    // Neither connection ends, but the process has.
    died("leaves_a_child", StartStep::Ready, 6);
}

fn boot_04_who_is_never_ready_fails_the_start_though_it_beats() {
    patiently(1500, |timeout_ms| {
        let builder = engine(&["echo"]).env(WAY, "is_never_ready");
        let error = builder.start_timeout(Duration::from_millis(timeout_ms)).start().unwrap_err();
        let StartError::Timeout { step, .. } = error else { panic!("{error:?}") };
        // A slow machine does not come so far.
        (step == StartStep::Ready).then_some(())
    });
}

// ---- successors ----

fn restart_01_a_successor_that_is_refused_tells_step_and_reason() {
    use RefusedFor::{Bundle, Exit, Layout, NoAnswer, NotRegistered, Segment, Version};
    let version = Version { engine: BOOTSTRAP_VERSION, worker: BOOTSTRAP_VERSION + 1 };
    let lacks = NotRegistered(handbell::testing::node_by_number(0));
    std::thread::scope(|scope| {
        for (way, step, reason) in [
            ("other_version", StartStep::Mapped, version),
            ("refuses_the_bundle", StartStep::Mapped, Bundle),
            ("refuses_the_layout", StartStep::Mapped, Layout),
            ("refuses_a_segment", StartStep::Mapped, Segment),
            ("lacks_a_node", StartStep::Mapped, lacks),
            ("exits", StartStep::Handshake, Exit(7)),
            ("never_calls", StartStep::Handshake, NoAnswer),
            ("says_nothing", StartStep::Handshake, NoAnswer),
            ("other_secrets", StartStep::Handshake, NoAnswer),
            ("leaves_a_child", StartStep::Ready, Exit(6)),
        ] {
            scope.spawn(move || succession_refused(way, step, reason));
        }
    });
}

/// The first life serves until it is killed; the second one is refused, and there is no third.
fn succession_refused(way: &str, step: StartStep, reason: RefusedFor) {
    let notices = Notices::default();
    let at_once = Duration::from_millis(1);
    let plan = Plan::new().group("g", ["echo"]).restart(Restart::on_failure(1).delay(at_once, at_once));
    let builder = common::engine_over(plan.redispatch_unstarted()).env(WAY, format!("obeys then {way}"));
    let builder = builder.on_worker_event(notices.listener());
    let (engine, echo) = started(builder, "echo");
    let born = worker_pid(&engine);
    // A worker by hand answers nobody.
    let waiting: Vec<_> = (0..3).map(|_| engine.request(echo).dispatch(b"").expect("it is taken")).collect();
    kill(born, Signal::KILL);
    let refused = Cause::StartRefused { step, reason };
    for waiting in waiting {
        let failed = failure(waiting.wait().unwrap_err(), Category::Transport);
        assert_eq!((failed.group(), failed.cause(), failed.started()), ("g", refused, false), "{way}");
    }
    // Whoever comes later is told the same.
    assert_eq!(transport(engine.call(echo, b"", far()).unwrap_err()), refused, "{way}");
    common::until("the group is given up", || notices.has(&WorkerEvent::GivenUp));
    use WorkerEvent::{Crashed, GivenUp, Ready, StartRefused, Started};
    let told = notices.events_of(born);
    assert_eq!(
        told,
        [Started, Ready, Crashed(Cause::Signal(9)), StartRefused { step, reason }, GivenUp],
        "{way}"
    );
    let mut others = notices.all();
    let is_reject = |event: &WorkerEvent| matches!(event, WorkerEvent::DoorbellReject(_));
    others.retain(|notice| notice.pid != born && !is_reject(&notice.event));
    let of_the_second: Vec<_> = others.iter().map(|notice| notice.event.clone()).collect();
    assert_eq!(of_the_second, [Started, WorkerEvent::Stopped { gracefully: false }], "{way}");
    assert!(others[0].pid > 0 && others[0].pid == others[1].pid, "{way}: {others:?}");
    stop(&engine);
}

/// How often each reason was that of a reject.
fn rejects(engine: &Engine) -> Vec<(&'static str, u64)> {
    engine.doorbell_rejects().into_iter().filter(|(_, count)| *count > 0).collect()
}

fn sec_ipc_09_an_engine_starts_under_a_flood() {
    let begin = Instant::now();
    let (started, notices) = born("under_a_flood");
    let engine = started.expect("strangers hinder nobody");
    println!("started after {:?}, of which a second was waited for {:?}", begin.elapsed(), rejects(&engine));
    let [("stranger", count)] = rejects(&engine)[..] else { panic!("{:?}", rejects(&engine)) };
    assert!(count >= 20, "{count}");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    // However many there were.
    let told = notices.events().into_iter().filter(|event| *event == WorkerEvent::DoorbellReject("stranger"));
    assert_eq!((told.count(), notices.events().len()), (1, 5));
}

fn sec_ipc_09_a_second_call_is_a_stranger() {
    let (started, notices) = born("strangers_first");
    let engine = started.expect("strangers hinder nobody");
    assert_eq!(rejects(&engine), [("stranger", 3)]);
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    assert_eq!(notices.events().len(), 5);
}

fn sec_ipc_02_a_broken_message_ends_the_worker_and_is_told() {
    let (started, notices) = born("breaks_a_message");
    let engine = started.expect("its handshake was right");
    let lost = WorkerEvent::Crashed(Cause::Killed(KilledFor::ConnectionLost));
    common::until("its end is told", || notices.has(&lost));
    use WorkerEvent::{DoorbellReject, Ready, Started};
    assert_eq!(notices.events(), [Started, Ready, DoorbellReject("tag"), lost]);
    assert_eq!(rejects(&engine), [("tag", 1)]);
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Forced);
}
