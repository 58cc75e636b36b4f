//! The front door: the nodes that an application has, as worker and as engine.

use std::sync::Arc;

use crate::base::failure::NodeError;
use crate::engine::EngineBuilder;
use crate::node::registry::Registry;
use crate::node::{BuildError, Node, Output, Request};
use crate::plan::plan::Plan;
use crate::worker;

/// The nodes that this program has code for. The same program is engine and worker: what it registers here it
/// can run in a child of its own.
///
/// ```no_run
/// use handbell::{App, Deadline, Drain, Plan};
/// use std::time::Duration;
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let app = App::new().node("upper", |request, output| {
///         Ok(output.reply(&request.payload().to_ascii_uppercase())?)
///     });
///     app.serve_if_worker();
///     let engine = app.engine(Plan::new().group("text", ["upper"])).start()?;
///     let upper = engine.node("upper")?;
///     let reply = engine.call(upper, b"ding", Deadline::after(Duration::from_secs(1)))?;
///     assert_eq!(*reply.bytes(), *b"DING");
///     engine.stop(Drain::within(Duration::from_secs(5)));
///     Ok(())
/// }
/// ```
#[derive(Clone, Default)]
pub struct App {
    registry: Registry,
}

impl App {
    /// An application without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node without state: a function.
    pub fn node<F>(self, name: impl Into<String>, run: F) -> Self
    where
        F: Fn(&Request<'_>, &mut Output<'_>) -> Result<(), NodeError> + Clone + Send + Sync + 'static,
    {
        self.node_with(name, move || Ok(run.clone()))
    }

    /// A node with state, which `build` makes once in each process that runs it.
    pub fn node_with<N, F>(self, name: impl Into<String>, build: F) -> Self
    where
        N: Node + 'static,
        F: Fn() -> Result<N, BuildError> + Send + Sync + 'static,
    {
        self.add([name.into()], build)
    }

    /// Several nodes that share one state; [`Request::node_name`] tells which is called.
    pub fn nodes_with<N, F, S>(self, names: impl IntoIterator<Item = S>, build: F) -> Self
    where
        N: Node + 'static,
        F: Fn() -> N + Send + Sync + 'static,
        S: Into<String>,
    {
        self.add(names.into_iter().map(Into::into), move || Ok(build()))
    }

    fn add<N, F>(mut self, names: impl IntoIterator<Item = String>, build: F) -> Self
    where
        N: Node + 'static,
        F: Fn() -> Result<N, BuildError> + Send + Sync + 'static,
    {
        self.registry.add(names, Arc::new(move || build().map(|node| Box::new(node) as Box<dyn Node>)));
        self
    }

    /// In a process that an engine started: serves and never returns. Elsewhere: does nothing.
    ///
    /// Make it the first line of `main`: a worker begins by closing every descriptor but the standard three.
    pub fn serve_if_worker(&self) {
        if worker::is_worker() {
            worker::run(&self.registry);
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// An engine for `plan`, to be stated further and started.
    pub fn engine(&self, plan: Plan) -> EngineBuilder {
        EngineBuilder::new(self.registry.clone(), plan)
    }
}
