//! Births by hand, at either side: with words that an honest engine or worker would never say.

use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::doorbell::{CREDENTIALS_BYTES, Credentials, Life, WorkerTerms};
use crate::base::ids::GroupId;
use crate::base::waiting::Waiting;
use crate::os::child::{self, Exit, Spawn, Spawned};
use crate::os::life;
use crate::os::poll::{EventFd, readable_within};
use crate::os::socket::{self, Received, receive_within};
use crate::plan::settings::Settings;
use crate::shm::segment::Created;
use crate::wire::bootstrap::{BUNDLE_DESCRIPTORS, Bundle, BundleGroup, BundleNode, Message};
use crate::wire::segment::{Side, layout_digest};
use crate::worker::{self, ENGINE_WORD_MS, MARKER};

pub use crate::wire::bootstrap::{BOOTSTRAP_VERSION, Refusal};

/// A worker that has its bundle, and does nothing with it of its own accord.
pub struct BirthByHand {
    socket: OwnedFd,
    /// Where the engine listens for it.
    pub doorbell: SocketAddr,
    /// What it is to say of itself.
    pub terms: WorkerTerms,
    credentials: [u8; CREDENTIALS_BYTES],
}

impl BirthByHand {
    /// In a process that an engine started: receives the bundle. Elsewhere: `None`.
    pub fn receive_if_worker() -> Option<Self> {
        if !worker::is_worker() {
            return None;
        }
        let socket = life::become_worker().expect("started as a worker");
        let parent = socket::peer_pid(socket.as_fd()).expect("a socket has a peer");
        assert!(life::bind_life_to(parent).expect("a signal is free"), "the engine is gone");
        let mut buffer = vec![0; 1 << 20];
        let received = receive_within(socket.as_fd(), &mut buffer, BUNDLE_DESCRIPTORS, ENGINE_WORD_MS);
        let Ok(Received::Message { bytes, .. }) = received else { panic!("no bundle: {received:?}") };
        let (bundle, credentials) = buffer[..bytes].split_last_chunk().expect("both are there");
        let Ok(Message::Bundle(bundle)) = Message::decode(bundle) else { panic!("it is malformed") };
        let life = Life { worker: bundle.worker.into(), incarnation: bundle.incarnation };
        let terms = WorkerTerms { life, pid: std::process::id(), layout_digest: layout_digest() };
        Some(Self { socket, doorbell: bundle.doorbell, terms, credentials: *credentials })
    }

    /// What it has been given.
    pub fn credentials(&self) -> Credentials {
        Credentials::take(&mut self.credentials.clone())
    }

    /// The bootstrap socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Says that the segments are mapped, which they are not, and where it will call from. Waits for the answer.
    pub fn map(&self, port: u16) {
        self.say(&Message::Mapped(port));
        let mut buffer = [0; 16];
        let sealed = receive_within(self.socket.as_fd(), &mut buffer, 0, ENGINE_WORD_MS);
        assert!(matches!(sealed, Ok(Received::Message { .. })), "{sealed:?}");
    }

    /// Whether the bootstrap socket has nothing to read.
    pub fn has_nothing_to_read(&self) -> bool {
        !readable_within(self.socket.as_fd(), Some(0)).expect("it is open")
    }

    /// Says why it does not begin.
    pub fn refuse(&self, refusal: Refusal) {
        self.say(&Message::Refused(refusal));
    }

    fn say(&self, message: &Message) {
        socket::send(self.socket.as_fd(), &message.encode(), &[]).expect("the engine lives");
    }
}

/// How a worker ended that was handed a bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// What it said of it.
    pub answer: Vec<u8>,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed on standard error.
    pub said: String,
}

/// Starts this program as a worker and hands it these bytes with so many descriptors in place of a bundle. Waits
/// for its end.
pub fn hand_over(bytes: &[u8], descriptors: usize) -> Refused {
    let (ours, worker) = started();
    let null = std::fs::File::open("/dev/null").expect("it is everywhere");
    socket::send(ours.as_fd(), bytes, &vec![null.as_fd(); descriptors]).expect("it waits for a bundle");
    ended(&ours, worker)
}

/// Starts this program as a worker of a group that has this node, and hands it the whole of its bundle, twice. Waits for
/// its end.
pub fn hand_over_twice(node: &str) -> Refused {
    let geometry = Settings { slots: 2, ..Settings::default() }.check().expect("they are in their ranges");
    let [request, reply] = [Side::Request, Side::Reply]
        .map(|side| Created::new(side, &geometry, 1).expect("there is memory for two small segments"));
    let bell = EventFd::new().expect("a descriptor is left");
    let group = GroupId(0);
    let bundle = Bundle {
        worker: 0,
        incarnation: 1,
        doorbell: ([127, 0, 0, 1], 1).into(),
        stop_grace_ms: 1000,
        layout_digest: layout_digest(),
        geometry,
        waiting: Waiting::Block,
        pin: None,
        group,
        groups: vec![BundleGroup { name: "g".into(), keyed: false, local: false }],
        nodes: vec![BundleNode { name: node.into(), group, edges: Vec::new() }],
    };
    let bytes = [Message::Bundle(Box::new(bundle)).encode(), vec![7; CREDENTIALS_BYTES]].concat();
    let (ours, worker) = started();
    for _ in 0..2 {
        let fds = [request.fd(), reply.fd(), bell.as_fd()];
        socket::send(ours.as_fd(), &bytes, &fds).expect("it waits for a bundle");
    }
    ended(&ours, worker)
}

fn started() -> (OwnedFd, Spawned) {
    let (ours, theirs) = socket::pair().expect("a descriptor is left");
    let (program, env) = (child::exec_path(), [(MARKER.into(), "1".into())]);
    let worker = child::spawn(Spawn { program, args: &[], env: &env, cwd: None, stdin: theirs });
    (ours, worker.expect("this program starts"))
}

fn ended(ours: &OwnedFd, worker: Spawned) -> Refused {
    let mut said = String::new();
    std::fs::File::from(worker.stderr).read_to_string(&mut said).expect("it prints text");
    readable_within(worker.pidfd.as_fd(), None).expect("a process ends");
    let mut answer = vec![0; 64];
    let len = match receive_within(ours.as_fd(), &mut answer, 0, 0) {
        Ok(Received::Message { bytes, .. }) => bytes,
        _ => 0,
    };
    answer.truncate(len);
    let code = match child::reap(worker.pidfd.as_fd()) {
        Ok(Some(Exit::Code(code))) => Some(code),
        _ => None,
    };
    Refused { answer, code, said }
}
