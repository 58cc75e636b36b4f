//! `handbell generate`: input for the demonstration.

use std::io::Write;

use clap::Args;

use crate::exit::{Exit, Problem};
use crate::load_limits::generator;
use crate::output::Sink;

/// What to generate.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// Lines to write
    #[arg(long, value_name = "N")]
    lines: u64,
    /// Chooses the lines; the same number gives the same bytes on every machine
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Where the lines go; - is standard output
    #[arg(long, value_name = "FILE|-", default_value = "-")]
    output: String,
}

/// Writes the lines.
pub fn run(args: &GenerateArgs) -> Exit {
    match generate(args) {
        Ok(()) => Exit::Success,
        Err(problem) => problem.tell(),
    }
}

fn generate(args: &GenerateArgs) -> Result<(), Problem> {
    let mut sink = Sink::open(&args.output, None)?;
    let written = generator::generate(args.lines, args.seed, &mut sink.writer);
    let written = written.and_then(|()| sink.writer.flush());
    written.map_err(|error| sink.problem(&error))
}
