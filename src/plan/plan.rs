//! The plan: nodes, the groups that they run in, and the edges between them, as the user states them.
//!
//! Stating never fails. [`Plan::check`] says what is wrong, and makes the form that the engine works with.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::error::PlanError;
use super::placement::{Edge, PlacedGroup, PlacedNode, Placement, ProcessSpec};
use crate::base::ids::GroupId;
use crate::base::limits::{
    DAY_MS, GROUP_PROCESSES, MAX_HOPS, NAME_BYTES, PLAN_EDGES, PLAN_NODES, PLAN_PROCESSES, RESTARTS,
};
use crate::base::resource::Resource;
use crate::plan::restart::Restart;

const NO_NUL: &str = "must not contain a NUL byte";
const LOCAL: &str = "a local group runs in the engine and has no process of its own";

/// Nodes, groups and edges. Checked when an engine is started with it.
///
/// What is said of a group follows it, up to the next group; what is said of an edge follows that.
///
/// ```
/// use handbell::Plan;
///
/// let plan = Plan::new()
///     .group("ingest", ["parse"])
///     .processes(2)
///     .stateless()
///     .group("scoring", ["features", "score"])
///     .keyed()
///     .edge("parse", "features")
///     .edge("features", "score");
/// # let _ = plan;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Plan {
    groups: Vec<StatedGroup>,
    edges: Vec<StatedEdge>,
    /// The first modifier that had nothing to speak of.
    stray: Option<PlanError>,
}

#[derive(Clone, Debug, Default)]
struct StatedGroup {
    name: String,
    nodes: Vec<String>,
    processes: Option<usize>,
    keyed: bool,
    stateless: bool,
    restart: Option<Restart>,
    redispatch_unstarted: bool,
    idempotent: bool,
    local: bool,
    has_command: bool,
    process: ProcessSpec,
    /// The first modifier that was stated twice.
    twice: Option<String>,
}

