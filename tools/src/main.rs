//! The `handbell` command: `demo` runs the load-limits plan in real child processes, `generate` makes input
//! for it, `bench` measures hand-offs on this machine.

mod bench;
mod demo;
mod exit;
mod generate;
mod input;
mod interrupt;
mod load_limits;
mod output;
mod side;
mod stream;
mod summary;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use exit::{Exit, Problem};
use output::{Standard, write_problem};

/// Hands work to supervised child processes through shared memory, and shows what became of it
#[derive(Parser, Debug)]
#[command(name = "handbell", version, after_help = Exit::help())]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Decide load limits line by line in child processes, and compare with the same in this process
    Demo(demo::DemoArgs),
    /// Measure hand-offs on this machine, beside what the machine itself charges
    Bench(bench::BenchArgs),
    /// Write input for the demonstration
    Generate(generate::GenerateArgs),
}

fn main() -> ExitCode {
    handbell_measure::serve_if_partner();
    let app = bench::nodes::with_nodes(load_limits::nodes::app());
    app.serve_if_worker();
    interrupt::survive_file_limits();
    let exit = match Arguments::try_parse() {
        Ok(Arguments { command: Command::Demo(args) }) => demo::run(&app, &args),
        Ok(Arguments { command: Command::Bench(args) }) => bench::run(&app, &args),
        Ok(Arguments { command: Command::Generate(args) }) => generate::run(&args),
        Err(error) => answer(&error),
    };
    exit.into()
}

/// Help as it is; what is wrong with the arguments in one line.
fn answer(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render().to_string();
            match Standard(std::io::stdout()).write_all(text.as_bytes()) {
                Ok(()) => Exit::Success,
                Err(error) => write_problem("-", &error).tell(),
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // With standard error gone there is nobody left to help.
            let _ = error.print();
            Exit::Usage
        }
        _ => Problem { exit: Exit::Usage, message: one_line(&error.to_string()) }.tell(),
    }
}

/// The first paragraph of what clap says: what is wrong, and what would be right.
fn one_line(text: &str) -> String {
    let paragraph = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    paragraph.collect::<Vec<_>>().join(" ")
}
