//! Parts by themselves, for benches: a ring, an arena, a key, an executor, each in one process.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::app::App;
use crate::auth::{CREDENTIALS_BYTES, Credentials, Key, Life, Schedule, Transcript};
use crate::base::failure::ExecutionClass;
use crate::base::ids::{GroupId, Identity, NodeId};
use crate::node::executor::{Executor, Incoming, Port, Way};
use crate::node::request::Cancellation;
use crate::node::{BuildError, EmitError};
use crate::os::map::Mapping;
use crate::os::memfd;
use crate::plan::plan::Plan;
use crate::shm::arena::Arena;
use crate::shm::ring::{Look, OwnRing, PeerRing};
use crate::shm::view::View;
use crate::wire::envelope::Envelope;

const PAGE_BYTES: usize = 4096;

/// Memory of so many bytes, mapped writable and read-only.
fn views(bytes: usize) -> (View, View) {
    let bytes = bytes.next_multiple_of(PAGE_BYTES);
    let memory = memfd::create("handbell-part", bytes as u64).expect("memory is left");
    let own = Mapping::writable(memory.as_fd(), bytes).expect("it can be mapped");
    let peer = Mapping::read_only(memory.as_fd(), bytes).expect("it can be mapped");
    (View::new(own), View::new(peer))
}

/// A ring that is written and read by one thread, so that no line leaves its processor.
pub struct Ring {
    own: OwnRing,
    peer: PeerRing,
    segment: View,
    position: u64,
}

impl Ring {
    /// So many slots of so many bytes.
    pub fn new(slots: usize, slot_bytes: usize) -> Self {
        let (own, peer) = views(slots * slot_bytes);
        let segment = peer.clone();
        let own = OwnRing::in_segment(own, 0, slot_bytes, slots);
        Self { own, peer: PeerRing::in_segment(peer, 0, slot_bytes, slots), segment, position: 0 }
    }

    /// Writes and commits the next frame.
    pub fn write(&mut self, envelope: Envelope, payload: &[u8]) {
        let place = self.own.place(self.position);
        place.slot.copy_in(payload);
        let [_, words @ ..] = envelope.to_words();
        place.publish(words);
    }

    /// Reads that frame, and goes on to the next position.
    pub fn read(&mut self, payload: &mut [u8]) -> Option<Envelope> {
        let place = self.peer.place(self.position);
        if place.look() != Look::Ready {
            return None;
        }
        let envelope = place.envelope();
        self.segment.copy_out(self.peer.inline_at(self.position), payload);
        self.position += 1;
        Some(envelope)
    }
}

/// An arena without a peer.
pub struct Blocks(Arc<Arena>);

impl Blocks {
    /// Of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Arena::new(views(bytes).0, 0, bytes)))
    }

    /// Takes a block, hands it over, and gets it back; whether there was room.
    pub fn around(&self, len: usize) -> bool {
        let Ok(block) = self.0.take(len) else { return false };
        self.0.take_back(block.publish()).is_ok()
    }
}

/// A key of the doorbell, and what was said before.
pub struct Signer {
    key: Key,
    transcript: Transcript,
}

impl Default for Signer {
    fn default() -> Self {
        let credentials = Credentials::take(&mut [3; CREDENTIALS_BYTES]);
        let key = Schedule::new(&credentials, Life { worker: 1, incarnation: 1 }).handshake().worker;
        Self { key, transcript: Transcript::of(&[b"said"]) }
    }
}

impl Signer {
    /// The tag over these bytes.
    pub fn tag(&self, covered: &[u8]) -> [u8; 32] {
        self.key.tag(covered, &self.transcript)
    }

    /// Whether it is that tag.
    pub fn verify(&self, covered: &[u8], tag: &[u8; 32]) -> bool {
        self.key.verify(covered, &self.transcript, tag)
    }
}

/// The nodes of a plan's first group, without rings.
pub struct Nodes(Executor);

impl Nodes {
    /// Builds their states.
    pub fn of(app: &App, plan: Plan) -> Result<Self, BuildError> {
        let placement = plan.check().map_err(BuildError::new)?;
        let names = placement.nodes.iter().filter(|node| node.group == GroupId(0));
        let built = app.registry().build(names.map(|node| node.name.as_str()));
        let built = built.map_err(|unbuilt| BuildError::new(format!("{} is not built", unbuilt.node)))?;
        Ok(Self(Executor::new(placement, GroupId(0), built)))
    }

    /// Runs a request for the first node to its end; how many bytes were replied, if any.
    pub fn run(&mut self, payload: &[u8]) -> Option<usize> {
        let incoming = Incoming { target: 0, identity: &Identity::default(), deadline_ns: 0, payload };
        let mut replied = Replied(None);
        self.0.execute(&incoming, &Wanted, &mut replied);
        replied.0
    }
}

/// Nobody gives the request up.
struct Wanted;

impl Cancellation for Wanted {
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// The length of the latest reply.
struct Replied(Option<usize>);

impl Port for Replied {
    fn max_payload(&self) -> usize {
        usize::MAX
    }

    fn max_onward(&self) -> usize {
        usize::MAX
    }

    fn reply(&mut self, _source: NodeId, payload: &[u8]) -> Result<(), EmitError> {
        self.0 = Some(payload.len());
        Ok(())
    }

    fn reply_with(
        &mut self,
        source: NodeId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError> {
        let mut room = vec![0; len];
        fill(&mut room);
        self.reply(source, &room)
    }

    fn pass_on(&mut self, _way: Way, _payload: &[u8]) -> Result<(), EmitError> {
        Ok(())
    }

    fn fail(&mut self, _source: NodeId, _class: ExecutionClass, _code: u32, _text: &str) {
        self.0 = None;
    }

    fn progress(&mut self) {}
}
