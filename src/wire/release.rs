//! Entries of the release ring, through which the engine gives reply blocks back.
//!
//! One 64-bit word an entry: the low half is the block's arena offset in 64-byte units + 1 (never 0),
//! the high half the low 32 bits of position + 1, so that an entry of an earlier lap is not taken for a new one.

/// The entry that returns the block at `payload_at` as number `position`.
pub fn entry(position: u64, payload_at: u32) -> u64 {
    (position + 1) << 32 | u64::from(payload_at)
}

/// The block that `word` returns if it is entry number `position`, else `None`: not yet written.
pub fn block_of(word: u64, position: u64) -> Option<u32> {
    ((word >> 32) as u32 == (position + 1) as u32).then_some(word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_at_its_own_position_only() {
        assert_eq!(block_of(entry(0, 9), 0), Some(9));
        assert_eq!(block_of(entry(0, 9), 4096), None);
        assert_eq!(block_of(0, 0), None);
        let far = u64::from(u32::MAX) + 17;
        assert_eq!(block_of(entry(far, 1), far), Some(1));
    }
}
