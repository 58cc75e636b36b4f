//! A checked plan: numbers instead of names, and what follows from its edges.
//!
//! A node's id is its place in `nodes`, a group's its place in `groups`; both in the order stated.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::error::PlanError;
use crate::base::ids::{GroupId, NodeId};
use crate::base::resource::Resource;
use crate::plan::restart::Restart;

/// One outgoing edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Edge {
    pub label: String,
    pub to: NodeId,
    /// Hops that a path may have with this one; 0: not stated.
    pub max_hops: u16,
}

/// A node of a checked plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PlacedNode {
    pub name: String,
    pub group: GroupId,
    pub edges: Vec<Edge>,
}

/// A group of a checked plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PlacedGroup {
    pub name: String,
    /// 1 or more; 0 only for a group that nobody serves.
    pub processes: u16,
    /// Reached only with a key; the same key always reaches the same process.
    pub keyed: bool,
    /// Its nodes keep nothing from request to request.
    pub stateless: bool,
    /// Runs in the engine; `processes` is 1, and there is no worker.
    pub local: bool,
    pub process: ProcessSpec,
    pub restart: Restart,
    /// What a dead worker had not begun goes to its successor.
    pub redispatch_unstarted: bool,
    /// So does what it had begun.
    pub idempotent: bool,
}

impl PlacedGroup {
    /// How many worker processes it has.
    pub fn workers(&self) -> u16 {
        if self.local { 0 } else { self.processes }
    }
}

/// What is stated of the processes of a group.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct ProcessSpec {
    /// Program and arguments; empty: the engine's own executable.
    pub command: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub inherit_env: Vec<OsString>,
    pub cwd: Option<PathBuf>,
    /// Soft and hard limit; `u64::MAX`: none.
    pub limits: Vec<(Resource, u64)>,
    pub pin: Option<usize>,
}

impl fmt::Debug for ProcessSpec {
    /// Without the values of variables and without arguments: both may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("ProcessSpec")
            .field("program", &self.command.first())
            .field("arguments", &self.command.len().saturating_sub(1))
            .field("env", &names)
            .field("inherit_env", &self.inherit_env)
            .field("cwd", &self.cwd)
            .field("limits", &self.limits)
            .field("pin", &self.pin)
            .finish()
    }
}

/// A checked plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Placement {
    pub nodes: Vec<PlacedNode>,
    pub groups: Vec<PlacedGroup>,
    /// For each node what [`Placement::reach`] says; empty in a worker, which has no use for it.
    reach: Vec<Vec<GroupId>>,
}

impl Placement {
    /// A plan that does not know what its nodes can reach.
    pub fn new(nodes: Vec<PlacedNode>, groups: Vec<PlacedGroup>) -> Self {
        Self { nodes, groups, reach: Vec::new() }
    }

