//! Payload of an error terminal: class, code, length, text.
//!
//! ```text
//! 0 class u16   2 text_len u16   4 code u32   8 text (UTF-8)
//! ```
//!
//! It always fits the inline part of the smallest slot or is cut to do so, hence an error never
//! waits for arena room.

use crate::base::failure::{ExecutionClass, cut};
use crate::base::limits::ERROR_TEXT_BYTES;

/// Bytes before the text.
pub const HEAD_BYTES: usize = 8;
/// An error payload never has more bytes.
pub const MAX_BYTES: usize = HEAD_BYTES + ERROR_TEXT_BYTES;

/// Writes an error payload of at most `room` bytes; returns its length.
pub fn encode(class: ExecutionClass, code: u32, text: &str, room: usize, out: &mut [u8; MAX_BYTES]) -> usize {
    let text = cut(text, ERROR_TEXT_BYTES.min(room.saturating_sub(HEAD_BYTES)));
    out[..2].copy_from_slice(&(class as u16).to_le_bytes());
    out[2..4].copy_from_slice(&(text.len() as u16).to_le_bytes());
    out[4..8].copy_from_slice(&code.to_le_bytes());
    out[HEAD_BYTES..HEAD_BYTES + text.len()].copy_from_slice(text.as_bytes());
    HEAD_BYTES + text.len()
}

/// What an error payload says, or `None` if it is not one.
pub fn decode(bytes: &[u8]) -> Option<(ExecutionClass, u32, &str)> {
    let (head, text) = bytes.split_at_checked(HEAD_BYTES)?;
    let class = ExecutionClass::from_code(u16::from_le_bytes([head[0], head[1]]))?;
    let text_len = usize::from(u16::from_le_bytes([head[2], head[3]]));
    let code = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if text_len != text.len() || text_len > ERROR_TEXT_BYTES {
        return None;
    }
    Some((class, code, std::str::from_utf8(text).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_is_cut_to_the_room() {
        let mut out = [0; MAX_BYTES];
        let len = encode(ExecutionClass::Panic, 3, "too bad", 200, &mut out);
        assert_eq!(decode(&out[..len]), Some((ExecutionClass::Panic, 3, "too bad")));
        let len = encode(ExecutionClass::NodeError, 3, &"é".repeat(100), 64, &mut out);
        assert!(len <= 64);
        assert!(decode(&out[..len]).is_some());
    }

    #[test]
    fn refuses_what_is_not_well_formed() {
        let mut out = [0; MAX_BYTES];
        let len = encode(ExecutionClass::Panic, 3, "x", 200, &mut out);
        assert_eq!(decode(&out[..len - 1]), None);
        assert_eq!(decode(&out[..len + 1]), None);
        out[0] = 99;
        assert_eq!(decode(&out[..len]), None);
        assert_eq!(decode(&[1, 0, 1, 0, 0, 0, 0, 0, 0xFF]), None);
        assert_eq!(decode(&[]), None);
    }
}
