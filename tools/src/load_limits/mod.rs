//! Load limits: a small decision pipeline whose every answer depends on all answers before it.
//!
//! Customers load money onto accounts; each input line is one attempt, as a JSON object:
//!
//! ```json
//! {"id":"15887","customer_id":"528","load_amount":"$3318.47","time":"2000-01-01T00:00:00Z"}
//! ```
//!
//! and each gets exactly one reply line, in input order:
//!
//! ```json
//! {"id":"15887","customer_id":"528","accepted":true}
//! ```
//!
//! # Rules
//!
//! A line passes six nodes, one after the other:
//!
//! ```text
//!   ingress               policy                            egress
//!   parse ──► gate ──► features ──► evaluate ──► update ──► format
//!   no state  └───────── one Policy, one process ────────┘  no state
//! ```
//!
//! 1. **parse** reads the line ([`record`]). A malformed one is declined here; it claims no id,
//!    counts as no attempt and changes nothing. Day and week (which begins on Monday) are those of
//!    the UTC instant.
//! 2. **gate** declines a line whose id came before, from whichever customer and whatever became of
//!    it, and nothing else changes: a *replay* if customer, amount and instant are those of the
//!    first, else a *conflict*.
//! 3. **features** reads the windows: what this customer attempted and loaded on this day and in
//!    this week.
//! 4. **evaluate** declines at the first limit passed; equal to a limit is allowed: 3 attempts per
//!    customer and day, 5,000.00 loaded per customer and day, 20,000.00 per customer and week.
//! 5. **update** counts the attempt, also a declined one, and adds what was accepted to the sums.
//! 6. **format** writes the reply ([`reply`]); on request with the reason of a decline.
//!
//! The experiment rules add two: an amount loaded on a Monday counts double in every sum and check,
//! and between the check of attempts and those of the sums, a line whose id is a prime number is
//! declined if it counts for more than 9,999.00, or if a prime id was already accepted on that day
//! from anyone.
//!
//! # Files
//!
//! [`decimal_id`] and [`instant`] are the vocabulary, [`record`] the input, [`policy`] the state,
//! [`wire`] what travels from node to node, [`reply`] the output, [`nodes`] the binding to the
//! engine, [`parts`] what the first group may hand on in place of a whole draft, and [`generator`] makes input with every corner of `corners` in it. `oracle` says it all
//! a second time, plainly and slowly, for the tests.

mod corners;
pub mod decimal_id;
pub mod generator;
pub mod instant;
pub mod nodes;
pub mod parts;
pub mod policy;
pub mod record;
pub mod reply;
pub mod wire;

#[cfg(test)]
mod oracle;

use policy::{Policy, Rules};
use wire::{Draft, Stage};

/// What the caller may choose; it travels with each request, so that no process needs to be told
/// beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// By which rules lines are decided.
    pub rules: Rules,
    /// Whether declined replies say why.
    pub reasons: bool,
    /// Ids that the policy keeps, a power of two; none: any number.
    pub max_ids: Option<u64>,
    /// If lines are handed to the policy in three parts: how long behind the others the last one comes, in milliseconds.
    pub split_ms: Option<u8>,
}

impl Options {
    /// The largest bound on ids.
    pub const MOST_IDS: u64 = 1 << 62;
    /// The longest wait between parts.
    pub const MOST_SPLIT_MS: u8 = 250;
    const EXPERIMENT: u16 = 1;
    const REASONS: u16 = 1 << 1;
    /// The exponent of the bound on ids, + 1; 0 without one.
    const BOUND: u32 = 2;
    const BOUNDS: u16 = 0x3F << Self::BOUND;
    /// Of parts, the milliseconds + 1; 0 without any.
    const SPLIT: u32 = 8;

