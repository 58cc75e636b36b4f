//! Randomness from the kernel.
//!
//! Owns the loop around `getrandom`. Never seeds or keeps a generator of its
//! own, so nothing has to be reset in a child.

use std::io;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills the whole of `buffer` with bytes fit for secrets.
///
/// # Errors
/// Whatever `getrandom` reports besides an interruption (which is retried);
/// the content of `buffer` is then unspecified.
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match getrandom(&mut buffer[done..], GetRandomFlags::empty()) {
            Ok(got) => done += got,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_fills_differ() {
        let (mut one, mut two) = ([0; 32], [0; 32]);
        fill(&mut one).unwrap();
        fill(&mut two).unwrap();
        assert_ne!(one, two);
        assert_ne!(one, [0; 32]);
    }

    #[test]
    fn a_long_buffer_is_filled_to_its_end() {
        let mut long = vec![0; 1 << 16];
        fill(&mut long).unwrap();
        assert!(long[long.len() - 64..].iter().any(|byte| *byte != 0));
        fill(&mut []).unwrap();
    }
}
