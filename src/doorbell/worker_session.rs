//! The worker's end of a session.
//!
//! ```text
//! Handshake ── HELLO sent, CHALLENGE taken ──▶ Open ── BYE sent, or any reject but Time ──▶ Over
//!     └──────────────────────── any reject ────────────────────────────────────────────────▲
//! ```

use super::channel::{Channel, Side};
use super::errand::Errand;
use super::intake::Intake;
use super::reject::{Reject, Rejects};
use super::session::{Session, Timing};
use crate::auth::{Credentials, Life, Schedule, Transcript};
use crate::base::limits::DOORBELL_TTL_NS;
use crate::wire::doorbell::{BODY_BYTES, Challenge, Hello, Kind, MessageBytes, NONCE_BYTES, VERSIONS};

/// What the engine wants. Told once each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Order {
    /// Serve.
    Go,
    /// End what is in flight, then say so with [`WorkerSession::drained`].
    Drain,
    /// End serving, then say so with [`WorkerSession::stopped`].
    Stop,
}

/// What a worker says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerTerms {
    /// Its life, as the bundle says.
    pub life: Life,
    /// Its process.
    pub pid: u32,
    /// Its layouts.
    pub layout_digest: u64,
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
    hello: Hello,
    /// HELLO as it was sent: it goes into the transcript.
    sent: Option<MessageBytes>,
}

/// The worker's end of a session.
pub struct WorkerSession {
    phase: Phase,
    timing: Timing,
    intake: Intake,
    beat_due_ns: u64,
    ready: Errand,
    /// Orders that have been told.
    told_go: bool,
    told_drain: bool,
    told_stop: bool,
    has_drained: bool,
    has_stopped: bool,
    /// Answers that have not been sent.
    owes_drained: bool,
    owes_stopped: bool,
    owes_bye: bool,
}

impl WorkerSession {
    /// A session that begins with HELLO. `nonce` is random and used once. The credentials are wiped here.
    pub fn new(credentials: Credentials, terms: WorkerTerms, nonce: [u8; NONCE_BYTES]) -> Self {
        let schedule = Schedule::new(&credentials, terms.life);
        let channel = Channel::new(Side::Worker, terms.life, schedule.handshake(), DOORBELL_TTL_NS);
        let WorkerTerms { pid, layout_digest, .. } = terms;
        let (lowest, highest) = VERSIONS;
        let hello = Hello { nonce, pid, lowest, highest, layout_digest, zero: [0; 8] };
        Self {
            phase: Phase::Handshake(Box::new(Greeting { channel, schedule, hello, sent: None })),
            timing: Timing::default(),
            intake: Intake::new(),
            beat_due_ns: 0,
            ready: Errand::default(),
            told_go: false,
            told_drain: false,
            told_stop: false,
            has_drained: false,
            has_stopped: false,
            owes_drained: false,
            owes_stopped: false,
            owes_bye: false,
        }
    }

    /// The nodes are built: said until GO, or a later order, comes. Call it when the handshake is done.
    pub fn ready(&mut self, now_ns: u64) {
        assert!(!matches!(self.phase, Phase::Handshake(_)), "READY follows the handshake");
        // Behind STOP nobody waits for it.
        if !self.told_stop {
            self.ready.ask(now_ns);
        }
    }

    /// Nothing is in flight any more: said for each DRAIN from now on.
    pub fn drained(&mut self) {
        assert!(self.told_drain, "DRAINED answers DRAIN");
        // Behind STOPPED nobody waits for it.
        self.owes_drained |= !self.has_drained && !self.has_stopped;
        self.has_drained = true;
    }

    /// Serving has ended: said for each STOP from now on.
    pub fn stopped(&mut self) {
        assert!(self.told_stop, "STOPPED answers STOP");
        self.owes_stopped |= !self.has_stopped;
        self.has_stopped = true;
    }

    /// Takes leave: said once, and nothing after it.
    pub fn bye(&mut self) {
        self.owes_bye = true;
    }

