//! The nodes that an application has code for, and how their states are built.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::Node;

type Factory = Arc<dyn Fn() -> Result<Box<dyn Node>, BuildError> + Send + Sync>;

/// A node's state could not be built.
#[derive(Debug)]
pub struct BuildError(Box<dyn std::error::Error + Send + Sync>);

impl BuildError {
    /// Any error will do.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for BuildError {}

/// Factories of states by the nodes that they serve.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    /// Node name → index of its factory.
    nodes: HashMap<String, usize>,
    factories: Vec<Factory>,
}

impl Registry {
    /// Registers a state that serves `names`. The last registration of a name counts.
    pub fn add(&mut self, names: impl IntoIterator<Item = String>, factory: Factory) {
        self.factories.push(factory);
        for name in names {
            self.nodes.insert(name, self.factories.len() - 1);
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Builds the states that `names` need, each once. Returns them with, for each name, the state's index.
    pub fn build<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Built, Unbuilt> {
        let mut built = Built { states: Vec::new(), state_of: Vec::new() };
        let mut made: HashMap<usize, usize> = HashMap::new();
        for name in names {
            let unbuilt = |error| Unbuilt { node: name.to_owned(), error };
            let factory = *self.nodes.get(name).ok_or_else(|| unbuilt(None))?;
            let state = match made.get(&factory) {
                Some(state) => *state,
                None => {
                    built.states.push((self.factories[factory])().map_err(|error| unbuilt(Some(error)))?);
                    made.insert(factory, built.states.len() - 1);
                    built.states.len() - 1
                }
            };
            built.state_of.push(state);
        }
        Ok(built)
    }
}

/// The states of one group.
pub(crate) struct Built {
    pub states: Vec<Box<dyn Node>>,
    pub state_of: Vec<usize>,
}

/// A node that could not be built: its name, and why unless it is not registered at all.
#[derive(Debug)]
pub(crate) struct Unbuilt {
    pub node: String,
    pub error: Option<BuildError>,
}
