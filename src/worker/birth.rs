//! From the first line of `main` to READY.
//!
//! Steps: signal mask, foreign descriptors, parent-death signal → bundle → check, map → MAPPED, SEALED → call the
//! engine's doorbell → build the nodes → READY, GO → serve → STOPPED, BYE.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::Zeroizing;

use super::line::Line;
use super::serve::serve;
use crate::auth::{CREDENTIALS_BYTES, Credentials, Life};
use crate::base::failure::cut;
use crate::base::ids::NodeId;
use crate::base::limits::BUNDLE_BYTES;
use crate::doorbell::{CallError, Caller, WorkerTerms};
use crate::lane::WorkerEnd;
use crate::node::executor::Executor;
use crate::node::registry::{Registry, Unbuilt};
use crate::os::futex::Word;
use crate::os::poll::EventFd;
use crate::os::socket::{self, Received, receive_within};
use crate::os::{cpu, life};
use crate::plan::placement::{Edge, PlacedGroup, PlacedNode, Placement};
use crate::shm::segment::{check_closed, open_received};
use crate::wire::bootstrap::{BOOTSTRAP_VERSION, BUNDLE_DESCRIPTORS, Bundle, Malformed, Message, Refusal};
use crate::wire::segment::{Side, layout_digest};

/// Environment variable that marks a worker, beside the socket on its standard input.
pub(crate) const MARKER: &str = "HANDBELL_WORKER";

/// The engine sends its part within this, seven weeks, also after a pause: waiting costs nothing, because its death
/// ends the socket.
pub(crate) const ENGINE_WORD_MS: u32 = u32::MAX;

/// Why a worker ends before it has served; also its exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
enum Unborn {
    ParentGone = 81,
    Bundle = 82,
    Segment = 83,
    Nodes = 84,
    System = 85,
    Doorbell = 87,
}

/// Whether this process was started as a worker: the marker *and* a socket of the right kind.
pub(crate) fn is_worker() -> bool {
    std::env::var_os(MARKER).is_some() && life::stdin_is_seqpacket()
}

/// Set for good once this process serves: its birth takes the socket off standard input.
static IS_SERVING: AtomicBool = AtomicBool::new(false);

/// Whether this process is a worker, before or after its birth.
pub(crate) fn is_inside_worker() -> bool {
    IS_SERVING.load(Ordering::Relaxed) || is_worker()
}

/// Serves until told to stop, then exits. Never returns.
pub(crate) fn run(registry: &Registry) -> ! {
    run_with(registry, |end, executor, _| serve(end, executor))
}

/// [`run`] with another way to serve.
pub(crate) fn run_with(registry: &Registry, serve: impl FnOnce(WorkerEnd, Executor, &Line)) -> ! {
    // Relaxed: the nodes run in this thread, or in threads that it starts.
    IS_SERVING.store(true, Ordering::Relaxed);
    let code = match be_born(registry, serve) {
        Ok(()) => 0,
        Err((unborn, what)) => {
            eprintln!("worker cannot start: {what}");
            unborn as i32
        }
    };
    life::kill_rest_of_group();
    std::process::exit(code);
}

type Born<T> = Result<T, (Unborn, String)>;

fn be_born(registry: &Registry, serve: impl FnOnce(WorkerEnd, Executor, &Line)) -> Born<()> {
    let system = |what: &'static str| move |error| (Unborn::System, format!("{what}: {error}"));
    let socket = Arc::new(life::become_worker().map_err(system("taking over standard input"))?);
    let parent = socket::peer_pid(socket.as_fd()).map_err(system("asking for the engine's pid"))?;
    if !life::bind_life_to(parent).map_err(system("binding to the engine's life"))? {
        return Err((Unborn::ParentGone, "the engine is gone".into()));
    }
    let (bundle, credentials, fds) = receive_bundle(&socket)?;
    let refuse = |refusal: Refusal, unborn: Unborn, what: String| {
        // Best effort: the engine sees the exit code too.
        let _ = say(&socket, &Message::Refused(refusal));
        (unborn, what)
    };
    if bundle.layout_digest != layout_digest() {
        return Err(refuse(
            Refusal::Layout,
            Unborn::Bundle,
            "the engine was built with other layouts".into(),
        ));
    }
    let [request_fd, reply_fd, bell_fd] =
        <[OwnedFd; BUNDLE_DESCRIPTORS]>::try_from(fds).expect("checked with the bundle");
    let refuse_segment = |error| refuse(Refusal::Segment, Unborn::Segment, format!("{error}"));
    let open = |side, fd: &OwnedFd| open_received(side, fd.as_fd(), &bundle.geometry, bundle.incarnation);
    let request = open(Side::Request, &request_fd).map_err(refuse_segment)?;
    let reply = open(Side::Reply, &reply_fd).map_err(refuse_segment)?;
    let caller = Caller::bind(bundle.doorbell.ip()).map_err(system("binding the doorbell's socket"))?;
    say(&socket, &Message::Mapped(caller.port()))?;
    expect_sealed(&socket)?;
    check_closed(Side::Reply, reply_fd.as_fd()).map_err(refuse_segment)?;
    drop((request_fd, reply_fd));

    let terms = WorkerTerms {
        life: Life { worker: bundle.worker.into(), incarnation: bundle.incarnation },
        pid: std::process::id(),
        layout_digest: layout_digest(),
    };
    // The engine ends the call when it has waited long enough, and one that is paused is not gone.
    let connection = caller
        .call(bundle.doorbell, credentials, terms, u64::MAX, |_| {})
        .map_err(|error: CallError| (Unborn::Doorbell, error.to_string()))?;
    let stop = Arc::new(Word::new(0));
    let bell = EventFd::from_fd(bell_fd);
    let end = WorkerEnd::new(request, reply, bundle.geometry, bundle.waiting, bell, Arc::clone(&stop));
    let line = Line::start(Arc::clone(&socket), connection, end.idleness(), stop, bundle.stop_grace_ms)
        .map_err(system("starting the doorbell's thread"))?;

    let placement = placement(&bundle);
    let group = bundle.group;
    let names = placement.nodes.iter().filter(|node| node.group == group).map(|node| node.name.as_str());
    let built = registry.build(names).map_err(|Unbuilt { node, error }| {
        let number = placement.node(&node).map_or(u16::MAX, |id| id.number());
        match error {
            None => {
                let what = format!("node '{node}' is not registered in this executable");
                refuse(Refusal::NotRegistered(number), Unborn::Nodes, what)
            }
            Some(error) => {
                let text = error.to_string();
                let what = format!("node '{node}' cannot be built: {}", cut(&text, 1000));
                refuse(Refusal::NotBuilt(number), Unborn::Nodes, what)
            }
        }
    })?;
    let executor = Executor::new(placement, group, built);
    if let Some(processor) = bundle.pin {
        cpu::pin(usize::from(processor)).map_err(system("keeping to its processor"))?;
    }
    if line.ready() {
        serve(end, executor, &line);
    }
    line.leave();
    Ok(())
}

