//! Shared mappings and their lifetime.
//!
//! Owns the address range and unmaps it at drop. Never reads or writes a
//! mapped byte and hands out no reference into one: another process may change
//! the bytes at any time, so how they are accessed is for the caller to settle.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::memfd;

/// One shared mapping of the start of a file, unmapped at drop.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Maps the first `bytes` of `fd` for reading and writing, shared.
    ///
    /// The pages are faulted in now, so that no request pays for it later, and
    /// the range is left out of forked children and of core dumps.
    ///
    /// # Errors
    /// `InvalidInput` if `bytes` is zero or the file is shorter than that (a
    /// later access would fault); `PermissionDenied` if the file is sealed
    /// against writing; else what `mmap` reports.
    pub fn writable(fd: BorrowedFd, bytes: usize) -> io::Result<Mapping> {
        Self::map(fd, bytes, true)
    }

    /// Maps the first `bytes` of `fd` for reading only, shared.
    ///
    /// Faulted in and left out of forks and dumps like [`Mapping::writable`].
    /// If the descriptor allows writing and the file is not sealed, the
    /// protection can be raised by code in this process: only a
    /// [`memfd::Sealing::Written`] seal makes it a boundary.
    ///
    /// # Errors
    /// `InvalidInput` if `bytes` is zero or the file is shorter than that; else
    /// what `mmap` reports.
    pub fn read_only(fd: BorrowedFd, bytes: usize) -> io::Result<Mapping> {
        Self::map(fd, bytes, false)
    }

    fn map(fd: BorrowedFd, bytes: usize, writable: bool) -> io::Result<Mapping> {
        if bytes == 0 || memfd::size(fd)? < bytes as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut options = MmapOptions::new();
        options.len(bytes).populate();
        let raw = if writable {
            options.map_raw(fd.as_raw_fd())?
        } else {
            options.map_raw_read_only(fd.as_raw_fd())?
        };
        raw.advise(Advice::DontFork)?;
        raw.advise(Advice::DontDump)?;
        Ok(Mapping { raw, writable })
    }

    /// The first mapped byte, page-aligned; valid for [`Mapping::bytes`] bytes
    /// for as long as this value lives.
    pub fn base(&self) -> NonNull<u8> {
        match NonNull::new(self.raw.as_mut_ptr()) {
            Some(base) => base,
            None => unreachable!("the kernel chose the address, and never chooses null"),
        }
    }

    /// The length that was asked for, in bytes.
    pub fn bytes(&self) -> usize {
        self.raw.len()
    }

    /// Gives the memory back and keeps the addresses: from now on this process finds zeros there, and what it
    /// stores there reaches nobody. In one step, as seen by threads that are at work on the range.
    ///
    /// # Errors
    /// What `mmap` reports; then the mapping is as it was.
    #[allow(unsafe_code)]
    pub fn let_go(&self) -> io::Result<()> {
        let (prot, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE);
        // SAFETY: replaces exactly the range that this value owns, and will unmap. Who holds pointers into it finds
        // readable and writable memory there, before and after; that the bytes change is what a mapping that another
        // process may write must expect anyway.
        let at = unsafe { mmap_anonymous(self.raw.as_mut_ptr().cast(), self.raw.len(), prot, flags) }?;
        debug_assert_eq!(at, self.raw.as_mut_ptr().cast());
        // A stray store shall cost a page, not a huge one. Where the kernel knows no such pages it refuses.
        let _ = self.raw.advise(Advice::NoHugePage);
        self.raw.advise(Advice::DontFork)
    }

    /// Whether stores through [`Mapping::base`] are allowed; a store to a
    /// read-only mapping kills the process.
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use super::super::memfd::{Sealing, create, seal};
    use super::*;
    use std::os::fd::AsFd;

    const SIZE: usize = 8 * 4096;

    /// What the kernel says about the mapping in `/proc/self/smaps`.
    fn smaps_of(mapping: &Mapping) -> String {
        let start = format!("{:x}-", mapping.base().as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = smaps.lines().position(|line| line.starts_with(&start)).unwrap();
        let rest: Vec<&str> = smaps.lines().skip(from).collect();
        let end = rest.iter().position(|line| line.starts_with("VmFlags"));
        rest[..=end.unwrap()].join("\n")
    }

    #[test]
    fn a_mapping_may_move_and_be_shared_between_threads() {
        fn everywhere<T: Send + Sync>() {}
        everywhere::<Mapping>();
    }

    #[test]
    fn two_mappings_share_their_bytes() {
        let fd = create("share", SIZE as u64).unwrap();
        let writer = Mapping::writable(fd.as_fd(), SIZE).unwrap();
        let reader = Mapping::read_only(fd.as_fd(), SIZE).unwrap();
        assert!(writer.is_writable() && !reader.is_writable());
        assert_eq!((writer.bytes(), reader.bytes()), (SIZE, SIZE));
        // SAFETY: both ranges are mapped for SIZE bytes, the first one is
        // writable, and only this thread touches them.
        let seen = unsafe {
            writer.base().add(SIZE - 1).write_volatile(42);
            reader.base().add(SIZE - 1).read_volatile()
        };
        assert_eq!(seen, 42);
    }

    #[test]
    fn pages_are_resident_and_kept_from_forks_and_dumps() {
        let fd = create("flags", SIZE as u64).unwrap();
        for mapping in
            [Mapping::writable(fd.as_fd(), SIZE).unwrap(), Mapping::read_only(fd.as_fd(), SIZE).unwrap()]
        {
            let smaps = smaps_of(&mapping);
            let flags = smaps.lines().last().unwrap();
            assert!(flags.contains(" dc") && flags.contains(" dd"), "{flags}");
            let resident = format!("{} kB", SIZE / 1024);
            assert!(
                smaps.lines().any(|line| line.starts_with("Rss:") && line.ends_with(&resident)),
                "{smaps}"
            );
        }
    }

    #[test]
    fn a_sealed_file_keeps_its_reader_from_becoming_a_writer() {
        let fd = create("raise", SIZE as u64).unwrap();
        seal(fd.as_fd(), Sealing::Written).unwrap();
        let reader = Mapping::read_only(fd.as_fd(), SIZE).unwrap();
        // SAFETY: changes only the protection of a range this test owns.
        let raised = unsafe {
            libc::mprotect(reader.base().as_ptr().cast(), SIZE, libc::PROT_READ | libc::PROT_WRITE)
        };
        assert_eq!(raised, -1);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn more_than_the_file_holds_is_refused() {
        let fd = create("short", 4096).unwrap();
        for bytes in [0, 4097, usize::MAX] {
            let error = Mapping::read_only(fd.as_fd(), bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_let_go_holds_no_memory_and_may_be_touched() {
        let fd = create("let-go", SIZE as u64).unwrap();
        for mapping in
            [Mapping::writable(fd.as_fd(), SIZE).unwrap(), Mapping::read_only(fd.as_fd(), SIZE).unwrap()]
        {
            mapping.let_go().unwrap();
            let smaps = smaps_of(&mapping);
            assert!(!smaps.contains("memfd") && smaps.contains("\nRss:                   0 kB"), "{smaps}");
            // SAFETY: mapped for SIZE bytes, readable and writable, and only this thread touches it.
            let seen = unsafe {
                mapping.base().add(SIZE - 1).write_volatile(42);
                [mapping.base().read_volatile(), mapping.base().add(SIZE - 1).read_volatile()]
            };
            assert_eq!(seen, [0, 42]);
        }
    }

    #[test]
    fn dropping_unmaps() {
        let fd = create("drop", SIZE as u64).unwrap();
        let mapping = Mapping::writable(fd.as_fd(), SIZE).unwrap();
        let inode = format!(" {} ", rustix::fs::fstat(&fd).unwrap().st_ino);
        let mapped = || {
            std::fs::read_to_string("/proc/self/maps")
                .unwrap()
                .lines()
                .any(|line| line.contains(&inode) && line.contains("memfd:drop"))
        };
        assert!(mapped());
        drop(mapping);
        assert!(!mapped());
    }
}
