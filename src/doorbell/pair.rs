//! For tests: both ends of a session in memory, and a forger who has the keys.

use super::channel::Side;
use super::engine_session::{EngineSession, EngineTerms, Report};
use super::reject::Reject;
use super::session::{Session, Timing};
use super::worker_session::{Order, WorkerSession, WorkerTerms};
use crate::auth::{CREDENTIALS_BYTES, Credentials, Life, Schedule, Transcript};
use crate::wire::doorbell::{COVERED_BYTES, DoorbellMessage, Kind, MessageBytes};

pub const LIFE: Life = Life { worker: 3, incarnation: 5 };
pub const SECOND: u64 = 1_000_000_000;
pub const TTL: u64 = 5 * SECOND;
const PID: u32 = 77;
const LAYOUT: u64 = 99;

pub fn credentials() -> Credentials {
    Credentials::take(&mut [9; CREDENTIALS_BYTES])
}

pub fn engine_terms() -> EngineTerms {
    let timing = Timing { ttl_ns: TTL, beat_ns: SECOND / 2 };
    EngineTerms { life: LIFE, pid: PID, layout_digest: LAYOUT, timing }
}

pub fn worker_terms() -> WorkerTerms {
    WorkerTerms { life: LIFE, pid: PID, layout_digest: LAYOUT }
}

/// Both ends, a clock, and everything that was said.
pub struct Pair {
    pub engine: EngineSession,
    pub worker: WorkerSession,
    pub now_ns: u64,
    pub said: Vec<(Side, MessageBytes)>,
    pub reports: Vec<Report>,
    pub orders: Vec<Order>,
}

impl Pair {
    /// Before HELLO.
    pub fn new() -> Self {
        Self::with(engine_terms(), worker_terms(), [1; 32])
    }

    /// Another session between the same two, with another nonce of the worker.
    pub fn with(engine: EngineTerms, worker: WorkerTerms, nonce: [u8; 32]) -> Self {
        Self {
            engine: EngineSession::new(&credentials(), engine, [2; 32]),
            worker: WorkerSession::new(credentials(), worker, nonce),
            now_ns: 100 * SECOND,
            said: Vec::new(),
            reports: Vec::new(),
            orders: Vec::new(),
        }
    }

    /// Behind the handshake.
    pub fn open() -> Self {
        let mut pair = Self::new();
        pair.pump();
        assert!(pair.engine.is_open() && pair.worker.is_open());
        pair
    }

    /// Behind READY.
    pub fn ready() -> Self {
        let mut pair = Self::open();
        pair.worker.ready(pair.now_ns);
        pair.pump();
        pair
    }

    /// Behind GO.
    pub fn going() -> Self {
        let mut pair = Self::ready();
        pair.engine.go();
        pair.pump();
        pair
    }

    pub fn later(&mut self, ns: u64) {
        self.now_ns += ns;
    }

    /// The worker's next message, on its way.
    pub fn worker_says(&mut self) -> Option<MessageBytes> {
        let message = self.worker.transmit(self.now_ns)?;
        self.said.push((Side::Worker, message));
        Some(message)
    }

    /// The engine's next message, on its way.
    pub fn engine_says(&mut self) -> Option<MessageBytes> {
        let message = self.engine.transmit(self.now_ns)?;
        self.said.push((Side::Engine, message));
        Some(message)
    }

    pub fn engine_hears(&mut self, bytes: &[u8]) -> Result<(), Reject> {
        self.engine.feed(bytes, self.now_ns, &mut |report| self.reports.push(report))
    }

    pub fn worker_hears(&mut self, bytes: &[u8]) -> Result<(), Reject> {
        self.worker.feed(bytes, self.now_ns, &mut |order| self.orders.push(order))
    }

    pub fn hears(&mut self, side: Side, bytes: &[u8]) -> Result<(), Reject> {
        match side {
            Side::Engine => self.engine_hears(bytes),
            Side::Worker => self.worker_hears(bytes),
        }
    }