#[derive(Clone, Debug)]
struct StatedEdge {
    from: String,
    label: String,
    to: String,
    max_hops: Option<usize>,
    /// `max_hops` was stated twice.
    twice: bool,
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
        let nodes = nodes.into_iter().map(Into::into).collect();
        self.groups.push(StatedGroup { name: name.into(), nodes, ..StatedGroup::default() });
        self
    }

    /// Of the last group: runs in so many processes, 1 to 256, each with nodes of its own. Default: 1.
    pub fn processes(self, count: usize) -> Self {
        self.of_group("processes", |group| {
            group.once("processes", |group| group.processes.replace(count).is_some());
        })
    }

    /// Of the last group: reached only with a key. The same key always reaches the same process, in order.
    pub fn keyed(self) -> Self {
        self.of_group("keyed", |group| group.keyed = true)
    }

    /// Of the last group: its nodes keep nothing from one request to the next, so that it does not matter
    /// which process runs a request. A promise that nobody checks.
    pub fn stateless(self) -> Self {
        self.of_group("stateless", |group| group.stateless = true)
    }

    /// Of the last group: whether a worker of it that died gets a successor. Default: never.
    pub fn restart(self, restart: Restart) -> Self {
        self.of_group("restart", |group| {
            group.once("restart", |group| group.restart.replace(restart).is_some());
        })
    }

    /// Of the last group: what a worker had not begun when it died is sent to its successor, once. Without
    /// `restart` it means nothing.
    pub fn redispatch_unstarted(self) -> Self {
        self.of_group("redispatch_unstarted", |group| group.redispatch_unstarted = true)
    }

    /// Of the last group: the same request always makes the same outputs in the same order, so that what a worker
    /// had begun when it died may run again at its successor, once; outputs that had gone on do not go on twice.
    /// A promise that nobody checks. Means [`redispatch_unstarted`](Plan::redispatch_unstarted) too, and without
    /// `restart` nothing.
    pub fn idempotent(self) -> Self {
        self.of_group("idempotent", |group| group.idempotent = true)
    }

    /// Of the last group: runs inside the engine, in both profiles. It has no process of its own. A node of it must
    /// not call into its own group and wait: nobody else runs it meanwhile.
    pub fn local(self) -> Self {
        self.of_group("local", |group| group.local = true)
    }

    /// Of the last group: runs this program with these arguments instead of the engine's own executable.
    ///
    /// A name without a slash is looked for in the engine's `PATH`; a relative path starts from the engine's
    /// working directory. The program serves with [`App::serve_if_worker`](crate::App::serve_if_worker).
    /// Default: this very program, without arguments.
    pub fn command<S: Into<OsString>>(self, command: impl IntoIterator<Item = S>) -> Self {
        let command: Vec<OsString> = command.into_iter().map(Into::into).collect();
        self.of_group("command", |group| {
            group.process.command = command;
            group.once("command", |group| std::mem::replace(&mut group.has_command, true));
        })
    }

    /// Of the last group: sets an environment variable for its processes. Wins over the engine's setting
    /// [`env`](crate::EngineBuilder::env) and over what is inherited.
    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.of_group("env", |group| {
            let stated = group.process.env.iter().any(|(stated, _)| *stated == name);
            group.once(&format!("env {name:?}"), |_| stated);
            group.process.env.push((name, value));
        })
    }

    /// Of the last group: its processes have this variable of the engine's environment, if it is set there.
    pub fn inherit_env(self, name: impl Into<OsString>) -> Self {
        let name = name.into();
        self.of_group("inherit_env", |group| {
            if !group.process.inherit_env.contains(&name) {
                group.process.inherit_env.push(name);
            }
        })
    }

    /// Of the last group: the working directory of its processes. A relative path starts from the engine's.
    /// Default: the engine's.
    pub fn cwd(self, directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        self.of_group("cwd", |group| {
            group.once("cwd", |group| group.process.cwd.replace(directory).is_some());
        })
    }

    /// Of the last group: bounds what each of its processes may use, in the resource's own unit. Set from
    /// outside before the worker builds its nodes, for the soft and the hard limit; `u64::MAX` is no limit.
    /// The operating system refuses to raise the engine's own hard limit: the start fails then.
    pub fn limit(self, resource: Resource, value: u64) -> Self {
        self.of_group("limit", |group| {
            let stated = group.process.limits.iter().any(|(stated, _)| *stated == resource);
            group.once(&format!("limit {resource:?}"), |_| stated);
            group.process.limits.push((resource, value));
        })
    }

    /// Of the last group: keeps the serving thread of each of its processes to this processor. Wins over the
    /// engine's setting [`pin`](crate::EngineBuilder::pin).
    pub fn pin(self, processor: usize) -> Self {
        self.of_group("pin", |group| {
            group.once("pin", |group| group.process.pin.replace(processor).is_some());
        })
    }

    /// An edge from one node to another, labelled with the name of the node that it leads to.
    ///
    /// Inside a group an edge is a call; between groups it is a hop.
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
        let (from, label, to) = (from.into(), label.into(), to.into());
        self.edges.push(StatedEdge { from, label, to, max_hops: None, twice: false });
        self
    }

    /// Of the last edge: a request that goes along it has made at most so many hops on its path, this one and the
    /// first into a group included, 1 to 1,024; beyond that it fails. An edge of every circle of groups must state
    /// it.
    pub fn max_hops(mut self, count: usize) -> Self {
        match self.edges.last_mut() {
            Some(edge) => edge.twice |= edge.max_hops.replace(count).is_some(),
            None => self.note_stray("max_hops", "edge"),
        }
        self
    }

    fn of_group(mut self, modifier: &'static str, state: impl FnOnce(&mut StatedGroup)) -> Self {
        match self.groups.last_mut() {
            Some(group) => state(group),
            None => self.note_stray(modifier, "group"),
        }
        self
    }

    fn note_stray(&mut self, modifier: &'static str, of: &'static str) {
        self.stray.get_or_insert(PlanError::NothingToModify { modifier, of });
    }

    /// Says what is wrong first, or gives the form that the engine works with.
    pub(crate) fn check(&self) -> Result<Placement, PlanError> {
        if let Some(stray) = &self.stray {
            return Err(stray.clone());
        }
        if self.groups.is_empty() {
            return Err(PlanError::NoGroup);
        }
        let too_many = |what, count, limit| {
            if count > limit { Err(PlanError::TooMany { what, count, limit }) } else { Ok(()) }
        };
        too_many("nodes", self.groups.iter().map(|group| group.nodes.len()).sum(), PLAN_NODES)?;
        too_many("edges", self.edges.len(), PLAN_EDGES)?;
        let (mut nodes, mut groups) = (Vec::new(), Vec::<PlacedGroup>::new());
        for group in &self.groups {
            let placed = group.check()?;
            if groups.iter().any(|other| other.name == placed.name) {
                return Err(PlanError::DuplicateGroup { name: placed.name });
            }
            let id = GroupId(groups.len() as u16);
            groups.push(placed);
            for node in &group.nodes {
                check_name("node", node)?;
                if let Some(first) = nodes.iter().find(|placed: &&PlacedNode| placed.name == *node) {
                    let first = groups[usize::from(first.group.0)].name.clone();
                    return Err(PlanError::NodeTwice {
                        node: node.clone(),
                        first,
                        second: group.name.clone(),
                    });
                }
                nodes.push(PlacedNode { name: node.clone(), group: id, edges: Vec::new() });
            }
        }
        let processes = groups.iter().map(|group| usize::from(group.workers())).sum();
        too_many("processes", processes, PLAN_PROCESSES)?;
        let mut placement = Placement::new(nodes, groups);
        for edge in &self.edges {
            edge.check_into(&mut placement)?;
        }
        placement.refuse_circles()?;
        Ok(placement.with_reach())
    }
}

