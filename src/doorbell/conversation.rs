//! Tests of honest conversations, delays and pauses among them.

use super::channel::Side;
use super::engine_session::Report;
use super::pair::{LIFE, Pair, SECOND, TTL, kind_of, on_its_way, receiver};
use super::reject::Reject;
use super::session::Session;
use super::worker_session::Order;
use crate::wire::doorbell::{DoorbellMessage, Kind, MessageBytes};

#[test]
fn sec_ipc_01_a_life_from_hello_to_bye() {
    let mut pair = Pair::open();
    assert_eq!(pair.kinds(Side::Worker), [Kind::Hello, Kind::Heartbeat]);
    assert_eq!(pair.kinds(Side::Engine), [Kind::Challenge]);
    assert_eq!(pair.take_events(), (vec![Report::Heartbeat], vec![]));

    pair.worker.ready(pair.now_ns);
    pair.pump();
    assert_eq!(pair.take_events(), (vec![Report::Ready], vec![]));
    assert!(pair.engine.is_ready());
    pair.engine.go();
    pair.pump();
    assert_eq!(pair.take_events(), (vec![], vec![Order::Go]));

    pair.later(SECOND / 2);
    pair.pump();
    assert_eq!(pair.take_events(), (vec![Report::Heartbeat], vec![]));
    assert_eq!(pair.engine.heard_ns(), Some(pair.now_ns));

    pair.engine.drain(pair.now_ns);
    pair.pump();
    assert_eq!(pair.take_events(), (vec![], vec![Order::Drain]));
    pair.worker.drained();
    pair.pump();
    assert_eq!(pair.take_events(), (vec![Report::Drained], vec![]));

    pair.engine.stop(pair.now_ns);
    pair.pump();
    assert_eq!(pair.take_events(), (vec![], vec![Order::Stop]));
    pair.worker.stopped();
    pair.worker.bye();
    pair.pump();
    assert_eq!(pair.take_events(), (vec![Report::Stopped, Report::Bye], vec![]));
    assert!(!pair.engine.is_open() && pair.worker.has_left());
    assert_eq!((pair.engine.next_ns(), pair.worker.next_ns()), (None, None));
    assert_eq!((pair.engine.end(), pair.worker.end()), (Ok(()), Ok(())));
    assert_eq!((pair.engine.rejects().total(), pair.worker.rejects().total()), (0, 0));
}

#[test]
fn sec_ipc_01_every_field_of_every_kind_is_as_it_was_said() {
    for kind in Kind::ALL {
        let (mut pair, bytes) = on_its_way(kind);
        let message = DoorbellMessage::from_bytes(&bytes);
        assert_eq!((message.worker, message.incarnation), (LIFE.worker, LIFE.incarnation));
        assert_eq!((message.flags, message.reserved, message.length), (0, 0, 128));
        assert_eq!(message.ts_ns, pair.now_ns);
        let from = if receiver(kind) == Side::Engine { Side::Worker } else { Side::Engine };
        assert_eq!(message.counter + 1, pair.kinds(from).len() as u64, "{kind:?}");
        // A byte at a time is as good as the whole.
        for byte in bytes {
            assert_eq!(pair.hears(receiver(kind), &[byte]), Ok(()), "{kind:?}");
        }
        let events = pair.take_events();
        let expected = match kind {
            Kind::Hello | Kind::Challenge => (vec![], vec![]),
            Kind::Ready => (vec![Report::Ready], vec![]),
            Kind::Heartbeat => (vec![Report::Heartbeat], vec![]),
            Kind::Drained => (vec![Report::Drained], vec![]),
            Kind::Stopped => (vec![Report::Stopped], vec![]),
            Kind::Bye => (vec![Report::Bye], vec![]),
            Kind::Go => (vec![], vec![Order::Go]),
            Kind::Drain => (vec![], vec![Order::Drain]),
            Kind::Stop => (vec![], vec![Order::Stop]),
        };
        assert_eq!(events, expected, "{kind:?}");
    }
}

#[test]
fn a_worker_that_builds_for_long_beats_all_the_while() {
    let mut pair = Pair::open();
    pair.take_events();
    for _ in 0..120 {
        assert_eq!(pair.worker.next_ns(), Some(pair.now_ns + SECOND / 2));
        pair.later(SECOND / 2);
        pair.pump();
    }
    assert_eq!(pair.take_events(), (vec![Report::Heartbeat; 120], vec![]));
    pair.worker.ready(pair.now_ns);
    pair.pump();
    assert_eq!(pair.take_events(), (vec![Report::Ready], vec![]));
}