    /// Carries messages both ways until nobody has anything to say.
    pub fn pump(&mut self) {
        loop {
            let up = self.worker_says();
            up.map_or(Ok(()), |message| self.engine_hears(&message)).expect("an honest worker");
            let down = self.engine_says();
            down.map_or(Ok(()), |message| self.worker_hears(&message)).expect("an honest engine");
            if up.is_none() && down.is_none() {
                return;
            }
        }
    }

    /// Everything reported and ordered since the last time.
    pub fn take_events(&mut self) -> (Vec<Report>, Vec<Order>) {
        (std::mem::take(&mut self.reports), std::mem::take(&mut self.orders))
    }

    /// The kinds said by a side.
    pub fn kinds(&self, side: Side) -> Vec<Kind> {
        let said = self.said.iter().filter(|(from, _)| *from == side);
        said.map(|(_, message)| kind_of(message)).collect()
    }

    /// What a peer with the right keys could say next: right in everything but what `change` makes wrong before
    /// it is tagged.
    pub fn forge(&self, from: Side, kind: Kind, change: impl FnOnce(&mut DoorbellMessage)) -> MessageBytes {
        let schedule = Schedule::new(&credentials(), LIFE);
        let first = |side| self.said.iter().find(|(from, _)| *from == side).map(|(_, message)| message);
        let (keys, transcript) = match (first(Side::Worker), first(Side::Engine)) {
            (Some(hello), Some(challenge)) => {
                let transcript = Transcript::of(&[hello, challenge]);
                (schedule.session(&transcript), transcript)
            }
            (Some(hello), None) => (schedule.handshake(), Transcript::of(&[hello])),
            _ => (schedule.handshake(), Transcript::empty()),
        };
        let key = match from {
            Side::Engine => keys.engine,
            Side::Worker => keys.worker,
        };
        let mut message = DoorbellMessage {
            worker: LIFE.worker,
            incarnation: LIFE.incarnation,
            counter: self.kinds(from).len() as u64,
            ts_ns: self.now_ns,
            ..DoorbellMessage::new(kind)
        };
        change(&mut message);
        let bytes = message.to_bytes();
        message.tag = key.tag(&bytes[..COVERED_BYTES], &transcript);
        message.to_bytes()
    }
}

pub fn kind_of(message: &MessageBytes) -> Kind {
    Kind::from_code(DoorbellMessage::from_bytes(message).kind).expect("an honest message")
}

/// Whom a message of this kind reaches.
pub fn receiver(kind: Kind) -> Side {
    match kind {
        Kind::Challenge | Kind::Go | Kind::Drain | Kind::Stop => Side::Worker,
        Kind::Hello | Kind::Ready | Kind::Heartbeat => Side::Engine,
        Kind::Drained | Kind::Stopped | Kind::Bye => Side::Engine,
    }
}

/// A pair in which a message of this kind is on its way, honestly said, and that message.
pub fn on_its_way(kind: Kind) -> (Pair, MessageBytes) {
    let mut pair = match kind {
        Kind::Hello | Kind::Challenge => Pair::new(),
        Kind::Ready => Pair::open(),
        Kind::Go => Pair::ready(),
        _ => Pair::going(),
    };
    let now_ns = pair.now_ns;
    match kind {
        Kind::Hello => {}
        Kind::Challenge => {
            let hello = pair.worker_says().expect("HELLO");
            pair.engine_hears(&hello).expect("accepted");
        }
        Kind::Ready => pair.worker.ready(now_ns),
        Kind::Go => pair.engine.go(),
        Kind::Heartbeat => pair.later(SECOND / 2),
        Kind::Drain => pair.engine.drain(now_ns),
        Kind::Drained => {
            pair.engine.drain(now_ns);
            pair.pump();
            pair.worker.drained();
        }
        Kind::Stop => pair.engine.stop(now_ns),
        Kind::Stopped => {
            pair.engine.stop(now_ns);
            pair.pump();
            pair.worker.stopped();
        }
        Kind::Bye => pair.worker.bye(),
    }
    pair.take_events();
    let message = match receiver(kind) {
        Side::Engine => pair.worker_says(),
        Side::Worker => pair.engine_says(),
    };
    let message = message.expect("it is due");
    assert_eq!(kind_of(&message), kind);
    (pair, message)
}
