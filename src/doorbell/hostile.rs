//! Tests of everything that is not honest.

use super::channel::{Channel, Side};
use super::pair::{LIFE, Pair, SECOND, TTL, credentials, engine_terms, on_its_way, receiver, worker_terms};
use super::reject::Reject;
use super::session::Session;
use crate::auth::{Life, Schedule};
use crate::wire::doorbell::{
    BODY_BYTES, Challenge, DoorbellMessage, Hello, Kind, MESSAGE_BYTES, MessageBytes,
};

impl Pair {
    /// Feeds it and expects this reject, no event, and the end.
    fn refuses(&mut self, side: Side, bytes: &[u8], reason: Reject) {
        self.take_events();
        assert_eq!(self.hears(side, bytes), Err(reason));
        assert_eq!(self.take_events(), (vec![], vec![]));
        let (rejects, is_open) = match side {
            Side::Engine => (*self.engine.rejects(), self.engine.is_open()),
            Side::Worker => (*self.worker.rejects(), self.worker.is_open()),
        };
        assert_eq!((rejects.of(reason), rejects.total(), is_open), (1, 1, false));
        let said = match side {
            Side::Engine => self.engine.transmit(self.now_ns),
            Side::Worker => self.worker.transmit(self.now_ns),
        };
        assert!(said.is_none(), "a session that has ended says nothing");
    }
}

fn other(side: Side) -> Side {
    if side == Side::Engine { Side::Worker } else { Side::Engine }
}

/// The guard that a flip of this byte meets first.
fn first_guard(byte: usize) -> Reject {
    match byte {
        8 | 9 => Reject::Length,
        0..=3 => Reject::Magic,
        4 | 5 => Reject::Schema,
        _ => Reject::Tag,
    }
}

#[test]
fn sec_ipc_02_every_single_bit_flip_of_every_kind_is_refused() {
    let mut flips = 0;
    for kind in Kind::ALL {
        for bit in 0..MESSAGE_BYTES * 8 {
            let (mut pair, mut message) = on_its_way(kind);
            message[bit / 8] ^= 1 << (bit % 8);
            pair.refuses(receiver(kind), &message, first_guard(bit / 8));
            flips += 1;
        }
    }
    assert_eq!(flips, 10 * 1024);
}

#[test]
fn sec_ipc_02_nothing_changes_before_the_tag_holds() {
    let keys = || Schedule::new(&credentials(), LIFE).handshake();
    let mut sender = Channel::new(Side::Worker, LIFE, keys(), TTL);
    let mut reader = Channel::new(Side::Engine, LIFE, keys(), TTL);
    let message = sender.seal(Kind::Heartbeat, [0; BODY_BYTES], SECOND);
    let mut garbage = Garbage(1);
    for frame in 0..100_000 {
        let mut bytes = garbage.frame();
        // Some are wrong in the tag alone.
        if frame % 2 == 0 {
            bytes[..96].copy_from_slice(&message[..96]);
        }
        assert!(reader.open(&bytes, SECOND, |_| true).is_err());
    }
    for bit in 0..MESSAGE_BYTES * 8 {
        let mut flipped = message;
        flipped[bit / 8] ^= 1 << (bit % 8);
        let reason = reader.open(&flipped, SECOND, |_| true).err();
        assert_eq!(reason, Some(first_guard(bit / 8)));
    }
    assert!(reader.open(&message, SECOND, |_| true).is_ok(), "as if nothing had been");
}

/// Not random, but without a pattern that a guard could be tuned to (xorshift).
struct Garbage(u64);

impl Garbage {
    fn frame(&mut self) -> MessageBytes {
        let mut frame = [0; MESSAGE_BYTES];
        for word in frame.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
        frame
    }
}

#[test]
fn sec_ipc_02_a_signature_that_is_absent_or_somebody_elses_is_refused() {
    for kind in Kind::ALL {
        let (mut pair, mut message) = on_its_way(kind);
        message[96..].fill(0);
        pair.refuses(receiver(kind), &message, Reject::Tag);
        // A message without its tag's bytes is not one.
        let (mut pair, message) = on_its_way(kind);
        assert_eq!(pair.hears(receiver(kind), &message[..96]), Ok(()));
        let end = match receiver(kind) {
            Side::Engine => pair.engine.end(),
            Side::Worker => pair.worker.end(),
        };
        assert_eq!(end, Err(Reject::Length));
    }
}