    /// As a request's scenario tag.
    pub fn to_scenario(self) -> u16 {
        let rules = match self.rules {
            Rules::Baseline => 0,
            Rules::Experiment => Self::EXPERIMENT,
        };
        let reasons = if self.reasons { Self::REASONS } else { 0 };
        let bound = self.max_ids.map_or(0, |ids| ids.ilog2() as u16 + 1);
        let split = self.split_ms.map_or(0, |ms| u16::from(ms) + 1);
        rules | reasons | bound << Self::BOUND | split << Self::SPLIT
    }

    /// From a request's scenario tag; none if it says what nobody defined.
    pub fn from_scenario(scenario: u16) -> Option<Self> {
        let max_ids = ((scenario & Self::BOUNDS) >> Self::BOUND).checked_sub(1).map(|exponent| 1 << exponent);
        let split_ms = ((scenario >> Self::SPLIT) as u8).checked_sub(1);
        if split_ms > Some(Self::MOST_SPLIT_MS) {
            return None;
        }
        let rules = if scenario & Self::EXPERIMENT == 0 { Rules::Baseline } else { Rules::Experiment };
        Some(Self { rules, reasons: scenario & Self::REASONS != 0, max_ids, split_ms })
    }
}

/// One of the nodes that share the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Declines repeats.
    Gate,
    /// Reads the windows.
    Features,
    /// Decides.
    Evaluate,
    /// Writes the windows.
    Update,
}

impl Step {
    /// All steps, in the order in which a line takes them.
    pub const ALL: [Self; 4] = [Self::Gate, Self::Features, Self::Evaluate, Self::Update];

    /// The node's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Features => "features",
            Self::Evaluate => "evaluate",
            Self::Update => "update",
        }
    }

    /// The step of the node called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }

    /// Takes the line one step on; none if it has not come as far as this step, or is already
    /// beyond it.
    ///
    /// What was refused passes every step untouched: it must change nothing.
    pub fn advance<'a>(self, draft: Draft<'a>, policy: &mut Policy, rules: Rules) -> Option<Draft<'a>> {
        let stage = match (self, draft.stage) {
            (_, Stage::Refused(reason)) => Stage::Refused(reason),
            (Self::Gate, Stage::Parsed(record)) => match policy.gate(&record) {
                Some(repeat) => Stage::Refused(repeat),
                None => Stage::Parsed(record),
            },
            (Self::Features, Stage::Parsed(record)) => {
                Stage::Measured(record, policy.features(&record, rules))
            }
            (Self::Evaluate, Stage::Measured(record, features)) => {
                Stage::Decided(record, features, features.evaluate(&record, rules))
            }
            (Self::Update, Stage::Decided(record, features, decision)) => {
                policy.update(&record, &features, decision);
                Stage::Decided(record, features, decision)
            }
            _ => return None,
        };
        Some(Draft { stage, ..draft })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_tag() {
        for rules in [Rules::Baseline, Rules::Experiment] {
            for reasons in [false, true] {
                for max_ids in [None, Some(1), Some(1 << 20), Some(Options::MOST_IDS)] {
                    for split_ms in [None, Some(0), Some(Options::MOST_SPLIT_MS)] {
                        let options = Options { rules, reasons, max_ids, split_ms };
                        assert_eq!(Options::from_scenario(options.to_scenario()), Some(options));
                    }
                }
            }
        }
        assert_eq!([252 << 8, u16::MAX].map(Options::from_scenario), [None; 2]);
    }

    #[test]
    fn a_step_out_of_order_is_refused() {
        let mut policy = Policy::default();
        let parsed = record::parse_line(
            br#"{"id":"1","customer_id":"2","load_amount":"$3.00","time":"2000-01-01T00:00:00Z"}"#,
        );
        let draft = parsed.draft();
        assert_eq!(Step::Evaluate.advance(draft, &mut policy, Rules::Baseline), None);
        assert_eq!(Step::Update.advance(draft, &mut policy, Rules::Baseline), None);
        let measured = Step::Features.advance(draft, &mut policy, Rules::Baseline).unwrap();
        assert_eq!(Step::Gate.advance(measured, &mut policy, Rules::Baseline), None);
    }
}
