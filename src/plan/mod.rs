//! What is to be run and how: the plan of nodes and groups, the settings, the memory that they take.
//!
//! Pure: everything is checked here once, before anything starts; an error names the field, the value and
//! the rule.

pub mod budget;
pub mod loopback;
pub mod placement;
pub mod settings;
