//! One sealed memfd: made by the engine, verified by the worker, mapped by both.
//!
//! Order at the engine: create and allocate whole → write the header → fix the size → map → (request
//! segment at once, reply segment after the worker has mapped it) close it for writing. Whoever
//! receives a segment checks size and seals first and maps then; what is not sealed is refused.
//! `F_SEAL_FUTURE_WRITE` leaves the mapping that exists writable and makes every later one read-only,
//! whichever way the descriptor is reached.
//!
//! Nothing has a name in a file system; the memory goes with the last descriptor or mapping.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::view::View;
use crate::os::map::Mapping;
use crate::os::memfd::{self, Sealing};
use crate::wire::geometry::Geometry;
use crate::wire::segment::{SegmentHeader, Side};

/// Why a segment was refused.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// The operating system refused.
    #[error("{step} the {side} segment: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// Which segment.
        side: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The other side did not seal it as it must.
    #[error("the {side} segment is not sealed")]
    NotSealed {
        /// Which segment.
        side: &'static str,
    },
    /// It has another size than announced.
    #[error("the {side} segment has {found} bytes instead of {expected}")]
    Size {
        /// Which segment.
        side: &'static str,
        /// Bytes found.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Its header is not the announced one.
    #[error("the {side} segment's header is not the announced one")]
    Header {
        /// Which segment.
        side: &'static str,
    },
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Request => "request",
        Side::Reply => "reply",
    }
}

fn system(step: &'static str, side: Side) -> impl FnOnce(io::Error) -> SegmentError {
    move |source| SegmentError::System { step, side: name(side), source }
}

fn total(side: Side, geometry: &Geometry) -> usize {
    match side {
        Side::Request => geometry.request().total,
        Side::Reply => geometry.reply().total,
    }
}

/// A segment that this engine made: descriptor and mapping.
pub struct Created {
    fd: OwnedFd,
    side: Side,
    view: View,
}

impl Created {
    /// Creates, allocates, writes the header, fixes the size and maps. The request segment is mapped
    /// writable and closed for further writers; the reply segment is mapped read-only and left open
    /// for the one writable mapping of the worker.
    pub fn new(side: Side, geometry: &Geometry, incarnation: u64) -> Result<Self, SegmentError> {
        let bytes = total(side, geometry);
        let memory_name = match side {
            Side::Request => "handbell-request",
            Side::Reply => "handbell-reply",
        };
        let fd = memfd::create(memory_name, bytes as u64).map_err(system("allocating", side))?;
        let header = SegmentHeader::new(side, geometry, incarnation);
        memfd::write_at(fd.as_fd(), 0, header.as_bytes()).map_err(system("writing the header of", side))?;
        memfd::seal(fd.as_fd(), Sealing::Size).map_err(system("sealing", side))?;
        let mapping = match side {
            Side::Request => Mapping::writable(fd.as_fd(), bytes),
            Side::Reply => Mapping::read_only(fd.as_fd(), bytes),
        };
        let view = View::new(mapping.map_err(system("mapping", side))?);
        let created = Self { fd, side, view };
        if side == Side::Request {
            created.close_for_writing()?;
        }
        Ok(created)
    }

    /// Takes the right to make writable mappings away from everybody, and reads the seals back.
    pub fn close_for_writing(&self) -> Result<(), SegmentError> {
        memfd::seal(self.fd.as_fd(), Sealing::Written).map_err(system("sealing", self.side))?;
        check_seals(self.fd.as_fd(), self.side, &[Sealing::Size, Sealing::Written])?;
        check_size(self.fd.as_fd(), self.side, self.view.bytes())
    }

    /// For handing the descriptor to the worker.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives up the descriptor; the mapping stays.
    pub fn into_view(self) -> View {
        self.view
    }
}

