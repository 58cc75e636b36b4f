//! How the command ends: a code of its own for each kind of end, and one line that says why.

use std::fmt::Write as _;
use std::process::ExitCode;

use handbell::{CallError, Category, DispatchError, Failure};

/// How the command ended. The number is the process's exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Success = 0,
    /// The arguments cannot be understood.
    Usage = 2,
    /// The input cannot be read.
    Input = 3,
    /// The output cannot be written.
    Output = 4,
    /// An engine did not start.
    Start = 5,
    /// The worker died, cannot be reached, or broke the rules of its lane.
    Transport = 6,
    /// A line was not decided before its deadline.
    Timeout = 7,
    /// A node failed.
    Execution = 8,
    /// A stop came before the run was over.
    Shutdown = 9,
    /// The profiles decided differently, or a measured reply is not what was asked for.
    Difference = 10,
    /// The ledger does not balance.
    Ledger = 11,
}

impl Exit {
    const TABLE: [(Self, &str); 11] = [
        (Self::Success, "all done"),
        (Self::Usage, "the arguments cannot be understood"),
        (Self::Input, "the input cannot be read"),
        (Self::Output, "the output cannot be written, or its reader is gone"),
        (Self::Start, "start refused"),
        (Self::Transport, "transport: the worker died or cannot be reached"),
        (Self::Timeout, "timeout: a line was not decided before its deadline"),
        (Self::Execution, "execution: a node failed"),
        (Self::Shutdown, "shutdown: Ctrl-C or SIGTERM came before the run was over"),
        (Self::Difference, "the two profiles decided differently, or a measured reply is wrong"),
        (Self::Ledger, "the ledger does not balance"),
    ];

    /// The table of exit codes, for `--help`.
    pub fn help() -> String {
        let mut text = String::from("Exit codes:");
        for (exit, meaning) in Self::TABLE {
            let _ = write!(text, "\n  {:>2}  {meaning}", exit as u8);
        }
        text
    }
}

impl From<Category> for Exit {
    fn from(category: Category) -> Self {
        match category {
            Category::Timeout => Self::Timeout,
            Category::Transport => Self::Transport,
            Category::Execution => Self::Execution,
            Category::Shutdown => Self::Shutdown,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why the command cannot go on.
#[derive(Debug)]
pub struct Problem {
    /// How the command ends because of it.
    pub exit: Exit,
    /// The one line on standard error.
    pub message: String,
}

impl Problem {
    /// A problem with what was given as `field`: the rule that `value` breaks.
    pub fn field(exit: Exit, field: &str, value: &str, rule: impl std::fmt::Display) -> Self {
        Self { exit, message: format!("{field} = {value}: {rule}") }
    }

    /// Says it on standard error, and gives the exit that it means.
    pub fn tell(&self) -> Exit {
        use std::io::Write as _;
        // With standard error gone there is nobody left to tell; the exit code still does.
        let _ = writeln!(std::io::stderr(), "{}", self.message);
        self.exit
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self { exit: failure.category().into(), message: failure.to_string() }
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let exit = match error {
            CallError::Failed(failure) => return failure.into(),
            CallError::Stopped => Exit::Shutdown,
            _ => Exit::Execution,
        };
        Self { exit, message: error.to_string() }
    }
}

impl From<DispatchError> for Problem {
    fn from(error: DispatchError) -> Self {
        CallError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_03_every_end_has_a_code_of_its_own() {
        let mut codes = Exit::TABLE.map(|(exit, _)| exit as u8).to_vec();
        codes.dedup();
        assert_eq!(codes, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let categories = [Category::Transport, Category::Timeout, Category::Execution, Category::Shutdown];
        assert_eq!(categories.map(|category| Exit::from(category) as u8), [6, 7, 8, 9]);
        assert!(Exit::help().ends_with("  11  the ledger does not balance"));
    }

    #[test]
    fn gate_03_the_map_of_failures_has_the_real_codes() {
        let map = include_str!("../../docs/failures.md");
        let rows =
            map.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
        let stated: Vec<_> = rows.filter(|row| row.len() == 3 && row[1].contains("remote handoff")).collect();
        let categories = [Category::Timeout, Category::Transport, Category::Execution, Category::Shutdown];
        for category in categories {
            let name = format!("`{}`", category.name());
            let row = stated.iter().find(|row| row[0] == name).expect("the map has every category");
            assert_eq!(row[2], (Exit::from(category) as u8).to_string());
        }
        assert_eq!(stated.len(), categories.len());
        assert!(map.contains(&format!("The command ends with {}.", Exit::Start as u8)));
    }

    #[test]
    fn a_stopped_engine_is_a_shutdown() {
        assert_eq!(Problem::from(CallError::Stopped).exit, Exit::Shutdown);
        assert_eq!(Problem::from(DispatchError::TraceInFlight).exit, Exit::Execution);
    }
}
