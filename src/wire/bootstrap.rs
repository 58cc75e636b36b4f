//! Messages on the bootstrap socket: the start bundle and the few words around it.
//!
//! One datagram a message: kind (1 byte), body. The bundle is data only: sizes, numbers, names. Behind it stand
//! the credentials of this life, which are wiped at both ends once they have been taken. It carries three
//! descriptors: request segment, reply segment, event descriptor, in this order. All that follows READY is said
//! on the doorbell.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::base::ids::{GroupId, NodeId};
use crate::base::limits::{BUNDLE_BYTES, NAME_BYTES, PLAN_EDGES, PLAN_NODES};
use crate::base::waiting::Waiting;
use crate::wire::geometry::Geometry;

/// Raised when a message changes.
pub const BOOTSTRAP_VERSION: u16 = 3;
/// Descriptors that come with the bundle.
pub const BUNDLE_DESCRIPTORS: usize = 3;

/// Stands for "any processor".
const NO_PIN: u16 = u16::MAX;
const MAGIC: u32 = u32::from_le_bytes(*b"HBLB");

/// What a worker needs in order to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bundle {
    /// The worker's number in the plan: that of its lane.
    pub worker: u16,
    /// This life of the worker.
    pub incarnation: u64,
    /// Where the engine listens for this worker.
    pub doorbell: SocketAddr,
    /// How long a node may go on after STOP, in milliseconds.
    pub stop_grace_ms: u32,
    /// The engine's layouts.
    pub layout_digest: u64,
    /// Sizes of the lane.
    pub geometry: Geometry,
    /// How to wait.
    pub waiting: Waiting,
    /// The processor that the serving thread keeps to.
    pub pin: Option<u16>,
    /// The group to serve.
    pub group: GroupId,
    /// All groups.
    pub groups: Vec<BundleGroup>,
    /// All nodes; those of other groups without their edges.
    pub nodes: Vec<BundleNode>,
}

/// One group of the plan, as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleGroup {
    /// Its name.
    pub name: String,
    /// It is reached only with a key.
    pub keyed: bool,
    /// It runs in the engine.
    pub local: bool,
}

/// One node of the plan, as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleNode {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: GroupId,
    /// Labels and targets of its edges.
    pub edges: Vec<(String, NodeId)>,
}

/// What can be said on the bootstrap socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Engine → worker, once, with descriptors.
    Bundle(Box<Bundle>),
    /// Worker → engine: both segments are mapped; it will call from this port.
    Mapped(u16),
    /// Engine → worker: the reply segment is closed for other writers, and the call is awaited.
    Sealed,
    /// Worker → engine: it cannot begin.
    Refused(Refusal),
}

/// Why a worker cannot begin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The bundle is malformed.
    Bundle,
    /// The bundle has a version that the worker does not know; the worker's own.
    Version(u16),
    /// The worker was built with other layouts.
    Layout,
    /// A segment was not as announced.
    Segment,
    /// A node of the group is not registered in the worker's executable; its number.
    NotRegistered(u16),
    /// A node's state could not be built; its number.
    NotBuilt(u16),
}

/// Why a message cannot be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Another version.
    Version(u16),
    /// Anything else.
    Bytes,
}

/// Marks of a group.
mod mark {
    pub const KEYED: u8 = 1;
    pub const LOCAL: u8 = 2;
}

mod code {
    pub const BUNDLE: u8 = 1;
    pub const MAPPED: u8 = 2;
    pub const SEALED: u8 = 3;
    pub const REFUSED: u8 = 4;
}

