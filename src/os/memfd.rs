//! Sealable anonymous files: the memory that two processes share.
//!
//! Owns creation, size, seals and plain writes of a memfd. Never maps one
//! (that is `map`) and never decides when a file is finished.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
    memfd_create,
};
use rustix::io::{Errno, pwrite, retry_on_intr};

/// Which promise a seal makes. Seals are never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// The file can neither shrink nor grow: a mapping of it cannot fault
    /// because the other side truncated the file.
    Size,
    /// Nobody can write the file any more except through writable mappings
    /// that exist already, and no seal can be added.
    Written,
}

impl Sealing {
    fn flags(self) -> SealFlags {
        match self {
            Sealing::Size => SealFlags::SHRINK | SealFlags::GROW,
            Sealing::Written => SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        }
    }
}

/// Creates a memfd of `bytes` zero bytes whose pages are all allocated.
///
/// `name` only labels the file in `/proc`. Allocating here turns a lack of
/// memory into an error of this call instead of a fault at a later store. The
/// descriptor is close-on-exec, sealable and, where the kernel knows how, never
/// executable.
///
/// # Errors
/// `InvalidInput` for a size of zero, beyond the file offset range or a name
/// that is too long or holds a zero byte; else what the kernel reports
/// (no descriptor left, no memory left).
pub fn create(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    ftruncate(&fd, bytes)?;
    retry_on_intr(|| fallocate(&fd, FallocateFlags::empty(), 0, bytes))?;
    Ok(fd)
}

/// The size of the file in bytes.
///
/// # Errors
/// Whatever `fstat` reports.
pub fn size(fd: BorrowedFd) -> io::Result<u64> {
    Ok(fstat(fd)?.st_size as u64)
}

/// Adds the seals of `sealing`.
///
/// # Errors
/// `PermissionDenied` if the file was sealed against further seals or was
/// opened for reading only; `InvalidInput` if it cannot carry seals.
pub fn seal(fd: BorrowedFd, sealing: Sealing) -> io::Result<()> {
    Ok(fcntl_add_seals(fd, sealing.flags())?)
}

/// Whether all the seals of `sealing` are present.
///
/// # Errors
/// `InvalidInput` if the file cannot carry seals.
pub fn is_sealed(fd: BorrowedFd, sealing: Sealing) -> io::Result<bool> {
    Ok(fcntl_get_seals(fd)?.contains(sealing.flags()))
}

/// Writes all of `bytes` at offset `at`.
///
/// # Errors
/// What `pwrite` reports: `PermissionDenied` against a seal. Part of `bytes`
/// may have been written.
pub fn write_at(fd: BorrowedFd, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match retry_on_intr(|| pwrite(fd.as_fd(), &bytes[done..], at + done as u64))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            wrote => done += wrote,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::map::Mapping;
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const SIZE: u64 = 3 * 4096;

    #[test]
    fn a_new_file_is_sized_allocated_and_closed_on_exec() {
        let fd = create("new", SIZE).unwrap();
        assert_eq!(size(fd.as_fd()).unwrap(), SIZE);
        assert!(fstat(&fd).unwrap().st_blocks as u64 * 512 >= SIZE);
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert!(!is_sealed(fd.as_fd(), Sealing::Size).unwrap());
        assert!(!is_sealed(fd.as_fd(), Sealing::Written).unwrap());
    }

    #[test]
    fn impossible_requests_are_refused() {
        assert!(create("empty", 0).is_err());
        assert!(create("huge", u64::MAX).is_err());
        assert!(create(&"n".repeat(300), SIZE).is_err());
        assert!(create("zero\0byte", SIZE).is_err());
    }

    #[test]
    fn a_size_seal_refuses_both_directions() {
        let fd = create("sized", SIZE).unwrap();
        seal(fd.as_fd(), Sealing::Size).unwrap();
        assert!(is_sealed(fd.as_fd(), Sealing::Size).unwrap());
        assert!(!is_sealed(fd.as_fd(), Sealing::Written).unwrap());
        assert_eq!(ftruncate(&fd, SIZE - 1), Err(Errno::PERM));
        assert_eq!(ftruncate(&fd, SIZE + 1), Err(Errno::PERM));
        write_at(fd.as_fd(), 0, b"still writable").unwrap();
    }

    #[test]
    fn a_written_seal_refuses_everything_but_old_mappings() {
        let fd = create("written", SIZE).unwrap();
        let old = Mapping::writable(fd.as_fd(), SIZE as usize).unwrap();
        seal(fd.as_fd(), Sealing::Size).unwrap();
        seal(fd.as_fd(), Sealing::Written).unwrap();
        assert!(is_sealed(fd.as_fd(), Sealing::Written).unwrap());
        assert!(seal(fd.as_fd(), Sealing::Size).is_err());
        let refused = Mapping::writable(fd.as_fd(), SIZE as usize).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(write_at(fd.as_fd(), 0, b"no").is_err());
        assert!(Mapping::read_only(fd.as_fd(), SIZE as usize).is_ok());
        assert!(old.is_writable());
    }

    #[test]
    fn write_at_reaches_the_named_offset() {
        let fd = create("offset", SIZE).unwrap();
        write_at(fd.as_fd(), 4090, b"across a page").unwrap();
        let mut back = [0; 15];
        File::from(fd).read_exact_at(&mut back, 4089).unwrap();
        assert_eq!(&back, b"\0across a page\0");
    }
}
