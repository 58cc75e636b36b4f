//! What the tests of the doorbell share: both ends, and processes that play a part.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};

use handbell::testing::doorbell::{
    CREDENTIALS_BYTES, Caller, Connection, Credentials, EngineSession, EngineTerms, Life, Listener, Loopback,
    Order, Poller, Reject, Report, Session, Timing, Turn, WorkerTerms, monotonic_ns, random,
};

use super::{TOKEN, token};

/// Set in a process that plays a part, to which one.
pub const ROLE: &str = "HANDBELL_TEST_ROLE";

pub const SECOND: u64 = 1_000_000_000;
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const LIFE: Life = Life { worker: 2, incarnation: 7 };
pub const LAYOUT: u64 = 0x1234;

pub fn far_ns() -> u64 {
    monotonic_ns() + 3600 * SECOND
}

pub fn engine_terms(pid: u32) -> EngineTerms {
    EngineTerms { life: LIFE, pid, layout_digest: LAYOUT, timing: Timing::default() }
}

pub fn worker_terms() -> WorkerTerms {
    WorkerTerms { life: LIFE, pid: std::process::id(), layout_digest: LAYOUT }
}

pub fn credentials() -> Credentials {
    Credentials::generate(random::fill).expect("random bytes")
}

/// The same ones, for the other end.
pub fn copy(credentials: &Credentials) -> Credentials {
    let mut bytes = [0; CREDENTIALS_BYTES];
    credentials.write(&mut bytes);
    Credentials::take(&mut bytes)
}

/// What a listener's worker needs to know.
pub fn told_by(listener: &Listener) -> Credentials {
    copy(listener.credentials().expect("it is open"))
}

pub fn listener() -> Listener {
    Listener::open(Loopback::default(), credentials()).expect("it listens")
}

/// One at an address that no other test uses: once it is closed, nobody listens there.
pub fn listener_at(last: u8) -> Listener {
    let address = Loopback::check("doorbell_address", [127, 0, 0, last].into()).expect("loopback");
    Listener::open(address, credentials()).expect("it listens")
}

/// Turns the listener until its handshake is done, or is not.
pub fn finish(listener: &mut Listener) -> Option<Box<Connection<EngineSession>>> {
    let poller = Poller::new().expect("an epoll");
    poller.add(listener.as_fd(), 0).expect("a set can be watched");
    let mut tokens = Vec::new();
    loop {
        match listener.turn(monotonic_ns()).expect("the system has what it takes") {
            Turn::Done(connection) => return Some(connection),
            Turn::Late => return None,
            Turn::Waiting => {}
        }
        poller.wait(&mut tokens, listener.next_ns()).expect("epoll");
    }
}

/// Turns the connection until it has reported this; everything that it reported.
pub fn hear(connection: &mut Connection<EngineSession>, until: Report) -> Vec<Report> {
    let poller = Poller::new().expect("an epoll");
    poller.add(connection.as_fd(), 0).expect("watched");
    let (mut tokens, mut reports) = (Vec::new(), Vec::new());
    loop {
        let turned = connection.turn(monotonic_ns(), |report| reports.push(report));
        if reports.contains(&until) {
            return reports;
        }
        turned.unwrap_or_else(|ended| panic!("{ended:?} behind {reports:?}"));
        poller.wait(&mut tokens, connection.next_ns()).expect("epoll");
    }
}

// ---- a worker process ----

pub struct Process {
    pub child: Child,
    said: BufReader<ChildStdout>,
}

pub fn play(role: &str) -> Process {
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, role).env(TOKEN, token()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let said = BufReader::new(child.stdout.take().expect("piped"));
    Process { child, said }
}

impl Process {
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it speaks");
        line.trim().to_owned()
    }

    pub fn tell(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("piped").write_all(bytes).expect("it listens");
    }

    /// What it says to its end.
    pub fn ends_well(mut self) -> String {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("it speaks");
        assert!(self.child.wait().expect("it ends").success(), "{rest}");
        rest
    }
}

/// A test that fails leaves nobody behind.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a worker that knows where to call.
pub fn unannounced(listener: &Listener) -> Process {
    let mut process = play("worker");
    let mut bytes = [0; CREDENTIALS_BYTES];
    listener.credentials().expect("it is open").write(&mut bytes);
    let IpAddr::V4(address) = listener.local().ip() else { panic!("not in these tests") };
    process.tell(&[&bytes[..], &address.octets(), &listener.local().port().to_le_bytes()].concat());
    process
}

/// Announces a worker and lets it call. Its two seconds begin in an hour: how fast this machine is, is another
/// matter.
pub fn announce(listener: &mut Listener, process: &mut Process, timing: Timing) {
    let port = process.line().parse().expect("a port");
    let terms = EngineTerms { timing, ..engine_terms(process.child.id()) };
    listener.announce(port, terms, far_ns());
    process.tell(b".");
}

/// Starts a worker and announces it.
pub fn announced(listener: &mut Listener, timing: Timing) -> Process {
    let mut process = unannounced(listener);
    announce(listener, &mut process, timing);
    process
}

/// An honest worker: obeys, and says what it was told.
pub fn worker() -> ! {
    let mut stdin = std::io::stdin().lock();
    let (mut bytes, mut address, mut port) = ([0; CREDENTIALS_BYTES], [0; 4], [0; 2]);
    for part in [&mut bytes[..], &mut address, &mut port] {
        stdin.read_exact(part).expect("told");
    }
    let engine = SocketAddr::new(address.into(), u16::from_le_bytes(port));
    let caller = Caller::bind(engine.ip()).expect("bound");
    println!("{}", caller.port());
    stdin.read_exact(&mut [0]).expect("announced");
    let mut orders = Vec::new();
    let called = caller.call(engine, Credentials::take(&mut bytes), worker_terms(), far_ns(), |order| {
        orders.push(order);
    });
    let mut connection = called.expect("answered");
    connection.session().ready(monotonic_ns());
    let poller = Poller::new().expect("an epoll");
    poller.add(connection.as_fd(), 0).expect("watched");
    let mut tokens = Vec::new();
    loop {
        connection.turn(monotonic_ns(), |order| orders.push(order)).expect("an honest engine");
        for order in orders.drain(..) {
            println!("{order:?}");
            match order {
                Order::Go => {}
                Order::Drain => connection.session().drained(),
                Order::Stop => {
                    connection.session().stopped();
                    connection.session().bye();
                }
            }
        }
        if connection.session().has_left() && connection.is_flushed() {
            println!("dropped {}", connection.session().rejects().of(Reject::Time));
            std::process::exit(0);
        }
        poller.wait(&mut tokens, connection.next_ns()).expect("epoll");
    }
}