    /// The same plan, knowing what each node can reach.
    pub fn with_reach(mut self) -> Self {
        self.reach = (0..self.nodes.len()).map(|node| self.groups_ahead_of(node)).collect();
        self
    }

    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.name == name).map(|i| NodeId(i as u16))
    }

    pub fn group_name(&self, group: GroupId) -> &str {
        self.groups.get(usize::from(group.0)).map_or("?", |group| &group.name)
    }

    /// The group of a node; `None` for a number that no node has.
    pub fn group_of(&self, node: NodeId) -> Option<GroupId> {
        self.nodes.get(usize::from(node.0)).map(|node| node.group)
    }

    /// Whether an edge between these nodes is a hop. A node that does not exist is in no group.
    pub fn leaves_group(&self, from: NodeId, to: NodeId) -> bool {
        self.group_of(from) != self.group_of(to)
    }

    /// The groups that a request which executes at `node` can still enter by hops, ascending.
    ///
    /// Edges inside a group are followed as calls. The node's own group is among them only if a hop leads back
    /// into it. How many hops are allowed is not looked at.
    pub fn reach(&self, node: NodeId) -> &[GroupId] {
        self.reach.get(usize::from(node.0)).map_or(&[], Vec::as_slice)
    }

    /// Whether groups hand on to each other in a circle. Such a plan cannot be run in order.
    pub fn has_circle(&self) -> bool {
        circle(&self.group_graph(|_| true)).is_some()
    }

    /// Worker processes of all groups: as many lanes.
    #[cfg(feature = "testing")]
    pub fn workers(&self) -> usize {
        self.groups.iter().map(|group| usize::from(group.workers())).sum()
    }

    /// Groups for which it is not promised that both profiles give the same bytes, each in a sentence.
    pub fn notes(&self) -> Vec<String> {
        let open = self.groups.iter().filter(|group| group.processes > 1 && !group.keyed && !group.stateless);
        let note = |group: &PlacedGroup| {
            format!(
                "group '{}' has {} processes and is neither keyed nor stateless: \
                 the profiles may give different bytes",
                group.name, group.processes
            )
        };
        open.map(note).collect()
    }

    /// Whether the node's code is in another program, so that this one need not have it.
    pub fn runs_a_command(&self, node: &PlacedNode) -> bool {
        !self.groups[usize::from(node.group.0)].process.command.is_empty()
    }

    /// Checks the groups' processors against those that this process may use.
    pub fn check_pins(&self, allowed: &[usize]) -> Result<(), PlanError> {
        for group in &self.groups {
            if let Some(processor) = group.process.pin.filter(|processor| !allowed.contains(processor)) {
                let allowed = allowed.to_vec();
                return Err(PlanError::Pin { group: group.name.clone(), processor, allowed });
            }
        }
        Ok(())
    }

    /// Adds groups that nobody serves: requests to their nodes reach the worker of the first group.
    #[cfg(feature = "testing")]
    pub fn with_unserved(mut self, unserved: &[(String, Vec<String>)]) -> Self {
        for (name, nodes) in unserved {
            let group = GroupId(self.groups.len() as u16);
            self.groups.push(PlacedGroup { name: name.clone(), ..PlacedGroup::default() });
            let nodes = nodes.iter().map(|node| PlacedNode { name: node.clone(), group, edges: Vec::new() });
            self.nodes.extend(nodes);
        }
        self
    }

    /// Refuses calls without end, and hops without a bound.
    ///
    /// The second is asked of groups, not of nodes: groups that wait for each other's room form a circle also
    /// where no node is met twice.
    pub(super) fn refuse_circles(&self) -> Result<(), PlanError> {
        if let Some(circle) = circle(&self.call_graph()) {
            let group = self.group_name(self.nodes[circle[0]].group).to_owned();
            let nodes = circle.iter().map(|node| self.nodes[*node].name.clone()).collect();
            return Err(PlanError::Circle { group, nodes });
        }
        // Every circle has an edge with a bound exactly if none is left without those edges.
        if let Some(circle) = circle(&self.group_graph(|edge| edge.max_hops == 0)) {
            let groups = circle.iter().map(|group| self.groups[*group].name.clone()).collect();
            return Err(PlanError::GroupCircle { groups });
        }
        Ok(())
    }

    /// For each node those that it calls.
    fn call_graph(&self) -> Vec<Vec<usize>> {
        let called = |node: &PlacedNode| {
            let targets = node.edges.iter().map(|edge| usize::from(edge.to.0));
            targets.filter(|to| self.nodes[*to].group == node.group).collect()
        };
        self.nodes.iter().map(called).collect()
    }

    /// For each group those that a hop leads to, over the edges that `counts` takes.
    fn group_graph(&self, counts: impl Fn(&Edge) -> bool) -> Vec<Vec<usize>> {
        let mut next = vec![Vec::new(); self.groups.len()];
        for node in &self.nodes {
            for edge in node.edges.iter().filter(|edge| counts(edge)) {
                let to = self.nodes[usize::from(edge.to.0)].group;
                if to != node.group {
                    next[usize::from(node.group.0)].push(usize::from(to.0));
                }
            }
        }
        next
    }

    /// Follows every edge from `node`, and notes each group that a hop enters.
    fn groups_ahead_of(&self, node: usize) -> Vec<GroupId> {
        let mut seen = vec![false; self.nodes.len()];
        let mut entered = vec![false; self.groups.len()];
        let mut open = vec![node];
        seen[node] = true;
        while let Some(node) = open.pop() {
            let node = &self.nodes[node];
            for edge in &node.edges {
                let to = usize::from(edge.to.0);
                let group = self.nodes[to].group;
                entered[usize::from(group.0)] |= group != node.group;
                if !std::mem::replace(&mut seen[to], true) {
                    open.push(to);
                }
            }
        }
        (0..entered.len()).filter(|group| entered[*group]).map(|group| GroupId(group as u16)).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    Open,
    OnTheWay,
    Done,
}