#[test]
fn sec_ipc_02_a_truncated_message_is_none() {
    for len in 1..MESSAGE_BYTES {
        let (mut pair, message) = on_its_way(Kind::Ready);
        assert_eq!(pair.engine_hears(&message[..len]), Ok(()));
        assert_eq!(pair.engine.end(), Err(Reject::Length));
        assert_eq!(pair.engine.rejects().of(Reject::Length), 1);
        assert_eq!(pair.take_events(), (vec![], vec![]));
        // The rest of another one does not make it whole.
        let (mut pair, message) = on_its_way(Kind::Ready);
        let spliced = [&message[..len], &[0; MESSAGE_BYTES][len..]].concat();
        assert!(pair.engine_hears(&spliced).is_err() || spliced == message);
    }
}

#[test]
fn sec_ipc_04_a_replay_is_refused_at_once_and_long_after() {
    for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Hello | Kind::Challenge)) {
        let (mut pair, message) = on_its_way(kind);
        assert_eq!(pair.hears(receiver(kind), &message), Ok(()));
        if kind != Kind::Bye {
            pair.refuses(receiver(kind), &message, Reject::Counter);
        }
    }
    // Beyond any cache.
    let (mut pair, first) = on_its_way(Kind::Heartbeat);
    pair.engine_hears(&first).expect("accepted");
    for _ in 0..100_000 {
        pair.later(1000);
        let message = pair.worker.transmit(pair.now_ns);
        message.map_or(Ok(()), |message| pair.engine_hears(&message)).expect("accepted");
    }
    pair.refuses(Side::Engine, &first, Reject::Counter);
}

#[test]
fn sec_ipc_04_a_message_of_one_session_is_worthless_in_every_other() {
    let lives = [LIFE, Life { worker: 4, ..LIFE }, Life { incarnation: 6, ..LIFE }];
    for kind in Kind::ALL {
        let (_, recorded) = on_its_way(kind);
        for life in lives {
            let engine = super::EngineTerms { life, ..engine_terms() };
            let worker = super::WorkerTerms { life, ..worker_terms() };
            // Another nonce, as every session has.
            let mut pair = Pair::with(engine, worker, [7; 32]);
            if kind == Kind::Hello && life == LIFE {
                // The same secret twice is what the engine never does; the conversation fails one step later.
                pair.engine_hears(&recorded).expect("HELLO is the same in each");
                let challenge = pair.engine.transmit(pair.now_ns).expect("CHALLENGE");
                pair.worker_says().expect("its own HELLO");
                pair.refuses(Side::Worker, &challenge, Reject::Tag);
                continue;
            }
            if kind == Kind::Challenge {
                pair.worker_says().expect("HELLO");
            } else if kind != Kind::Hello {
                pair.pump();
            }
            pair.refuses(receiver(kind), &recorded, Reject::Tag);
        }
    }
}

#[test]
fn sec_ipc_04_a_reflected_message_is_refused() {
    for kind in Kind::ALL {
        let (mut pair, message) = on_its_way(kind);
        // BYE leaves nobody who could be fooled.
        if kind != Kind::Bye {
            pair.refuses(other(receiver(kind)), &message, Reject::Tag);
        }
    }
}

#[test]
fn sec_ipc_05_a_declared_size_is_refused_before_anything_else() {
    for kind in Kind::ALL {
        for length in [0, 1, 127, 129, 256, u16::MAX] {
            // With a valid tag, or without any of the rest being right.
            let (pair, _) = on_its_way(kind);
            let mut said = pair.said.clone();
            said.pop();
            let mut pair = Pair { said, ..pair };
            let forged = pair.forge(other(receiver(kind)), kind, |message| message.length = length);
            pair.refuses(receiver(kind), &forged, Reject::Length);
            let (mut pair, _) = on_its_way(kind);
            let mut garbage = Garbage(9).frame();
            garbage[8..10].copy_from_slice(&length.to_le_bytes());
            pair.refuses(receiver(kind), &garbage, Reject::Length);
        }
    }
}