impl StatedGroup {
    /// States something that has one value; `state` says whether it had one already.
    fn once(&mut self, modifier: &str, state: impl FnOnce(&mut Self) -> bool) {
        if state(self) {
            self.twice.get_or_insert_with(|| modifier.to_owned());
        }
    }

    fn check(&self) -> Result<PlacedGroup, PlanError> {
        check_name("group", &self.name)?;
        if self.nodes.is_empty() {
            return Err(PlanError::EmptyGroup { name: self.name.clone() });
        }
        let of = || format!("group '{}'", self.name);
        if let Some(modifier) = &self.twice {
            return Err(PlanError::StatedTwice { of: of(), modifier: modifier.clone() });
        }
        let processes = self.processes.unwrap_or(1);
        if !GROUP_PROCESSES.contains(&processes) {
            let modifier = "processes";
            return Err(PlanError::Range { of: of(), modifier, value: processes, range: GROUP_PROCESSES });
        }
        if let Some(restart) = self.restart {
            let ms = |duration: Duration| usize::try_from(duration.as_millis()).unwrap_or(usize::MAX);
            let rules = [
                ("restart", restart.restarts, RESTARTS),
                ("restart within (in ms)", ms(restart.period), 1..=DAY_MS),
                ("restart delay (in ms)", ms(restart.longest_delay), ms(restart.first_delay)..=DAY_MS),
            ];
            // `never` has no number to be checked.
            let mut rules = rules.into_iter().filter(|_| restart != Restart::never());
            if let Some((modifier, value, range)) = rules.find(|(_, value, range)| !range.contains(value)) {
                return Err(PlanError::Range { of: of(), modifier, value, range });
            }
        }
        self.check_contradictions(processes)?;
        self.check_texts()?;
        Ok(PlacedGroup {
            name: self.name.clone(),
            processes: processes as u16,
            keyed: self.keyed,
            stateless: self.stateless,
            restart: self.restart.unwrap_or_default(),
            redispatch_unstarted: self.redispatch_unstarted || self.idempotent,
            idempotent: self.idempotent,
            local: self.local,
            process: self.process.clone(),
        })
    }

