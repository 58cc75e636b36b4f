//! Memory that two processes share, for measuring what the machine charges.
//!
//! Owns the only raw access outside the engine itself. Words are atomics. Bytes are copied by whoever has the
//! turn, which the words say: both processes run this program and keep to it, so no copy meets a write. A region
//! is not `Sync`, so within one process there is one thread that copies.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};

/// Shared memory, mapped.
pub struct Region {
    map: MmapRaw,
    /// Neither `Sync`.
    one_thread: PhantomData<Cell<()>>,
}

impl Region {
    /// A new one, and the file by which another process maps it.
    pub fn create(bytes: usize) -> io::Result<(Self, File)> {
        let file = File::from(memfd_create("handbell-measure", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes as u64)?;
        Ok((Self::open(&file)?, file))
    }

    /// The one behind `file`.
    pub fn open(file: &File) -> io::Result<Self> {
        let map = MmapOptions::new().populate().map_raw(file)?;
        Ok(Self { map, one_thread: PhantomData })
    }

    fn place(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.map.len()), "outside of the region");
        self.map.as_mut_ptr().wrapping_add(at)
    }

    /// The word at `at`.
    #[inline(always)]
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8));
        // SAFETY: inside the mapping, which begins on a page, aligned, mapped for as long as the borrow; words
        // lie apart from the bytes that are copied.
        unsafe { AtomicU64::from_ptr(self.place(at, 8).cast()) }
    }

    /// The futex word at `at`.
    #[inline(always)]
    pub fn futex(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4));
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.place(at, 4).cast()) }
    }

    /// Copies `bytes` to `at`.
    #[inline(always)]
    pub fn write(&self, at: usize, bytes: &[u8]) {
        // SAFETY: inside the mapping; the turn is ours, see the top; private memory does not overlap it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.place(at, bytes.len()), bytes.len()) }
    }

    /// Copies what lies at `at` to `bytes`.
    #[inline(always)]
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        // SAFETY: as in `write`.
        unsafe { ptr::copy_nonoverlapping(self.place(at, bytes.len()), bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies within the region.
    #[inline(always)]
    pub fn copy(&self, from: usize, to: usize, bytes: usize) {
        // SAFETY: both inside the mapping; the turn is ours, see the top; `copy` allows an overlap.
        unsafe { ptr::copy(self.place(from, bytes), self.place(to, bytes), bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_show_the_same() {
        let (one, file) = Region::create(4096).expect("memory");
        let two = Region::open(&file).expect("it can be mapped");
        one.word(8).store(7, Ordering::Release);
        one.write(64, b"bells");
        let mut bytes = [0; 5];
        two.copy(64, 128, 5);
        one.read(128, &mut bytes);
        assert_eq!((two.word(8).load(Ordering::Acquire), &bytes), (7, b"bells"));
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn nothing_outside_is_reached() {
        let (region, _file) = Region::create(4096).expect("memory");
        region.write(4095, &[0; 2]);
    }
}