/// A circle of a graph, as the vertices along it; `next` has the successors of each vertex. Depth first, with
/// a path of its own instead of recursion: the depth is the user's.
fn circle(next: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut visits = vec![Visit::Open; next.len()];
    for start in 0..next.len() {
        if visits[start] != Visit::Open {
            continue;
        }
        visits[start] = Visit::OnTheWay;
        // Each vertex on the way with the number of successors already followed.
        let mut way = vec![(start, 0)];
        while let Some((vertex, followed)) = way.last_mut() {
            let Some(&to) = next[*vertex].get(*followed) else {
                visits[*vertex] = Visit::Done;
                way.pop();
                continue;
            };
            *followed += 1;
            match visits[to] {
                Visit::Open => {
                    visits[to] = Visit::OnTheWay;
                    way.push((to, 0));
                }
                Visit::OnTheWay => {
                    let way = way.iter().map(|(vertex, _)| *vertex);
                    return Some(way.skip_while(|vertex| *vertex != to).collect());
                }
                Visit::Done => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan::Plan;

    fn placed(plan: Plan) -> Placement {
        plan.check().unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(plan: Plan) -> String {
        plan.check().unwrap_err().to_string()
    }

    /// The names of the groups that the node can reach.
    fn reach<'a>(placement: &'a Placement, node: &str) -> Vec<&'a str> {
        let node = placement.node(node).unwrap();
        placement.reach(node).iter().map(|group| placement.group_name(*group)).collect()
    }

    #[test]
    fn placement_01_ids_are_given_in_the_order_stated() {
        let plan = Plan::new()
            .group("g", ["a", "b"])
            .group("h", ["c"])
            .edge("a", "b")
            .labelled_edge("a", "other", "c")
            .max_hops(3);
        let placement = placed(plan);
        assert_eq!(placement.node("c"), Some(NodeId(2)));
        assert_eq!(placement.group_of(NodeId(2)), Some(GroupId(1)));
        assert_eq!(placement.group_of(NodeId(3)), None);
        let other = Edge { label: "other".into(), to: NodeId(2), max_hops: 3 };
        assert_eq!(placement.nodes[0].edges, [Edge { label: "b".into(), to: NodeId(1), max_hops: 0 }, other]);
    }

    #[test]
    fn placement_01_a_group_is_as_it_was_stated() {
        let plan = Plan::new()
            .group("g", ["a"])
            .group("h", ["b"])
            .edge("a", "b")
            .processes(256)
            .keyed()
            .stateless()
            .command(["prog", "--fast"])
            .env("A", "1")
            .inherit_env("B")
            .inherit_env("B")
            .cwd("/tmp")
            .limit(Resource::Core, 0)
            .limit(Resource::OpenFiles, 64)
            .pin(1);
        let placement = placed(plan);
        let plain = PlacedGroup { name: "g".into(), processes: 1, ..PlacedGroup::default() };
        assert_eq!(placement.groups[0], plain);
        let process = ProcessSpec {
            command: vec!["prog".into(), "--fast".into()],
            env: vec![("A".into(), "1".into())],
            inherit_env: vec!["B".into()],
            cwd: Some("/tmp".into()),
            limits: vec![(Resource::Core, 0), (Resource::OpenFiles, 64)],
            pin: Some(1),
        };
        let name = "h".into();
        let stated = PlacedGroup {
            name,
            processes: 256,
            keyed: true,
            stateless: true,
            process,
            ..PlacedGroup::default()
        };
        assert_eq!(placement.groups[1], stated);
        assert_eq!(placement.workers(), 257);
        assert_eq!([0, 1].map(|node| placement.runs_a_command(&placement.nodes[node])), [false, true]);
        assert!(placement.check_pins(&[0, 1]).is_ok() && placement.check_pins(&[0]).is_err());
    }

    #[test]
    fn placement_01_a_local_group_has_no_worker() {
        let placement = placed(Plan::new().group("g", ["a"]).local().processes(1).keyed().stateless());
        assert_eq!((placement.groups[0].processes, placement.workers()), (1, 0));
    }

    #[test]
    fn sec_ipc_08_no_variable_and_no_argument_is_shown() {
        let plan = Plan::new().group("g", ["a"]).command(["prog", "canary-1"]).env("TOKEN", "canary-2");
        let shown = format!("{plan:?} {:?}", placed(plan.clone()));
        assert!(shown.contains("TOKEN") && shown.contains("prog"), "{shown}");
        assert!(!shown.contains("canary"), "{shown}");
    }

    #[test]
    fn placement_02_an_edge_between_groups_is_a_hop() {
        let placement = placed(Plan::new().group("g", ["a", "b"]).group("h", ["c"]));
        let node = |name| placement.node(name).unwrap();
        assert!(!placement.leaves_group(node("a"), node("b")));
        assert!(placement.leaves_group(node("a"), node("c")));
        assert!(placement.leaves_group(node("a"), NodeId(9)), "what does not exist is in no group");
    }

    #[test]
    fn reach_follows_calls_and_notes_hops() {
        let plan = Plan::new()
            .group("g", ["a", "b"])
            .group("h", ["c", "d"])
            .group("i", ["e"])
            .group("j", ["lone"])
            .edge("a", "b")
            .edge("b", "c")
            .edge("c", "d")
            .edge("d", "e");
        let placement = placed(plan);
        assert_eq!(reach(&placement, "a"), ["h", "i"]);
        assert_eq!(reach(&placement, "c"), ["i"]);
        assert_eq!(reach(&placement, "e"), [""; 0]);
        assert_eq!(reach(&placement, "lone"), [""; 0]);
        assert!(placement.reach(NodeId(99)).is_empty());
        assert!(!placement.has_circle());
    }

    #[test]
    fn reach_has_the_own_group_only_if_a_hop_leads_back() {
        let plan =
            Plan::new().group("g", ["a", "z"]).group("h", ["b"]).edge("a", "b").edge("b", "z").max_hops(1);
        let placement = placed(plan);
        assert_eq!(reach(&placement, "a"), ["g", "h"]);
        assert_eq!(reach(&placement, "b"), ["g"]);
        assert_eq!(reach(&placement, "z"), [""; 0]);
        assert!(placement.has_circle(), "of groups, although no node is met twice");
    }

    #[test]
    fn flow_01_every_circle_of_groups_needs_a_bound() {
        // g -> h -> g and g -> h -> i -> g.
        let plan = |bounds: [bool; 4]| {
            let plan = Plan::new().group("g", ["a", "z"]).group("h", ["b"]).group("i", ["c"]);
            let edges = [("a", "b"), ("b", "z"), ("b", "c"), ("c", "a")];
            edges.into_iter().zip(bounds).fold(plan, |plan, ((from, to), bound)| {
                let plan = plan.edge(from, to);
                if bound { plan.max_hops(2) } else { plan }
            })
        };
        let rule = "the edges form a circle of groups, and none of them states max_hops";
        let short = format!("{rule}: 'g' -> 'h' -> 'g'");
        let long = format!("{rule}: 'g' -> 'h' -> 'i' -> 'g'");
        assert_eq!(refused(plan([false, false, false, false])), short);
        assert_eq!(refused(plan([false, false, true, false])), short);
        assert_eq!(refused(plan([false, true, false, false])), long);
        for enough in [[true, false, false, false], [false, true, true, false], [false, true, false, true]] {
            assert!(placed(plan(enough)).has_circle());
        }
    }

    #[test]
    fn flow_01_a_second_edge_without_a_bound_closes_the_circle() {
        let plan = Plan::new().group("g", ["a", "y"]).group("h", ["b", "z"]).edge("a", "b").max_hops(1);
        let plan = plan.edge("b", "y");
        assert!(plan.check().is_ok());
        assert!(refused(plan.edge("y", "z")).ends_with(": 'g' -> 'h' -> 'g'"));
    }

    #[test]
    fn flow_01_a_circle_of_calls_is_named_without_what_leads_to_it() {
        let plan = Plan::new().group("g", ["x", "a", "b"]).edge("x", "a").edge("a", "b").edge("b", "a");
        assert_eq!(refused(plan), "the edges form a circle inside group 'g': 'a' -> 'b' -> 'a'");
        let plan = Plan::new().group("g", ["a"]).edge("a", "a");
        assert_eq!(refused(plan), "the edges form a circle inside group 'g': 'a' -> 'a'");
    }

    #[test]
    fn flow_01_the_largest_plan_is_checked_without_recursion() {
        let names: Vec<String> = (0..1024).map(|i| format!("n{i}")).collect();
        let plan = Plan::new().group("g", names.clone());
        let chain = names.windows(2).fold(plan, |plan, pair| plan.edge(&pair[0], &pair[1]));
        assert!(chain.check().is_ok());
        assert!(refused(chain.edge("n1023", "n0")).ends_with("'n7' -> 1016 more -> 'n0'"));
    }

    #[test]
    fn parity_01_groups_without_the_promise_are_named() {
        let plan = Plan::new()
            .group("one", ["a"])
            .group("keyed", ["b"])
            .keyed()
            .processes(2)
            .group("stateless", ["c"])
            .stateless()
            .processes(2)
            .group("open", ["d"])
            .processes(3);
        assert_eq!(
            placed(plan).notes(),
            [
                "group 'open' has 3 processes and is neither keyed nor stateless: the profiles may give different bytes"
            ]
        );
    }

    #[test]
    #[cfg(feature = "testing")]
    fn an_unserved_group_has_no_worker() {
        let placement = placed(Plan::new().group("g", ["a"]));
        let placement = placement.with_unserved(&[("u".into(), vec!["b".into()])]);
        assert_eq!((placement.workers(), placement.node("b")), (1, Some(NodeId(1))));
        assert!(placement.reach(NodeId(1)).is_empty());
    }
}