/// The bundle, the credentials behind it, and the descriptors. It can be received once: nothing of it stays in
/// the socket, and the place where it stood is wiped.
fn receive_bundle(socket: &OwnedFd) -> Born<(Bundle, Credentials, Vec<OwnedFd>)> {
    let mut buffer = Zeroizing::new(vec![0; BUNDLE_BYTES + CREDENTIALS_BYTES + 1]);
    let malformed = |what: &str| (Unborn::Bundle, format!("the start bundle {what}"));
    let received = receive_within(socket.as_fd(), &mut buffer, BUNDLE_DESCRIPTORS, ENGINE_WORD_MS);
    let (bytes, fds) = match received {
        Ok(Received::Message { bytes, fds }) => (bytes, fds),
        Ok(Received::End) => return Err((Unborn::ParentGone, "the engine is gone".into())),
        Err(error) => return Err(malformed(&format!("was not received: {error}"))),
    };
    let received = &mut buffer[..bytes];
    let Some((bundle, credentials)) = received.split_last_chunk_mut::<CREDENTIALS_BYTES>() else {
        let _ = say(socket, &Message::Refused(Refusal::Bundle));
        return Err(malformed("is too short"));
    };
    match Message::decode(bundle) {
        Ok(Message::Bundle(bundle)) if fds.len() == BUNDLE_DESCRIPTORS => {
            Ok((*bundle, Credentials::take(credentials), fds))
        }
        Err(Malformed::Version(version)) => {
            let _ = say(socket, &Message::Refused(Refusal::Version(BOOTSTRAP_VERSION)));
            Err(malformed(&format!("has version {version}, this worker knows {BOOTSTRAP_VERSION}")))
        }
        _ => {
            let _ = say(socket, &Message::Refused(Refusal::Bundle));
            Err(malformed("is malformed"))
        }
    }
}

fn expect_sealed(socket: &OwnedFd) -> Born<()> {
    let mut buffer = [0; 16];
    match receive_within(socket.as_fd(), &mut buffer, 0, ENGINE_WORD_MS) {
        Ok(Received::Message { bytes, .. }) if Message::decode(&buffer[..bytes]) == Ok(Message::Sealed) => {
            Ok(())
        }
        Ok(Received::End) => Err((Unborn::ParentGone, "the engine is gone".into())),
        _ => Err((Unborn::Bundle, "the engine did not seal the reply segment".into())),
    }
}

fn say(socket: &OwnedFd, message: &Message) -> Born<()> {
    socket::send(socket.as_fd(), &message.encode(), &[])
        .map_err(|error| (Unborn::ParentGone, format!("the engine cannot be reached: {error}")))
}

/// The plan as far as this worker knows it: names and numbers of everything, the edges of its own nodes.
fn placement(bundle: &Bundle) -> Placement {
    let edge = |(label, to): &(String, NodeId)| Edge { label: label.clone(), to: *to, max_hops: 0 };
    let nodes = bundle.nodes.iter().map(|node| PlacedNode {
        name: node.name.clone(),
        group: node.group,
        edges: node.edges.iter().map(edge).collect(),
    });
    let groups = bundle.groups.iter().map(|group| PlacedGroup {
        name: group.name.clone(),
        keyed: group.keyed,
        local: group.local,
        ..PlacedGroup::default()
    });
    Placement::new(nodes.collect(), groups.collect())
}