#[test]
fn what_needs_an_answer_is_said_each_second_and_told_once() {
    // READY until GO.
    let mut pair = Pair::ready();
    for _ in 0..3 {
        pair.later(SECOND);
        pair.pump();
    }
    assert_eq!(pair.kinds(Side::Worker).iter().filter(|kind| **kind == Kind::Ready).count(), 4);
    assert_eq!(pair.take_events().0.iter().filter(|report| **report == Report::Ready).count(), 1);
    pair.engine.go();
    pair.engine.go();
    pair.pump();
    // DRAIN and STOP until they are answered.
    pair.engine.drain(pair.now_ns);
    pair.engine.drain(pair.now_ns);
    for _ in 0..3 {
        pair.pump();
        pair.later(SECOND);
    }
    pair.worker.drained();
    pair.pump();
    pair.engine.stop(pair.now_ns);
    for _ in 0..3 {
        pair.pump();
        pair.later(SECOND);
    }
    pair.worker.stopped();
    for _ in 0..3 {
        pair.pump();
        pair.later(SECOND);
    }
    let said = pair.kinds(Side::Engine);
    let times = |kind| said.iter().filter(|said| **said == kind).count();
    assert_eq!((times(Kind::Go), times(Kind::Drain), times(Kind::Stop)), (1, 3, 3));
    let (reports, orders) = pair.take_events();
    assert_eq!(orders, [Order::Go, Order::Drain, Order::Stop]);
    let reports: Vec<_> = reports.into_iter().filter(|report| *report != Report::Heartbeat).collect();
    assert_eq!(reports, [Report::Drained, Report::Stopped]);
    assert_eq!(pair.engine.rejects().total() + pair.worker.rejects().total(), 0);
}

#[test]
fn sec_ipc_03_the_lifetime_itself_is_in_time_and_a_nanosecond_more_is_not() {
    for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Hello | Kind::Challenge)) {
        for (offset_ns, is_in_time) in [
            (TTL as i64, true),
            (-(TTL as i64), true),
            (TTL as i64 + 1, false),
            (-(TTL as i64) - 1, false),
            (i64::MIN / 2, false),
            (i64::MAX / 2, false),
        ] {
            let (mut pair, message) = on_its_way(kind);
            let side = receiver(kind);
            let said_ns = DoorbellMessage::from_bytes(&message).ts_ns;
            let now_ns = said_ns.saturating_add_signed(offset_ns);
            pair.now_ns = now_ns;
            assert_eq!(pair.hears(side, &message), Ok(()), "the session goes on");
            let (reports, orders) = pair.take_events();
            assert_eq!(reports.len() + orders.len(), usize::from(is_in_time), "{kind:?} {offset_ns}");
            let rejects = match side {
                Side::Engine => *pair.engine.rejects(),
                Side::Worker => *pair.worker.rejects(),
            };
            let dropped = u64::from(!is_in_time);
            assert_eq!((rejects.of(Reject::Time), rejects.total()), (dropped, dropped));
            // Its number is gone all the same: the next one counts on.
            if kind != Kind::Bye || !is_in_time {
                let from = if side == Side::Engine { Side::Worker } else { Side::Engine };
                let next = if side == Side::Engine { Kind::Heartbeat } else { Kind::Stop };
                let next = pair.forge(from, next, |_| ());
                assert_eq!(pair.hears(side, &next), Ok(()), "{kind:?} {offset_ns}");
            }
        }
    }
}

#[test]
fn sec_ipc_03_a_handshake_out_of_its_time_ends() {
    for kind in [Kind::Hello, Kind::Challenge] {
        let (mut pair, message) = on_its_way(kind);
        pair.later(TTL);
        assert_eq!(pair.hears(receiver(kind), &message), Ok(()));
        let (mut pair, message) = on_its_way(kind);
        pair.later(TTL + 1);
        assert_eq!(pair.hears(receiver(kind), &message), Err(Reject::Time));
        assert!(!pair.engine.is_open() || kind == Kind::Challenge);
        assert!(!pair.worker.is_open());
    }
}

