//! Why something at the doorbell is refused, and how often it was.

/// The reason of a reject. Fixed: one for each guard, in the order of the guards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Reject {
    /// A connection from elsewhere than the announced place; closed unread.
    Stranger,
    /// The announced worker's connection ended, or its time did, before the handshake was done.
    Silence,
    /// Not 128 bytes, by the stream or by its own word.
    Length,
    /// Not a message of the doorbell.
    Magic,
    /// A schema that this build does not speak.
    Schema,
    /// The tag is not that of these bytes, of this session, of this direction.
    Tag,
    /// Another incarnation.
    Incarnation,
    /// Another worker.
    Worker,
    /// Not the next number: a replay, or a gap.
    Counter,
    /// A kind that does not exist.
    Kind,
    /// A kind that this side does not take, or not now.
    State,
    /// Further from the reader's clock than messages live.
    Time,
    /// Bytes that must be zero are not.
    Reserved,
    /// A value in the body is out of its range.
    Body,
    /// No version that both sides speak.
    Version,
    /// Engine and worker were built with different layouts.
    Layout,
}

impl Reject {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::Stranger,
        Self::Silence,
        Self::Length,
        Self::Magic,
        Self::Schema,
        Self::Tag,
        Self::Incarnation,
        Self::Worker,
        Self::Counter,
        Self::Kind,
        Self::State,
        Self::Time,
        Self::Reserved,
        Self::Body,
        Self::Version,
        Self::Layout,
    ];

    /// The reason's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Silence => "silence",
            Self::Length => "length",
            Self::Magic => "magic",
            Self::Schema => "schema",
            Self::Tag => "tag",
            Self::Incarnation => "incarnation",
            Self::Worker => "worker",
            Self::Counter => "counter",
            Self::Kind => "kind",
            Self::State => "state",
            Self::Time => "time",
            Self::Reserved => "reserved",
            Self::Body => "body",
            Self::Version => "version",
            Self::Layout => "layout",
        }
    }
}

/// A counter per reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rejects([u64; Reject::ALL.len()]);

impl Rejects {
    /// How often this was the reason.
    pub fn of(&self, reason: Reject) -> u64 {
        self.0[reason as usize]
    }

    /// How often there was any.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn count(&mut self, reason: Reject) {
        self.0[reason as usize] += 1;
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, more)| *own += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_name_and_a_counter_of_its_own() {
        let mut rejects = Rejects::default();
        let mut names = std::collections::BTreeSet::new();
        for (times, reason) in (1..).zip(Reject::ALL) {
            assert!(names.insert(reason.name()));
            (0..times).for_each(|_| rejects.count(reason));
        }
        let mut twice = rejects;
        twice.add(&rejects);
        for (times, reason) in (1..).zip(Reject::ALL) {
            assert_eq!((rejects.of(reason), twice.of(reason)), (times, 2 * times));
        }
        assert_eq!(rejects.total(), (1..=16).sum());
    }
}