    /// Whether BYE has been said, or the session had ended before.
    pub fn has_left(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn open_message(
        &mut self,
        bytes: &MessageBytes,
        now_ns: u64,
        on: &mut dyn FnMut(Order),
    ) -> Result<(), Reject> {
        match &mut self.phase {
            Phase::Handshake(greeting) => {
                let was_called = greeting.sent.is_some();
                let is_legal = |kind| kind == Kind::Challenge && was_called;
                let opened = greeting.channel.open(bytes, now_ns, is_legal)?;
                self.begin(bytes, &Challenge::from_body(opened.body), now_ns)
            }
            Phase::Open(channel) => {
                let said_ready = self.ready.is_asked();
                let opened = channel.open(bytes, now_ns, |kind| match kind {
                    Kind::Go | Kind::Drain => said_ready,
                    Kind::Stop => true,
                    Kind::Hello | Kind::Challenge | Kind::Ready | Kind::Heartbeat => false,
                    Kind::Drained | Kind::Stopped | Kind::Bye => false,
                })?;
                self.act(opened.kind, on);
                Ok(())
            }
            // What crossed the BYE is of no interest.
            Phase::Over => Ok(()),
        }
    }

    /// Takes the limits from CHALLENGE; the session begins.
    fn begin(&mut self, bytes: &MessageBytes, challenge: &Challenge, now_ns: u64) -> Result<(), Reject> {
        let timing = Timing { ttl_ns: challenge.ttl_ns, beat_ns: challenge.beat_ns };
        if !timing.is_sound() {
            return Err(Reject::Body);
        }
        if !(VERSIONS.0..=VERSIONS.1).contains(&challenge.version) {
            return Err(Reject::Version);
        }
        let left = std::mem::replace(&mut self.phase, Phase::Over);
        let Phase::Handshake(greeting) = left else { unreachable!("only then is there a CHALLENGE") };
        let Greeting { mut channel, schedule, sent, .. } = *greeting;
        let hello = sent.expect("CHALLENGE is legal behind HELLO only");
        let transcript = Transcript::of(&[&hello, bytes]);
        channel.rekey(schedule.session(&transcript), transcript, timing.ttl_ns);
        self.timing = timing;
        self.beat_due_ns = now_ns;
        self.phase = Phase::Open(Box::new(channel));
        Ok(())
    }

    fn act(&mut self, kind: Kind, on: &mut dyn FnMut(Order)) {
        // Any order is the answer to READY: DRAIN is sent behind GO only, so whoever missed the GO may go now.
        self.ready.settle();
        let is_first = |told: &mut bool| !std::mem::replace(told, true);
        match kind {
            Kind::Stop => {
                self.owes_stopped |= self.has_stopped;
                if is_first(&mut self.told_stop) {
                    on(Order::Stop);
                }
            }
            // Behind STOP there is nothing to begin and nothing to drain.
            _ if self.told_stop => {}
            _ => {
                if is_first(&mut self.told_go) {
                    on(Order::Go);
                }
                if kind == Kind::Drain {
                    self.owes_drained |= self.has_drained;
                    if is_first(&mut self.told_drain) {
                        on(Order::Drain);
                    }
                }
            }
        }
    }
}

impl Session for WorkerSession {
    type Event = Order;

    fn feed(&mut self, mut stream: &[u8], now_ns: u64, on: &mut dyn FnMut(Order)) -> Result<(), Reject> {
        while let Some(bytes) = self.intake.next(&mut stream)? {
            let in_handshake = matches!(self.phase, Phase::Handshake(_));
            if let Err(reason) = self.open_message(&bytes, now_ns, on) {
                let refused = self.intake.refuse(reason, in_handshake);
                refused.inspect_err(|_| self.phase = Phase::Over)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Reject> {
        self.phase = Phase::Over;
        self.intake.end()
    }

    fn transmit(&mut self, now_ns: u64) -> Option<MessageBytes> {
        let channel = match &mut self.phase {
            Phase::Handshake(greeting) if greeting.sent.is_none() => {
                let hello = greeting.channel.seal(Kind::Hello, greeting.hello.to_body(), now_ns);
                greeting.channel.bind(Transcript::of(&[&hello]));
                greeting.sent = Some(hello);
                return Some(hello);
            }
            Phase::Open(channel) => channel,
            Phase::Handshake(_) | Phase::Over => return None,
        };
        let kind = if self.ready.take(now_ns) {
            Kind::Ready
        } else if std::mem::take(&mut self.owes_drained) {
            Kind::Drained
        } else if std::mem::take(&mut self.owes_stopped) {
            Kind::Stopped
        } else if self.owes_bye {
            Kind::Bye
        } else if now_ns >= self.beat_due_ns {
            Kind::Heartbeat
        } else {
            return None;
        };
        // Whatever is said shows that it lives.
        self.beat_due_ns = now_ns.saturating_add(self.timing.beat_ns);
        let message = channel.seal(kind, [0; BODY_BYTES], now_ns);
        if kind == Kind::Bye {
            self.phase = Phase::Over;
        }
        Some(message)
    }

    fn next_ns(&self) -> Option<u64> {
        match &self.phase {
            Phase::Handshake(greeting) => greeting.sent.is_none().then_some(0),
            Phase::Open(_) if self.owes_drained || self.owes_stopped || self.owes_bye => Some(0),
            Phase::Open(_) => Some(self.ready.due_ns().unwrap_or(u64::MAX).min(self.beat_due_ns)),
            Phase::Over => None,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    fn rejects(&self) -> &Rejects {
        self.intake.rejects()
    }
}