#[test]
fn stop_ipc_05_a_hello_is_heard_by_an_engine_that_was_away() {
    for (late_ns, heard) in [(TTL + 3 * SECOND, Ok(())), (TTL + 3 * SECOND + 1, Err(Reject::Time))] {
        let (mut pair, hello) = on_its_way(Kind::Hello);
        pair.later(late_ns);
        pair.engine.forgive(2 * SECOND);
        // How long it was away in all.
        pair.engine.forgive(3 * SECOND);
        assert_eq!(pair.hears(Side::Engine, &hello), heard);
        assert_eq!(pair.engine.is_open(), heard.is_ok());
    }
    // Nothing else lives longer for that.
    let mut pair = Pair::open();
    pair.engine.forgive(3 * SECOND);
    let beat = pair.forge(Side::Worker, Kind::Heartbeat, |_| ());
    pair.later(TTL + 1);
    assert_eq!(pair.hears(Side::Engine, &beat), Ok(()));
    assert_eq!(pair.engine.rejects().of(Reject::Time), 1);
}

/// Runs both sides for so many seconds, of which the worker or the engine sleeps the first ones: what is said
/// to a sleeper waits, and a sleeper says nothing.
fn run(pair: &mut Pair, seconds: u64, worker_sleeps: u64, engine_sleeps: u64) {
    let begin_ns = pair.now_ns;
    let (mut up, mut down) = (Vec::<MessageBytes>::new(), Vec::<MessageBytes>::new());
    for _ in 0..seconds * 10 {
        let at = (pair.now_ns - begin_ns) / SECOND;
        if at >= worker_sleeps {
            for message in std::mem::take(&mut down) {
                pair.worker_hears(&message).expect("an honest engine");
            }
            // A worker that does its work at once.
            if pair.orders.contains(&Order::Drain) {
                pair.worker.drained();
            }
            if pair.orders.contains(&Order::Stop) {
                pair.worker.stopped();
            }
            while let Some(message) = pair.worker_says() {
                up.push(message);
            }
        }
        if at >= engine_sleeps {
            for message in std::mem::take(&mut up) {
                pair.engine_hears(&message).expect("an honest worker");
            }
            while let Some(message) = pair.engine_says() {
                down.push(message);
            }
        }
        pair.later(SECOND / 10);
    }
}

#[test]
fn sec_ipc_03_a_worker_that_was_paused_for_long_still_obeys() {
    // Everything that the engine wants falls into the pause.
    for pause in [0, 1, 4, 5, 6, 8, 30] {
        let mut pair = Pair::ready();
        pair.engine.go();
        pair.engine.drain(pair.now_ns);
        run(&mut pair, pause + 4, pause, 0);
        assert_eq!(pair.orders, [Order::Go, Order::Drain], "pause of {pause} s");
        pair.engine.stop(pair.now_ns);
        run(&mut pair, pause + 4, pause, 0);
        let (reports, orders) = pair.take_events();
        assert_eq!(orders, [Order::Go, Order::Drain, Order::Stop], "pause of {pause} s");
        let reports: Vec<_> = reports.into_iter().filter(|report| *report != Report::Heartbeat).collect();
        assert_eq!(reports, [Report::Ready, Report::Drained, Report::Stopped]);
        let dropped = pair.worker.rejects();
        assert_eq!(dropped.of(Reject::Time), dropped.total());
        assert_eq!(dropped.total() > 0, pause > 5, "pause of {pause} s: {dropped:?}");
    }
}

#[test]
fn sec_ipc_03_an_engine_that_was_paused_for_long_blames_nobody() {
    for pause in [1, 6, 30] {
        let mut pair = Pair::open();
        pair.worker.ready(pair.now_ns);
        run(&mut pair, pause + 2, 0, pause);
        assert!(pair.engine.is_ready());
        pair.engine.go();
        run(&mut pair, pause + 4, 0, pause);
        pair.engine.stop(pair.now_ns);
        run(&mut pair, pause + 4, 0, pause);
        let (reports, orders) = pair.take_events();
        assert_eq!(orders, [Order::Go, Order::Stop]);
        assert!(reports.contains(&Report::Stopped), "pause of {pause} s: {reports:?}");
        let dropped = pair.engine.rejects();
        assert_eq!(dropped.of(Reject::Time), dropped.total());
        assert_eq!(dropped.total() > 0, pause > 5, "pause of {pause} s: {dropped:?}");
    }
}