#[test]
fn sec_ipc_06_an_unknown_kind_or_schema_is_refused_though_it_is_signed() {
    for code in (0..=u8::MAX).filter(|code| Kind::from_code(*code).is_none()) {
        for side in [Side::Engine, Side::Worker] {
            let mut pair = Pair::going();
            let forged = pair.forge(other(side), Kind::Stop, |message| message.kind = code);
            pair.refuses(side, &forged, Reject::Kind);
        }
    }
    for schema in [0, 2, 255, 256, u16::MAX] {
        let mut pair = Pair::going();
        let forged = pair.forge(Side::Worker, Kind::Heartbeat, |message| message.schema = schema);
        pair.refuses(Side::Engine, &forged, Reject::Schema);
    }
}

#[test]
fn sec_ipc_02_whoever_has_the_keys_still_meets_every_guard() {
    type Change = fn(&mut DoorbellMessage);
    let changes: [(Change, Reject); 12] = [
        (|m| m.magic ^= 1, Reject::Magic),
        (|m| m.incarnation += 1, Reject::Incarnation),
        (|m| m.incarnation = 0, Reject::Incarnation),
        (|m| m.worker ^= 1, Reject::Worker),
        (|m| m.counter += 1, Reject::Counter),
        (|m| m.counter -= 1, Reject::Counter),
        (|m| m.counter = u64::MAX, Reject::Counter),
        (|m| m.flags = 1, Reject::Reserved),
        (|m| m.reserved = 0x8000, Reject::Reserved),
        (|m| m.body[0] = 1, Reject::Reserved),
        (|m| m.body[55] = 0x80, Reject::Reserved),
        // Of two faults the first in the order of the guards is named.
        (|m| (m.counter, m.kind, m.flags) = (0, 200, 1), Reject::Counter),
    ];
    for (change, reason) in changes {
        for (side, kind) in [(Side::Engine, Kind::Heartbeat), (Side::Worker, Kind::Stop)] {
            let mut pair = Pair::going();
            let forged = pair.forge(other(side), kind, change);
            pair.refuses(side, &forged, reason);
        }
    }
}

#[test]
fn a_kind_out_of_its_state_or_direction_is_refused() {
    use Kind::{Bye, Challenge, Drain, Drained, Go, Heartbeat, Hello, Ready, Stop, Stopped};
    fn then(mut pair: Pair, act: impl FnOnce(&mut Pair)) -> Pair {
        act(&mut pair);
        pair.pump();
        pair
    }
    let draining = || then(Pair::going(), |pair| pair.engine.drain(pair.now_ns));
    let drained = || then(draining(), |pair| pair.worker.drained());
    let stopping = |pair| then(pair, |pair: &mut Pair| pair.engine.stop(pair.now_ns));
    let stopped = |pair| then(stopping(pair), |pair: &mut Pair| pair.worker.stopped());
    let left = || then(Pair::going(), |pair| pair.worker.bye());
    let called = || {
        let mut pair = Pair::new();
        pair.worker_says().expect("HELLO");
        pair
    };
    let building: &[Kind] = &[Ready, Heartbeat, Bye];
    type State<'a> = (&'a dyn Fn() -> Pair, &'a [Kind]);
    let engine: [State; 11] = [
        (&Pair::new, &[]), // HELLO has a body; it has tests of its own
        (&Pair::open, building),
        (&Pair::ready, building),
        (&Pair::going, building),
        (&draining, &[Ready, Heartbeat, Drained, Bye]),
        (&drained, &[Heartbeat, Drained, Bye]),
        (&|| stopping(Pair::open()), &[Ready, Heartbeat, Stopped, Bye]),
        (&|| stopping(draining()), &[Ready, Heartbeat, Drained, Stopped, Bye]),
        (&|| stopped(Pair::going()), &[Heartbeat, Stopped, Bye]),
        (&|| stopped(drained()), &[Heartbeat, Stopped, Bye]),
        (&left, &[]),
    ];
    let worker: [State; 7] = [
        (&called, &[]), // CHALLENGE likewise
        (&Pair::open, &[Stop]),
        (&Pair::ready, &[Go, Drain, Stop]),
        (&Pair::going, &[Go, Drain, Stop]),
        (&drained, &[Go, Drain, Stop]),
        (&|| stopped(Pair::open()), &[Stop]),
        (&|| stopped(drained()), &[Go, Drain, Stop]),
    ];
    let check = |side, states: &[State]| {
        for (number, (state, legal)) in states.iter().enumerate() {
            for kind in Kind::ALL {
                // In a handshake a HELLO or CHALLENGE passes this guard and meets those of its body.
                let begins =
                    number == 0 && matches!((side, kind), (Side::Engine, Hello) | (Side::Worker, Challenge));
                let mut pair = state();
                let forged = pair.forge(other(side), kind, |_| ());
                let heard = pair.hears(side, &forged);
                let expected = if legal.contains(&kind) { Ok(()) } else { Err(Reject::State) };
                assert!(heard == expected || begins, "{side:?}, state {number}, {kind:?}: {heard:?}");
            }
        }
    };
    check(Side::Engine, &engine);
    check(Side::Worker, &worker);
    // A worker that has left listens to nobody.
    let mut pair = left();
    let forged = pair.forge(Side::Engine, Stop, |_| ());
    assert_eq!(pair.worker_hears(&forged), Ok(()));
    assert_eq!(pair.orders, [super::Order::Go]);
}

