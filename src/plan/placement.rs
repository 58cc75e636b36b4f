//! The plan: nodes, the groups that they run in, and the edges between them.

use thiserror::Error;

use crate::base::ids::{GroupId, NodeId};
use crate::base::limits::{NAME_BYTES, PLAN_NODES};

/// Nodes, groups and edges, as the user states them. Checked when an engine is started with it.
///
/// ```
/// use handbell::Plan;
///
/// let plan = Plan::new().group("scoring", ["parse", "score"]).edge("parse", "score");
/// # let _ = plan;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Plan {
    groups: Vec<(String, Vec<String>)>,
    edges: Vec<(String, String, String)>,
}

impl Plan {
    /// A plan without anything in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group of nodes that share a worker process.
    pub fn group<N: Into<String>>(
        mut self,
        name: impl Into<String>,
        nodes: impl IntoIterator<Item = N>,
    ) -> Self {
        self.groups.push((name.into(), nodes.into_iter().map(Into::into).collect()));
        self
    }

    /// An edge from one node to another, labelled with the name of the node that it leads to.
    pub fn edge(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        let to = to.into();
        let label = to.clone();
        self.labelled_edge(from, label, to)
    }

    /// An edge with a label of its own, for nodes with several outgoing edges.
    pub fn labelled_edge(
        mut self,
        from: impl Into<String>,
        label: impl Into<String>,
        to: impl Into<String>,
    ) -> Self {
        self.edges.push((from.into(), label.into(), to.into()));
        self
    }

    pub(crate) fn check(&self) -> Result<Placement, PlanError> {
        let mut placement = Placement::default();
        if self.groups.is_empty() {
            return Err(PlanError::NoGroup);
        }
        if self.groups.len() > 1 {
            return Err(PlanError::ManyGroups { count: self.groups.len() });
        }
        for (name, nodes) in &self.groups {
            check_name("group", name)?;
            if placement.groups.iter().any(|group| group.name == *name) {
                return Err(PlanError::DuplicateGroup { name: name.clone() });
            }
            if nodes.is_empty() {
                return Err(PlanError::EmptyGroup { name: name.clone() });
            }
            let group = GroupId(placement.groups.len() as u16);
            for node in nodes {
                check_name("node", node)?;
                if let Some(first) = placement.node(node) {
                    let first = placement.nodes[usize::from(first.0)].group;
                    let first = placement.groups.get(usize::from(first.0)).map_or(name, |group| &group.name);
                    return Err(PlanError::NodeTwice {
                        node: node.clone(),
                        first: first.clone(),
                        second: name.clone(),
                    });
                }
                if placement.nodes.len() == PLAN_NODES {
                    return Err(PlanError::TooManyNodes { limit: PLAN_NODES });
                }
                placement.nodes.push(PlacedNode { name: node.clone(), group, edges: Vec::new() });
            }
            placement.groups.push(PlacedGroup { name: name.clone() });
        }
        for (from, label, to) in &self.edges {
            check_name("label", label)?;
            let unknown = |node: &String| PlanError::UnknownNode {
                node: node.clone(),
                from: from.clone(),
                to: to.clone(),
            };
            let source = placement.node(from).ok_or_else(|| unknown(from))?;
            let target = placement.node(to).ok_or_else(|| unknown(to))?;
            let edges = &mut placement.nodes[usize::from(source.0)].edges;
            if edges.iter().any(|edge| edge.label == *label) {
                return Err(PlanError::DuplicateEdge { from: from.clone(), label: label.clone() });
            }
            edges.push(Edge { label: label.clone(), to: target });
        }
        placement.refuse_circles()?;
        Ok(placement)
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), PlanError> {
    let valid = !name.is_empty()
        && name.len() <= NAME_BYTES
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'));
    if valid { Ok(()) } else { Err(PlanError::Name { what, name: name.to_owned() }) }
}

/// Why a plan is refused. Nothing has been started.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlanError {
    /// There is nothing to run.
    #[error("the plan has no group")]
    NoGroup,
    /// More than one group.
    #[error("the plan has {count} groups; plans of one group are supported")]
    ManyGroups {
        /// Groups found.
        count: usize,
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
    /// Too many nodes.
    #[error("the plan has more than {limit} nodes")]
    TooManyNodes {
        /// The limit.
        limit: usize,
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
    /// The plan does not fit the datagram that carries it to a worker.
    #[error("the plan takes {bytes} bytes, the limit is {limit}: use fewer or shorter names")]
    TooLarge {
        /// Bytes of the plan.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Edges that lead back to where they began.
    #[error("the edges form a circle through node '{node}'")]
    Circle {
        /// A node of the circle.
        node: String,
    },
    /// The application has no code for a node.
    #[error("node '{node}' is in the plan, but the application registers no node of that name")]
    NotRegistered {
        /// The node.
        node: String,
    },
}

/// One outgoing edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Edge {
    pub label: String,
    pub to: NodeId,
}

/// A node of a checked plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PlacedNode {
    pub name: String,
    pub group: GroupId,
    pub edges: Vec<Edge>,
}

/// A group of a checked plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PlacedGroup {
    pub name: String,
}