#[test]
fn sec_ipc_03_an_answer_that_came_too_late_is_given_again() {
    // Each message of these crosses a pause of its reader, and is old when it is read.
    let lost = |pair: &mut Pair, side, kind| {
        let said = match side {
            Side::Engine => pair.engine_says(),
            Side::Worker => pair.worker_says(),
        };
        let said = said.expect("it is due");
        assert_eq!(kind_of(&said), kind);
        pair.later(TTL + 1);
        assert_eq!(pair.hears(receiver(kind), &said), Ok(()));
        assert_eq!(pair.take_events(), (vec![], vec![]), "dropped");
    };
    let mut pair = Pair::ready();
    pair.take_events();
    pair.engine.go();
    lost(&mut pair, Side::Engine, Kind::Go);
    pair.pump();
    assert_eq!(pair.take_events().1, [Order::Go]);

    pair.engine.drain(pair.now_ns);
    pair.pump();
    pair.take_events();
    pair.worker.drained();
    lost(&mut pair, Side::Worker, Kind::Drained);
    pair.pump();
    assert!(pair.take_events().0.contains(&Report::Drained));

    pair.engine.stop(pair.now_ns);
    pair.pump();
    pair.take_events();
    pair.worker.stopped();
    lost(&mut pair, Side::Worker, Kind::Stopped);
    pair.pump();
    assert!(pair.take_events().0.contains(&Report::Stopped));
}

#[test]
fn a_drain_lets_a_worker_go_that_missed_its_go() {
    let mut pair = Pair::ready();
    pair.engine.go();
    let go = pair.engine_says().expect("GO");
    pair.later(TTL + 1);
    assert_eq!(pair.worker_hears(&go), Ok(()));
    assert_eq!(pair.orders, []);
    pair.engine.drain(pair.now_ns);
    let drain = pair.engine_says().expect("DRAIN");
    assert_eq!(kind_of(&drain), Kind::Drain);
    assert_eq!(pair.worker_hears(&drain), Ok(()));
    assert_eq!(pair.orders, [Order::Go, Order::Drain]);
}

#[test]
fn a_stop_overtakes_what_has_no_use_any_more() {
    // During the build: READY, when it comes, gets no GO, and nobody waits for one.
    let mut pair = Pair::open();
    pair.engine.stop(pair.now_ns);
    pair.pump();
    assert_eq!(pair.orders, [Order::Stop]);
    pair.worker.ready(pair.now_ns);
    pair.worker.stopped();
    pair.pump();
    assert_eq!(pair.kinds(Side::Worker).last(), Some(&Kind::Stopped));
    // READY and STOP cross.
    let mut pair = Pair::open();
    pair.worker.ready(pair.now_ns);
    let ready = pair.worker_says().expect("READY");
    pair.engine.stop(pair.now_ns);
    pair.engine_hears(&ready).expect("legal");
    pair.engine.go();
    pair.pump();
    assert_eq!(pair.take_events().1, [Order::Stop]);
    assert!(!pair.kinds(Side::Engine).contains(&Kind::Go));
    // A drain that has not ended is not asked for again, and is not answered behind STOPPED.
    let mut pair = Pair::going();
    pair.engine.drain(pair.now_ns);
    pair.pump();
    pair.engine.stop(pair.now_ns);
    pair.later(3 * SECOND);
    pair.pump();
    pair.worker.stopped();
    pair.worker.drained();
    pair.pump();
    pair.worker.drained();
    pair.later(3 * SECOND);
    pair.pump();
    assert_eq!(pair.kinds(Side::Engine).iter().filter(|kind| **kind == Kind::Drain).count(), 1);
    assert!(!pair.kinds(Side::Worker).contains(&Kind::Drained));
}

#[test]
fn a_peer_that_does_not_read_costs_one_message_at_a_time() {
    // Hours pass and nothing is sent: what is due is due once.
    let mut pair = Pair::going();
    pair.engine.drain(pair.now_ns);
    pair.engine.stop(pair.now_ns);
    pair.later(3600 * SECOND);
    assert!(pair.worker_says().is_some() && pair.worker_says().is_none());
    assert!(pair.engine_says().is_some() && pair.engine_says().is_none());
}

#[test]
#[ignore = "prints the cost; run it in release"]
fn the_cost_of_a_message() {
    const MESSAGES: u32 = 100_000;
    let mut pair = Pair::going();
    let (mut said, mut heard) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    for _ in 0..MESSAGES {
        pair.later(SECOND / 2);
        let begin = std::time::Instant::now();
        let message = pair.worker.transmit(pair.now_ns).expect("a heartbeat is due");
        said += begin.elapsed();
        let begin = std::time::Instant::now();
        assert_eq!(pair.engine_hears(&message), Ok(()));
        heard += begin.elapsed();
        pair.reports.clear();
    }
    println!("a message: said in {:?}, heard in {:?}", said / MESSAGES, heard / MESSAGES);
}