    fn check_contradictions(&self, processes: usize) -> Result<(), PlanError> {
        let contradiction = |first: String, second: String, rule| PlanError::Contradiction {
            group: self.name.clone(),
            first,
            second,
            rule,
        };
        let ProcessSpec { env, inherit_env, cwd, limits, pin, .. } = &self.process;
        let of_a_process = [
            ("processes", processes > 1),
            ("command", self.has_command),
            ("env", !env.is_empty()),
            ("inherit_env", !inherit_env.is_empty()),
            ("cwd", cwd.is_some()),
            ("limit", !limits.is_empty()),
            ("pin", pin.is_some()),
            ("restart", self.restart.is_some()),
        ];
        if let Some((modifier, _)) = of_a_process.iter().find(|(_, stated)| self.local && *stated) {
            let second = match *modifier {
                "processes" => format!("processes = {processes}"),
                modifier => modifier.to_owned(),
            };
            return Err(contradiction("local".into(), second, LOCAL));
        }
        if let Some((name, _)) = env.iter().find(|(name, _)| inherit_env.contains(name)) {
            let rule = "a variable is set or inherited";
            return Err(contradiction(format!("env {name:?}"), format!("inherit_env {name:?}"), rule));
        }
        Ok(())
    }

    /// What goes to the operating system as text must be such that it takes it.
    fn check_texts(&self) -> Result<(), PlanError> {
        let refused = |what: String, rule| PlanError::Text { group: self.name.clone(), what, rule };
        let ProcessSpec { command, env, inherit_env, cwd, .. } = &self.process;
        if self.has_command && command.first().is_none_or(|program| program.is_empty()) {
            return Err(refused("command".into(), "must begin with a program"));
        }
        if command.iter().any(|part| has_nul(part)) {
            return Err(refused("command".into(), NO_NUL));
        }
        if cwd.as_ref().is_some_and(|cwd| cwd.as_os_str().is_empty() || has_nul(cwd.as_os_str())) {
            return Err(refused("cwd".into(), "must not be empty, nor contain a NUL byte"));
        }
        let names = env.iter().map(|(name, _)| ("env", name));
        for (modifier, name) in names.chain(inherit_env.iter().map(|name| ("inherit_env", name))) {
            if name.is_empty() || name.as_encoded_bytes().iter().any(|byte| matches!(byte, b'=' | 0)) {
                let rule = "the name must not be empty, nor contain '=' or a NUL byte";
                return Err(refused(format!("{modifier} {name:?}"), rule));
            }
        }
        match env.iter().find(|(_, value)| has_nul(value)) {
            Some((name, _)) => Err(refused(format!("the value of env {name:?}"), NO_NUL)),
            None => Ok(()),
        }
    }
}

impl StatedEdge {
    /// Checks the edge and adds it to its node.
    fn check_into(&self, placement: &mut Placement) -> Result<(), PlanError> {
        let Self { from, label, to, .. } = self;
        check_name("label", label)?;
        let unknown =
            |node: &String| PlanError::UnknownNode { node: node.clone(), from: from.clone(), to: to.clone() };
        let source = placement.node(from).ok_or_else(|| unknown(from))?;
        let target = placement.node(to).ok_or_else(|| unknown(to))?;
        let of = || format!("edge '{from}' -> '{to}'");
        if self.twice {
            return Err(PlanError::StatedTwice { of: of(), modifier: "max_hops".into() });
        }
        if let Some(value) = self.max_hops.filter(|hops| !MAX_HOPS.contains(hops)) {
            return Err(PlanError::Range { of: of(), modifier: "max_hops", value, range: MAX_HOPS });
        }
        let max_hops = self.max_hops.unwrap_or(0) as u16;
        if max_hops > 0 && !placement.leaves_group(source, target) {
            let group = placement.nodes[usize::from(source.0)].group;
            return Err(PlanError::NotAHop {
                from: from.clone(),
                to: to.clone(),
                max_hops,
                group: placement.group_name(group).to_owned(),
            });
        }
        let edges = &mut placement.nodes[usize::from(source.0)].edges;
        if edges.iter().any(|edge| edge.label == *label) {
            return Err(PlanError::DuplicateEdge { from: from.clone(), label: label.clone() });
        }
        edges.push(Edge { label: label.clone(), to: target, max_hops });
        Ok(())
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), PlanError> {
    let valid = !name.is_empty()
        && name.len() <= NAME_BYTES
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'));
    if valid { Ok(()) } else { Err(PlanError::Name { what, name: name.to_owned() }) }
}

fn has_nul(text: &OsStr) -> bool {
    text.as_encoded_bytes().contains(&0)
}
