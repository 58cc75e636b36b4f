//! How both sides of a lane wait for each other.

/// Waiting policy of an engine and its workers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Waiting {
    /// Look without end: lowest latency, for processors that are dedicated to it.
    Spin = 0,
    /// Look for about as long as a wake-up would cost, then sleep.
    #[default]
    Adaptive = 1,
    /// Sleep at once: least processor time.
    Block = 2,
}

impl Waiting {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Self::Spin, Self::Adaptive, Self::Block].into_iter().find(|policy| *policy as u8 == code)
    }
}