impl Message {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bundle(bundle) => bundle.encode(),
            Self::Mapped(port) => {
                let [low, high] = port.to_le_bytes();
                vec![code::MAPPED, low, high]
            }
            Self::Sealed => vec![code::SEALED],
            Self::Refused(refusal) => {
                let (kind, detail) = match *refusal {
                    Refusal::Bundle => (1, 0),
                    Refusal::Version(version) => (2, version),
                    Refusal::Layout => (3, 0),
                    Refusal::Segment => (4, 0),
                    Refusal::NotRegistered(node) => (5, node),
                    Refusal::NotBuilt(node) => (6, node),
                };
                let [low, high] = detail.to_le_bytes();
                vec![code::REFUSED, kind, low, high]
            }
        }
    }

    /// The message that these bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match *bytes {
            [code::BUNDLE, ref body @ ..] => {
                Bundle::decode(body).map(|bundle| Self::Bundle(Box::new(bundle)))
            }
            [code::MAPPED, low, high] => Ok(Self::Mapped(u16::from_le_bytes([low, high]))),
            [code::SEALED] => Ok(Self::Sealed),
            [code::REFUSED, kind, low, high] => {
                let detail = u16::from_le_bytes([low, high]);
                Ok(Self::Refused(match kind {
                    1 => Refusal::Bundle,
                    2 => Refusal::Version(detail),
                    3 => Refusal::Layout,
                    4 => Refusal::Segment,
                    5 => Refusal::NotRegistered(detail),
                    6 => Refusal::NotBuilt(detail),
                    _ => return Err(Malformed::Bytes),
                }))
            }
            _ => Err(Malformed::Bytes),
        }
    }
}

impl Bundle {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![code::BUNDLE];
        out.extend(MAGIC.to_le_bytes());
        out.extend(BOOTSTRAP_VERSION.to_le_bytes());
        out.extend(self.worker.to_le_bytes());
        out.extend(self.incarnation.to_le_bytes());
        put_address(&mut out, self.doorbell);
        out.extend(self.stop_grace_ms.to_le_bytes());
        out.extend(self.layout_digest.to_le_bytes());
        let geometry = self.geometry;
        for size in
            [geometry.slots, geometry.slot_bytes, geometry.request_arena_bytes, geometry.reply_arena_bytes]
        {
            out.extend((size as u64).to_le_bytes());
        }
        out.push(self.waiting as u8);
        out.extend(self.pin.unwrap_or(NO_PIN).to_le_bytes());
        out.extend(self.group.0.to_le_bytes());
        put_count(&mut out, self.groups.len());
        for group in &self.groups {
            put_name(&mut out, &group.name);
            out.push(u8::from(group.keyed) * mark::KEYED + u8::from(group.local) * mark::LOCAL);
        }
        put_count(&mut out, self.nodes.len());
        for node in &self.nodes {
            put_name(&mut out, &node.name);
            out.extend(node.group.0.to_le_bytes());
            put_count(&mut out, node.edges.len());
            for (label, to) in &node.edges {
                put_name(&mut out, label);
                out.extend(to.0.to_le_bytes());
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(bytes);
        if bytes.len() > BUNDLE_BYTES || input.u32()? != MAGIC {
            return Err(Malformed::Bytes);
        }
        let version = input.u16()?;
        if version != BOOTSTRAP_VERSION {
            return Err(Malformed::Version(version));
        }
        let worker = input.u16()?;
        let incarnation = input.u64()?;
        let doorbell = input.address()?;
        let stop_grace_ms = input.u32()?;
        let layout_digest = input.u64()?;
        let mut size = || input.u64().and_then(|size| usize::try_from(size).map_err(|_| Malformed::Bytes));
        let geometry = Geometry {
            slots: size()?,
            slot_bytes: size()?,
            request_arena_bytes: size()?,
            reply_arena_bytes: size()?,
        };
        let waiting = Waiting::from_code(input.u8()?).ok_or(Malformed::Bytes)?;
        let pin = Some(input.u16()?).filter(|cpu| *cpu != NO_PIN);
        let group = GroupId(input.u16()?);
        let groups = (0..input.count(PLAN_NODES)?).map(|_| input.group()).collect::<Result<Vec<_>, _>>()?;
        let count = input.count(PLAN_NODES)?;
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            let name = input.name()?;
            let group = GroupId(input.u16()?);
            let edges = (0..input.count(PLAN_EDGES)?)
                .map(|_| Ok((input.name()?, NodeId(input.u16()?))))
                .collect::<Result<Vec<_>, _>>()?;
            nodes.push(BundleNode { name, group, edges });
        }
        let known_groups = groups.len();
        let consistent = usize::from(group.0) < known_groups
            && nodes.iter().all(|node| {
                usize::from(node.group.0) < known_groups
                    && node.edges.iter().all(|(_, to)| usize::from(to.0) < nodes.len())
            });
        if !input.0.is_empty() || !consistent {
            return Err(Malformed::Bytes);
        }
        Ok(Self {
            worker,
            incarnation,
            doorbell,
            stop_grace_ms,
            layout_digest,
            geometry,
            waiting,
            pin,
            group,
            groups,
            nodes,
        })
    }
}