/// Maps a segment that was received, after its size and seals have been checked.
pub fn open_received(
    side: Side,
    fd: BorrowedFd<'_>,
    geometry: &Geometry,
    incarnation: u64,
) -> Result<View, SegmentError> {
    let bytes = total(side, geometry);
    let seals: &[Sealing] = match side {
        Side::Request => &[Sealing::Size, Sealing::Written],
        Side::Reply => &[Sealing::Size],
    };
    check_seals(fd, side, seals)?;
    check_size(fd, side, bytes)?;
    let mapping = match side {
        Side::Request => Mapping::read_only(fd, bytes),
        Side::Reply => Mapping::writable(fd, bytes),
    };
    let view = View::new(mapping.map_err(system("mapping", side))?);
    let mut head = [0; size_of::<SegmentHeader>()];
    view.copy_out(0, &mut head);
    let expected = SegmentHeader::new(side, geometry, incarnation);
    match SegmentHeader::read_from_bytes(&head) {
        Ok(found) if found == expected => Ok(view),
        _ => Err(SegmentError::Header { side: name(side) }),
    }
}

/// Checks that the reply segment has been closed for writing by the engine.
pub fn check_closed(side: Side, fd: BorrowedFd<'_>) -> Result<(), SegmentError> {
    check_seals(fd, side, &[Sealing::Size, Sealing::Written])
}

fn check_seals(fd: BorrowedFd<'_>, side: Side, seals: &[Sealing]) -> Result<(), SegmentError> {
    for &sealing in seals {
        if !memfd::is_sealed(fd, sealing).map_err(system("reading the seals of", side))? {
            return Err(SegmentError::NotSealed { side: name(side) });
        }
    }
    Ok(())
}

fn check_size(fd: BorrowedFd<'_>, side: Side, expected: usize) -> Result<(), SegmentError> {
    let found = memfd::size(fd).map_err(system("reading the size of", side))?;
    if found != expected as u64 {
        return Err(SegmentError::Size { side: name(side), found, expected: expected as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::view::Memory;

    const GEOMETRY: Geometry =
        Geometry { slots: 4, slot_bytes: 128, request_arena_bytes: 4096, reply_arena_bytes: 4096 };

    #[test]
    fn each_segment_has_one_writer() {
        let request = Created::new(Side::Request, &GEOMETRY, 1).unwrap();
        let worker = open_received(Side::Request, request.fd(), &GEOMETRY, 1).unwrap();
        assert!(request.view.is_writable() && !worker.is_writable());
        request.view.store_release(128, 5);
        assert_eq!(worker.load_acquire(128), 5);
        assert!(Mapping::writable(request.fd(), request.view.bytes()).is_err());

        let reply = Created::new(Side::Reply, &GEOMETRY, 1).unwrap();
        let worker = open_received(Side::Reply, reply.fd(), &GEOMETRY, 1).unwrap();
        assert!(matches!(check_closed(Side::Reply, reply.fd()), Err(SegmentError::NotSealed { .. })));
        reply.close_for_writing().unwrap();
        check_closed(Side::Reply, reply.fd()).unwrap();
        worker.store_release(128, 6);
        assert_eq!(reply.into_view().load_acquire(128), 6);
    }

    #[test]
    fn what_is_not_as_announced_is_refused() {
        let request = Created::new(Side::Request, &GEOMETRY, 1).unwrap();
        let refused = open_received(Side::Request, request.fd(), &GEOMETRY, 2);
        assert!(matches!(refused, Err(SegmentError::Header { .. })));
        let larger = Geometry { request_arena_bytes: 8192, ..GEOMETRY };
        let refused = open_received(Side::Request, request.fd(), &larger, 1);
        assert!(matches!(refused, Err(SegmentError::Size { .. })));
        let bytes = GEOMETRY.request().total as u64;
        let bare = memfd::create("bare", bytes).unwrap();
        let refused = open_received(Side::Request, bare.as_fd(), &GEOMETRY, 1);
        assert!(matches!(refused, Err(SegmentError::NotSealed { .. })));
    }
}
