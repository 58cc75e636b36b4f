//! What is to be run and how: the plan of nodes and groups, the settings, the memory that they take.
//!
//! Pure: everything is checked here once, before anything starts; an error names the field, the value and
//! the rule.

pub mod budget;
pub mod error;
pub mod loopback;
pub mod placement;
// A plan among what belongs to it: what is to be run is both the folder and the noun.
#[allow(clippy::module_inception)]
pub mod plan;
pub mod restart;
pub mod settings;
