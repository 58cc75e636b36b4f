//! A draft in three parts, and putting them together again.
//!
//! With this the first group hands each line on in several outputs, and whoever receives them needs all, each once, in
//! their order, and of the same line: an engine that lost one, repeated one after a death, or let another line's come in
//! between would be seen at once.
//!
//! ```text
//!   number   u8   0, 1, 2
//!   piece    the rest
//! ```

use std::fmt;

use handbell::TraceId;

/// How many parts a draft has.
const PARTS: usize = 3;

/// Cuts a draft; a short one has parts without a piece.
pub fn split(draft: &[u8]) -> [Vec<u8>; PARTS] {
    let piece = draft.len().div_ceil(PARTS);
    let cut = |number: usize| (number * piece).min(draft.len());
    std::array::from_fn(|number| [&[number as u8], &draft[cut(number)..cut(number + 1)]].concat())
}

/// Why a part does not fit to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartError {
    /// It has no number, or one that no part has.
    Number,
    /// It has come before.
    Repeated,
    /// One before it is missing.
    Missing,
}

impl fmt::Display for PartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Number => "the part has no number",
            Self::Repeated => "the part has come before",
            Self::Missing => "a part is missing",
        })
    }
}

/// Puts parts together.
#[derive(Default)]
pub struct Join {
    /// The line whose parts come now, or came last.
    line: TraceId,
    /// How many have come.
    count: usize,
    draft: Vec<u8>,
}

impl Join {
    /// Takes the next part; the whole draft behind the last one.
    ///
    /// # Errors
    /// If it is not the next one of its line. A line that is cut off half-way has no further parts; the next line begins
    /// anew.
    pub fn take(&mut self, line: TraceId, part: &[u8]) -> Result<Option<&[u8]>, PartError> {
        let (number, piece) = part.split_first().ok_or(PartError::Number)?;
        if line != self.line {
            (self.line, self.count) = (line, 0);
            self.draft.clear();
        }
        match usize::from(*number) {
            number if number >= PARTS => return Err(PartError::Number),
            number if number < self.count => return Err(PartError::Repeated),
            number if number > self.count => return Err(PartError::Missing),
            _ => {}
        }
        self.count += 1;
        self.draft.extend_from_slice(piece);
        Ok((self.count == PARTS).then_some(&self.draft))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: TraceId = TraceId([1; 16]);
    const SECOND: TraceId = TraceId([2; 16]);

    #[test]
    fn what_was_split_is_put_together() {
        let mut join = Join::default();
        for len in 0..20 {
            let draft: Vec<u8> = (0..len).collect();
            let [first, second, third] = split(&draft);
            let line = TraceId([len + 1; 16]);
            assert_eq!(join.take(line, &first), Ok(None));
            assert_eq!(join.take(line, &second), Ok(None));
            assert_eq!(join.take(line, &third), Ok(Some(&draft[..])));
        }
    }

    #[test]
    fn each_part_comes_once_and_in_its_order() {
        let [first, second, third] = split(b"a draft");
        let mut join = Join::default();
        assert_eq!(join.take(FIRST, &second), Err(PartError::Missing));
        assert_eq!(join.take(FIRST, &first), Ok(None));
        assert_eq!(join.take(FIRST, &first), Err(PartError::Repeated));
        assert_eq!(join.take(FIRST, &third), Err(PartError::Missing));
        assert_eq!(join.take(FIRST, &second), Ok(None));
        // Another line's in between.
        assert_eq!(join.take(SECOND, &third), Err(PartError::Missing));
        assert_eq!(join.take(FIRST, &third), Err(PartError::Missing));
        assert_eq!(join.take(SECOND, &[]), Err(PartError::Number));
        assert_eq!(join.take(SECOND, &[3, 1]), Err(PartError::Number));
    }

    #[test]
    fn a_whole_line_has_no_further_parts() {
        let [first, second, third] = split(b"a draft");
        let mut join = Join::default();
        for part in [&first, &second, &third] {
            assert!(join.take(FIRST, part).is_ok());
        }
        for part in [&first, &second, &third] {
            assert_eq!(join.take(FIRST, part), Err(PartError::Repeated));
        }
    }
}