#[test]
fn a_hello_that_says_something_else_is_refused() {
    let (pair, honest) = on_its_way(Kind::Hello);
    let honest = Hello::from_body(DoorbellMessage::from_bytes(&honest).body);
    drop(pair);
    for (hello, reason) in [
        (Hello { pid: honest.pid + 1, ..honest }, Reject::Body),
        (Hello { pid: 0, ..honest }, Reject::Body),
        (Hello { lowest: 2, highest: 1, ..honest }, Reject::Body),
        (Hello { lowest: 2, highest: 9, ..honest }, Reject::Version),
        (Hello { lowest: 0, highest: 0, ..honest }, Reject::Version),
        (Hello { layout_digest: 0, ..honest }, Reject::Layout),
        (Hello { zero: [0, 0, 0, 0, 0, 0, 0, 1], ..honest }, Reject::Reserved),
    ] {
        let mut pair = Pair::new();
        let forged = pair.forge(Side::Worker, Kind::Hello, |message| message.body = hello.to_body());
        pair.refuses(Side::Engine, &forged, reason);
    }
    // A later worker may speak more versions, if ours is among them.
    let mut pair = Pair::new();
    let wide = Hello { lowest: 0, highest: 9, ..honest };
    let forged = pair.forge(Side::Worker, Kind::Hello, |message| message.body = wide.to_body());
    assert_eq!(pair.engine_hears(&forged), Ok(()));
    let challenge = pair.engine_says().expect("CHALLENGE");
    assert_eq!(Challenge::from_body(DoorbellMessage::from_bytes(&challenge).body).version, 1);
}

#[test]
fn a_challenge_that_states_impossible_limits_is_refused() {
    let honest = Challenge { nonce: [2; 32], ttl_ns: TTL, beat_ns: SECOND, version: 1, zero: [0; 6] };
    for (challenge, reason) in [
        (Challenge { ttl_ns: 0, ..honest }, Reject::Body),
        (Challenge { ttl_ns: u64::MAX, ..honest }, Reject::Body),
        (Challenge { beat_ns: 999_999, ..honest }, Reject::Body),
        (Challenge { beat_ns: 3_600_000_000_001, ..honest }, Reject::Body),
        (Challenge { version: 0, ..honest }, Reject::Version),
        (Challenge { version: 2, ..honest }, Reject::Version),
        (Challenge { zero: [1, 0, 0, 0, 0, 0], ..honest }, Reject::Reserved),
    ] {
        let mut pair = Pair::new();
        pair.worker_says().expect("HELLO");
        let body = challenge.to_body();
        let forged = pair.forge(Side::Engine, Kind::Challenge, |message| message.body = body);
        pair.refuses(Side::Worker, &forged, reason);
    }
    let mut pair = Pair::new();
    pair.worker_says().expect("HELLO");
    let forged = pair.forge(Side::Engine, Kind::Challenge, |message| message.body = honest.to_body());
    assert_eq!(pair.worker_hears(&forged), Ok(()));
    assert!(pair.worker.is_open());
}

#[test]
fn what_stands_behind_a_reject_is_never_read() {
    let (mut pair, ready) = on_its_way(Kind::Ready);
    let stream = [Garbage(3).frame(), ready].concat();
    assert!(pair.engine_hears(&stream).is_err());
    assert!(pair.engine_hears(&ready).is_err());
    assert_eq!(pair.take_events(), (vec![], vec![]));
    assert_eq!(pair.engine.rejects().total(), 1);
    assert!(!pair.engine.is_ready());
}
