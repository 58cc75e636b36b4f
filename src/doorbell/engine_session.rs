//! The engine's end of a session.
//!
//! ```text
//! Handshake ── HELLO, answered by CHALLENGE ──▶ Open ── BYE, or any reject but Time ──▶ Over
//!     └──────────────────────── any reject ──────────────────────────────────────────────▲
//! ```

use super::channel::{Channel, Opened, Side};
use super::errand::Errand;
use super::intake::Intake;
use super::reject::{Reject, Rejects};
use super::session::{Session, Timing};
use crate::auth::{Credentials, Life, Schedule, Transcript};
use crate::base::limits::DOORBELL_TTL_NS;
use crate::wire::doorbell::{BODY_BYTES, Challenge, Hello, Kind, MessageBytes, NONCE_BYTES, VERSIONS};

/// What a worker says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Report {
    /// Its nodes are built. Told once.
    Ready,
    /// It lives.
    Heartbeat,
    /// Nothing is in flight. Told once.
    Drained,
    /// Serving has ended. Told once.
    Stopped,
    /// Nothing will follow.
    Bye,
}

/// What the engine expects of a worker, and states to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineTerms {
    /// The worker's life.
    pub life: Life,
    /// The worker's process.
    pub pid: u32,
    /// The engine's layouts.
    pub layout_digest: u64,
    /// The limits of the session.
    pub timing: Timing,
}

/// Where the session stands. Over, it has no keys.
enum Phase {
    Handshake(Box<Greeting>),
    Open(Box<Channel>),
    Over,
}

struct Greeting {
    channel: Channel,
    schedule: Schedule,
    nonce: [u8; NONCE_BYTES],
}

/// The engine's end of a session.
pub struct EngineSession {
    phase: Phase,
    terms: EngineTerms,
    intake: Intake,
    /// Made when HELLO was opened, to be sent first.
    challenge: Option<MessageBytes>,
    heard_ns: Option<u64>,
    is_ready: bool,
    /// GO has been given; it is said for each READY.
    may_go: bool,
    owes_go: bool,
    drain: Errand,
    stop: Errand,
    has_drained: bool,
    has_stopped: bool,
}

impl EngineSession {
    /// A session that waits for HELLO. `nonce` is random and used once.
    pub fn new(credentials: &Credentials, terms: EngineTerms, nonce: [u8; NONCE_BYTES]) -> Self {
        assert!(terms.timing.is_sound(), "limits that no worker accepts");
        let schedule = Schedule::new(credentials, terms.life);
        let channel = Channel::new(Side::Engine, terms.life, schedule.handshake(), DOORBELL_TTL_NS);
        Self {
            phase: Phase::Handshake(Box::new(Greeting { channel, schedule, nonce })),
            terms,
            intake: Intake::new(),
            challenge: None,
            heard_ns: None,
            is_ready: false,
            may_go: false,
            owes_go: false,
            drain: Errand::default(),
            stop: Errand::default(),
            has_drained: false,
            has_stopped: false,
        }
    }

    /// This side was away for so long in all: HELLO, which is said once, may be as much older than others.
    pub fn forgive(&mut self, missed_ns: u64) {
        if let Phase::Handshake(greeting) = &mut self.phase {
            greeting.channel.live(DOORBELL_TTL_NS.saturating_add(missed_ns));
        }
    }

    /// Lets work come. Call it once the worker has said READY.
    pub fn go(&mut self) {
        assert!(self.is_ready, "GO answers READY");
        self.owes_go |= !self.may_go;
        self.may_go = true;
    }

    /// Asks the worker to end what is in flight, until it says DRAINED. Only a worker that may go can drain.
    pub fn drain(&mut self, now_ns: u64) {
        assert!(self.may_go, "DRAIN follows GO");
        self.drain.ask(now_ns);
    }

    /// Asks the worker to end serving, until it says STOPPED.
    pub fn stop(&mut self, now_ns: u64) {
        self.stop.ask(now_ns);
    }

    /// Whether the worker has said READY.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// When the worker was last heard: the latest message that was accepted.
    pub fn heard_ns(&self) -> Option<u64> {
        self.heard_ns
    }

    /// Messages that have come; 0 when it is over.
    #[cfg(feature = "testing")]
    pub fn messages_heard(&self) -> u64 {
        if let Phase::Open(channel) = &self.phase { channel.received() } else { 0 }
    }