/// As IPv6, which every address can be written as.
fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend(ip.octets());
    out.extend(address.port().to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend((count as u16).to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
}

/// Bytes that have not been read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Bytes)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }
    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = Ipv6Addr::from(self.take::<16>()?).to_canonical();
        Ok(SocketAddr::new(ip, self.u16()?))
    }
    fn count(&mut self, limit: usize) -> Result<usize, Malformed> {
        let count = usize::from(self.u16()?);
        if count <= limit { Ok(count) } else { Err(Malformed::Bytes) }
    }
    fn group(&mut self) -> Result<BundleGroup, Malformed> {
        let name = self.name()?;
        match self.u8()? {
            marks if marks & !(mark::KEYED | mark::LOCAL) == 0 => {
                Ok(BundleGroup { name, keyed: marks & mark::KEYED != 0, local: marks & mark::LOCAL != 0 })
            }
            _ => Err(Malformed::Bytes),
        }
    }
    fn name(&mut self) -> Result<String, Malformed> {
        let len = usize::from(self.u8()?);
        if len > NAME_BYTES {
            return Err(Malformed::Bytes);
        }
        let (name, rest) = self.0.split_at_checked(len).ok_or(Malformed::Bytes)?;
        self.0 = rest;
        Ok(std::str::from_utf8(name).map_err(|_| Malformed::Bytes)?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        Bundle {
            worker: 5,
            incarnation: 3,
            doorbell: "127.0.0.1:4711".parse().expect("an address"),
            stop_grace_ms: 1000,
            layout_digest: 4,
            geometry: Geometry {
                slots: 2,
                slot_bytes: 128,
                request_arena_bytes: 4096,
                reply_arena_bytes: 8192,
            },
            waiting: Waiting::Block,
            pin: Some(3),
            group: GroupId(0),
            groups: vec![
                BundleGroup { name: "g".into(), keyed: false, local: false },
                BundleGroup { name: "h".into(), keyed: true, local: false },
                BundleGroup { name: "i".into(), keyed: true, local: true },
            ],
            nodes: vec![
                BundleNode { name: "a".into(), group: GroupId(0), edges: vec![("b".into(), NodeId(1))] },
                BundleNode { name: "b".into(), group: GroupId(2), edges: Vec::new() },
            ],
        }
    }

    #[test]
    fn boot_01_every_message_round_trips() {
        let refusals = [Refusal::Version(7), Refusal::Layout, Refusal::NotBuilt(513)].map(Message::Refused);
        let words = [Message::Mapped(40_000), Message::Sealed];
        for message in [Message::Bundle(Box::new(bundle()))].into_iter().chain(words).chain(refusals) {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn a_malformed_message_is_refused_without_a_panic() {
        let good = Message::Bundle(Box::new(bundle())).encode();
        for len in 0..good.len() {
            assert!(Message::decode(&good[..len]).is_err());
        }
        for at in 0..good.len() {
            for flip in [1, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let _ = Message::decode(&bad);
            }
        }
        let mut other = good.clone();
        other[5] = 9;
        assert_eq!(Message::decode(&other), Err(Malformed::Version(9)));
        let mut longer = good;
        longer.push(0);
        assert_eq!(Message::decode(&longer), Err(Malformed::Bytes));
    }

    #[test]
    fn an_unknown_mark_of_a_group_is_refused() {
        let good = Message::Bundle(Box::new(bundle())).encode();
        let name_of_h = good.windows(3).position(|bytes| bytes == [1, b'h', mark::KEYED]).unwrap();
        let mut bad = good;
        bad[name_of_h + 2] |= 4;
        assert_eq!(Message::decode(&bad), Err(Malformed::Bytes));
    }

    #[test]
    fn the_largest_node_travels() {
        let edges = (0..PLAN_EDGES).map(|i| (i.to_string(), NodeId(1))).collect();
        let mut large = bundle();
        large.nodes[0].edges = edges;
        let message = Message::Bundle(Box::new(large));
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}
