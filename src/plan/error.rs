//! Why a plan is refused.

use std::ops::RangeInclusive;

use thiserror::Error;

/// Names of a circle that are shown; a longer one is cut.
const SHOWN: usize = 8;

/// Why a plan is refused. Nothing has been started.
///
/// Each names the thing, the value and the rule; `docs/plan-errors.md` in the repository shows all of them.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlanError {
    /// There is nothing to run.
    #[error("the plan has no group")]
    NoGroup,
    /// A modifier with nothing before it that it could speak of.
    #[error("{modifier} speaks of the last {of} before it, and there is none")]
    NothingToModify {
        /// The modifier.
        modifier: &'static str,
        /// What it speaks of: `group` or `edge`.
        of: &'static str,
    },
    /// A name that cannot be shown or sent.
    #[error("{what} name {name:?}: must be 1 to 64 of a-z, A-Z, 0-9, '-', '_', '.', ':'")]
    Name {
        /// What is named so.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two groups of one name.
    #[error("group '{name}' is stated twice")]
    DuplicateGroup {
        /// The name.
        name: String,
    },
    /// A group without nodes.
    #[error("group '{name}' has no node")]
    EmptyGroup {
        /// The group.
        name: String,
    },
    /// A node belongs to exactly one group, once.
    #[error("node '{node}' is in group '{first}' and again in group '{second}'")]
    NodeTwice {
        /// The node.
        node: String,
        /// Where it stands first.
        first: String,
        /// Where it stands again.
        second: String,
    },
    /// More of something than an engine can take.
    #[error("the plan has {count} {what}, the limit is {limit}")]
    TooMany {
        /// Of what: `nodes`, `edges` or `processes`.
        what: &'static str,
        /// How many the plan has.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A number outside of its range.
    #[error("{of}: {modifier} = {value}: must be between {} and {}", range.start(), range.end())]
    Range {
        /// The group or edge.
        of: String,
        /// What was stated of it.
        modifier: &'static str,
        /// The value.
        value: usize,
        /// What it must be.
        range: RangeInclusive<usize>,
    },
    /// What has one value was given two.
    #[error("{of}: {modifier} is stated twice")]
    StatedTwice {
        /// The group or edge.
        of: String,
        /// What was stated.
        modifier: String,
    },
    /// Two statements of one group that cannot both hold.
    #[error("group '{group}': {first} contradicts {second}: {rule}")]
    Contradiction {
        /// The group.
        group: String,
        /// One statement.
        first: String,
        /// The other.
        second: String,
        /// Why not both.
        rule: &'static str,
    },
    /// A text that the operating system cannot take. The text of a variable is not shown: it may be a secret.
    #[error("group '{group}': {what}: {rule}")]
    Text {
        /// The group.
        group: String,
        /// Which text.
        what: String,
        /// What it must be.
        rule: &'static str,
    },
    /// A processor that this process may not use.
    #[error("group '{group}': pin = {processor}: must be a processor that this process may use: {allowed:?}")]
    Pin {
        /// The group.
        group: String,
        /// The processor.
        processor: usize,
        /// Those that may be used.
        allowed: Vec<usize>,
    },
    /// An edge names a node that is in no group.
    #[error("edge '{from}' -> '{to}': node '{node}' is in no group")]
    UnknownNode {
        /// The unknown node.
        node: String,
        /// The edge's start.
        from: String,
        /// The edge's end.
        to: String,
    },
    /// Two edges of a node with one label.
    #[error("node '{from}' has two edges labelled '{label}'")]
    DuplicateEdge {
        /// The node.
        from: String,
        /// The label.
        label: String,
    },
    /// An edge that is no hop states how many there may be.
    #[error(
        "edge '{from}' -> '{to}': max_hops = {max_hops}: inside group '{group}' an edge is a call, not a hop"
    )]
    NotAHop {
        /// The edge's start.
        from: String,
        /// The edge's end.
        to: String,
        /// The value.
        max_hops: u16,
        /// The group that both belong to.
        group: String,
    },
    /// Edges inside a group that lead back to where they began: calls without end.
    #[error("the edges form a circle inside group '{group}': {}", around(nodes))]
    Circle {
        /// The group.
        group: String,
        /// The nodes of the circle, in its order.
        nodes: Vec<String>,
    },
    /// Groups that hand on to each other in a circle without a bound.
    #[error("the edges form a circle of groups, and none of them states max_hops: {}", around(groups))]
    GroupCircle {
        /// The groups of the circle, in its order.
        groups: Vec<String>,
    },
    /// The plan does not fit the datagram that carries it to a worker.
    #[error("the plan takes {bytes} bytes, the limit is {limit}: use fewer or shorter names")]
    TooLarge {
        /// Bytes of the plan.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The application has no code for a node.
    #[error("node '{node}' is in the plan, but the application registers no node of that name")]
    NotRegistered {
        /// The node.
        node: String,
    },
}

/// The way round a circle, back to its first name.
fn around(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect();
    if names.len() > SHOWN {
        shown.push(format!("{} more", names.len() - SHOWN));
    }
    shown.extend(names.first().map(|name| format!("'{name}'")));
    shown.join(" -> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_circle_is_cut() {
        let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        assert_eq!(around(&names[..1]), "'0' -> '0'");
        assert_eq!(around(&names), "'0' -> '1' -> '2' -> '3' -> '4' -> '5' -> '6' -> '7' -> 12 more -> '0'");
    }
}