/// A checked plan: indices instead of names. A node's id is its place in `nodes`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Placement {
    pub nodes: Vec<PlacedNode>,
    pub groups: Vec<PlacedGroup>,
}

impl Placement {
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.name == name).map(|i| NodeId(i as u16))
    }

    pub fn group_name(&self, group: GroupId) -> &str {
        self.groups.get(usize::from(group.0)).map_or("?", |group| &group.name)
    }

    /// Adds groups that nobody serves: requests to their nodes reach the worker of the first group.
    #[cfg(feature = "testing")]
    pub fn with_unserved(mut self, unserved: &[(String, Vec<String>)]) -> Self {
        for (name, nodes) in unserved {
            let group = GroupId(self.groups.len() as u16);
            self.groups.push(PlacedGroup { name: name.clone() });
            let nodes = nodes.iter().map(|node| PlacedNode { name: node.clone(), group, edges: Vec::new() });
            self.nodes.extend(nodes);
        }
        self
    }

    fn refuse_circles(&self) -> Result<(), PlanError> {
        // Kahn: what cannot be taken away for lack of incoming edges is part of, or behind, a circle.
        let mut incoming = vec![0usize; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.edges).for_each(|edge| incoming[usize::from(edge.to.0)] += 1);
        let mut free: Vec<usize> = (0..incoming.len()).filter(|&i| incoming[i] == 0).collect();
        let mut left = incoming.len();
        while let Some(node) = free.pop() {
            left -= 1;
            for edge in &self.nodes[node].edges {
                let to = usize::from(edge.to.0);
                incoming[to] -= 1;
                if incoming[to] == 0 {
                    free.push(to);
                }
            }
        }
        match (0..incoming.len()).find(|&i| incoming[i] > 0) {
            Some(node) if left > 0 => Err(PlanError::Circle { node: self.nodes[node].name.clone() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(plan: Plan) -> String {
        plan.check().unwrap_err().to_string()
    }

    #[test]
    fn a_good_plan_has_ids_in_the_order_stated() {
        let plan = Plan::new().group("g", ["a", "b", "c"]).edge("a", "b").labelled_edge("a", "other", "c");
        let placement = plan.check().unwrap();
        assert_eq!(placement.node("c"), Some(NodeId(2)));
        assert_eq!(placement.nodes[0].edges[1], Edge { label: "other".into(), to: NodeId(2) });
    }

    #[test]
    fn gate_01_every_fault_of_a_plan_is_named() {
        assert_eq!(refusal(Plan::new()), "the plan has no group");
        assert_eq!(
            refusal(Plan::new().group("g", ["a"]).group("h", ["b"])),
            "the plan has 2 groups; plans of one group are supported"
        );
        assert_eq!(refusal(Plan::new().group("g", Vec::<String>::new())), "group 'g' has no node");
        assert_eq!(
            refusal(Plan::new().group("g", ["a", "a"])),
            "node 'a' is in group 'g' and again in group 'g'"
        );
        assert_eq!(
            refusal(Plan::new().group("g", ["a"]).edge("a", "z")),
            "edge 'a' -> 'z': node 'z' is in no group"
        );
        assert_eq!(
            refusal(Plan::new().group("g", ["a", "b"]).edge("a", "b").edge("a", "b")),
            "node 'a' has two edges labelled 'b'"
        );
        assert_eq!(
            refusal(Plan::new().group("g", ["x", "a", "b"]).edge("x", "a").edge("a", "b").edge("b", "a")),
            "the edges form a circle through node 'a'"
        );
        assert!(refusal(Plan::new().group("g", ["a b"])).starts_with("node name \"a b\": must be"));
        assert!(refusal(Plan::new().group("", ["a"])).starts_with("group name \"\": must be"));
    }
}