    fn open_message(&mut self, bytes: &MessageBytes, now_ns: u64) -> Result<Option<Report>, Reject> {
        match &mut self.phase {
            Phase::Handshake(greeting) => {
                let opened = greeting.channel.open(bytes, now_ns, |kind| kind == Kind::Hello)?;
                self.greet(bytes, &opened, now_ns)?;
                Ok(None)
            }
            Phase::Open(channel) => {
                let (asked_to_drain, asked_to_stop) = (self.drain.is_asked(), self.stop.is_asked());
                let (has_drained, has_stopped) = (self.has_drained, self.has_stopped);
                let opened = channel.open(bytes, now_ns, |kind| match kind {
                    Kind::Ready => !has_drained && !has_stopped,
                    Kind::Heartbeat | Kind::Bye => true,
                    Kind::Drained => asked_to_drain && !has_stopped,
                    Kind::Stopped => asked_to_stop,
                    Kind::Hello | Kind::Challenge | Kind::Go | Kind::Drain | Kind::Stop => false,
                })?;
                Ok(self.act(opened.kind))
            }
            // Behind BYE nothing is taken, whatever it is.
            Phase::Over => Err(Reject::State),
        }
    }

    /// Checks the body of HELLO and answers it.
    fn greet(&mut self, bytes: &MessageBytes, opened: &Opened, now_ns: u64) -> Result<(), Reject> {
        let hello = Hello::from_body(opened.body);
        if hello.pid != self.terms.pid || hello.lowest > hello.highest {
            return Err(Reject::Body);
        }
        let version = VERSIONS.1.min(hello.highest);
        if version < VERSIONS.0 || version < hello.lowest {
            return Err(Reject::Version);
        }
        if hello.layout_digest != self.terms.layout_digest {
            return Err(Reject::Layout);
        }
        let Timing { ttl_ns, beat_ns } = self.terms.timing;
        let left = std::mem::replace(&mut self.phase, Phase::Over);
        let Phase::Handshake(greeting) = left else { unreachable!("only then is there a HELLO") };
        let Greeting { mut channel, schedule, nonce } = *greeting;
        channel.bind(Transcript::of(&[bytes]));
        let body = Challenge { nonce, ttl_ns, beat_ns, version, zero: [0; 6] }.to_body();
        let challenge = channel.seal(Kind::Challenge, body, now_ns);
        let transcript = Transcript::of(&[bytes, &challenge]);
        channel.rekey(schedule.session(&transcript), transcript, ttl_ns);
        self.challenge = Some(challenge);
        self.phase = Phase::Open(Box::new(channel));
        Ok(())
    }

    fn act(&mut self, kind: Kind) -> Option<Report> {
        match kind {
            Kind::Ready => {
                let is_first = !std::mem::replace(&mut self.is_ready, true);
                // Said again: the GO before was lost on a worker that was paused.
                self.owes_go |= self.may_go;
                is_first.then_some(Report::Ready)
            }
            Kind::Drained => {
                self.drain.settle();
                let is_first = !std::mem::replace(&mut self.has_drained, true);
                is_first.then_some(Report::Drained)
            }
            Kind::Stopped => {
                self.drain.settle();
                self.stop.settle();
                let is_first = !std::mem::replace(&mut self.has_stopped, true);
                is_first.then_some(Report::Stopped)
            }
            Kind::Bye => {
                self.phase = Phase::Over;
                Some(Report::Bye)
            }
            _ => Some(Report::Heartbeat),
        }
    }
}

impl Session for EngineSession {
    type Event = Report;

    fn feed(&mut self, mut stream: &[u8], now_ns: u64, on: &mut dyn FnMut(Report)) -> Result<(), Reject> {
        while let Some(bytes) = self.intake.next(&mut stream)? {
            let in_handshake = matches!(self.phase, Phase::Handshake(_));
            match self.open_message(&bytes, now_ns) {
                Ok(report) => {
                    self.heard_ns = Some(now_ns);
                    report.into_iter().for_each(&mut *on);
                }
                Err(reason) => {
                    let refused = self.intake.refuse(reason, in_handshake);
                    refused.inspect_err(|_| self.phase = Phase::Over)?;
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Reject> {
        self.phase = Phase::Over;
        self.intake.end()
    }

    fn transmit(&mut self, now_ns: u64) -> Option<MessageBytes> {
        let Phase::Open(channel) = &mut self.phase else { return None };
        if let Some(challenge) = self.challenge.take() {
            return Some(challenge);
        }
        let is_stopping = self.stop.is_asked();
        let kind = if std::mem::take(&mut self.owes_go) && !is_stopping {
            Kind::Go
        } else if !is_stopping && self.drain.take(now_ns) {
            Kind::Drain
        } else if self.stop.take(now_ns) {
            Kind::Stop
        } else {
            return None;
        };
        Some(channel.seal(kind, [0; BODY_BYTES], now_ns))
    }

    fn next_ns(&self) -> Option<u64> {
        let Phase::Open(_) = &self.phase else { return None };
        let is_stopping = self.stop.is_asked();
        let at_once = (self.challenge.is_some() || self.owes_go && !is_stopping).then_some(0);
        let drain = self.drain.due_ns().filter(|_| !is_stopping);
        [at_once, drain, self.stop.due_ns()].into_iter().flatten().min()
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    fn rejects(&self) -> &Rejects {
        self.intake.rejects()
    }
}
