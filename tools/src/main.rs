//! The `handbell` command.

fn main() {}
