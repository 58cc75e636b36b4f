//! How the processes of a group are started: program, arguments, environment, working directory.
//!
//! All of it is looked up before anything is started, so that a fault of one group leaves no process of
//! another behind, and is named as what was stated.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::error::StartError;
use super::spawner::on_spawner;
use crate::base::refusal::StartStep;
use crate::os::child::{self, Spawn, Spawned};
use crate::os::program;
use crate::plan::placement::{PlacedGroup, ProcessSpec};
use crate::worker::MARKER;

/// What a worker's environment keeps of the engine's; everything else must be stated.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "LLVM_PROFILE_FILE",
];

/// What is needed to start one process, in the words of the operating system.
pub(super) struct Launch {
    group: String,
    /// `None`: this very program.
    program: Option<PathBuf>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
}

impl Launch {
    /// Looks up what `group` states; `engine_env` are the variables for the workers of all groups.
    pub fn new(group: &PlacedGroup, engine_env: &[(OsString, OsString)]) -> Result<Self, StartError> {
        let ProcessSpec { command, cwd, .. } = &group.process;
        let search = std::env::var_os("PATH");
        let program = match command.first() {
            None => None,
            Some(stated) => {
                let found = program::resolve(stated, search.as_deref());
                Some(found.map_err(refused(&group.name, "command", stated))?)
            }
        };
        let cwd = match cwd {
            None => None,
            Some(stated) => {
                Some(directory(stated).map_err(refused(&group.name, "cwd", stated.as_os_str()))?)
            }
        };
        let args = command.iter().skip(1).cloned().collect();
        let env = environment(engine_env, &group.process);
        Ok(Self { group: group.name.clone(), program, args, env, cwd })
    }

    /// Starts one process with `stdin` as its descriptor 0.
    pub fn spawn(self, stdin: OwnedFd) -> Result<Spawned, StartError> {
        let Self { group, program, args, env, cwd } = self;
        let stated = program.clone();
        let run = move || {
            let program = program.as_deref().unwrap_or(child::exec_path());
            child::spawn(Spawn { program, args: &args, env: &env, cwd: cwd.as_deref(), stdin })
        };
        on_spawner(run).map_err(|error| match stated {
            Some(program) => refused(&group, "command", program.as_os_str())(error),
            None => StartError::System { group, step: StartStep::Spawn, error },
        })
    }
}

/// A fault of what was stated of a group.
pub(super) fn refused(
    group: &str,
    field: &'static str,
    value: impl AsRef<OsStr>,
) -> impl FnOnce(io::Error) -> StartError {
    let (group, value) = (group.to_owned(), value.as_ref().to_string_lossy().into_owned());
    move |error| StartError::Process { group, field, value, error }
}

/// The absolute path of a directory that is there. The spawn itself could not tell it from a missing program.
fn directory(stated: &Path) -> io::Result<PathBuf> {
    match std::fs::metadata(stated)?.is_dir() {
        true => std::path::absolute(stated),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// The whole environment of a process. Of a variable that is named twice the later value counts: what is
/// stated of the group wins over what is stated of all, and that over what is inherited anyway.
fn environment(engine_env: &[(OsString, OsString)], process: &ProcessSpec) -> Vec<(OsString, OsString)> {
    let own = |name: &OsStr| Some((name.to_owned(), std::env::var_os(name)?));
    let inherited = INHERITED.iter().filter_map(|name| own(OsStr::new(name)));
    let asked_for = process.inherit_env.iter().filter_map(|name| own(name));
    let marker = (OsString::from(MARKER), OsString::from("1"));
    inherited
        .chain(engine_env.iter().cloned())
        .chain(asked_for)
        .chain(process.env.iter().cloned())
        .chain([marker])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(process: ProcessSpec) -> Result<Launch, String> {
        let group = PlacedGroup { name: "g".into(), processes: 1, process, ..PlacedGroup::default() };
        let engine_env = [("A".into(), "all".into()), ("B".into(), "all".into())];
        Launch::new(&group, &engine_env).map_err(|error| error.to_string())
    }

    fn value<'a>(launch: &'a Launch, name: &str) -> Option<&'a OsStr> {
        launch.env.iter().rev().find(|(stated, _)| stated == name).map(|(_, value)| value.as_os_str())
    }

    #[test]
    fn what_is_stated_of_the_group_wins() {
        let process = ProcessSpec {
            env: vec![("B".into(), "group".into()), (MARKER.into(), "0".into())],
            // Set by the runner of these tests, and on no list.
            inherit_env: vec!["CARGO_MANIFEST_DIR".into(), "HANDBELL_NO_SUCH_VARIABLE".into()],
            ..ProcessSpec::default()
        };
        let launch = launched(process).unwrap();
        assert_eq!(value(&launch, "A"), Some(OsStr::new("all")));
        assert_eq!(value(&launch, "B"), Some(OsStr::new("group")));
        assert_eq!(value(&launch, MARKER), Some(OsStr::new("1")));
        assert_eq!(value(&launch, "CARGO_MANIFEST_DIR"), std::env::var_os("CARGO_MANIFEST_DIR").as_deref());
        assert_eq!(value(&launch, "HANDBELL_NO_SUCH_VARIABLE"), None);
        assert_eq!(value(&launched(ProcessSpec::default()).unwrap(), "CARGO_MANIFEST_DIR"), None);
    }

    #[test]
    fn gate_01_what_cannot_be_had_is_named() {
        let command = |program: &str| ProcessSpec {
            command: vec![program.into(), "canary".into()],
            ..ProcessSpec::default()
        };
        let cwd = |cwd: &str| ProcessSpec { cwd: Some(cwd.into()), ..ProcessSpec::default() };
        let at = "start refused at step spawn for group 'g'";
        for (process, said) in [
            (command("no-such-program"), "command = no-such-program: it is in no directory of PATH"),
            (command("/no/program"), "command = /no/program: No such file or directory (os error 2)"),
            (command("/etc/passwd"), "command = /etc/passwd: Permission denied (os error 13)"),
            (cwd("/no/directory"), "cwd = /no/directory: No such file or directory (os error 2)"),
            (cwd("/etc/passwd"), "cwd = /etc/passwd: not a directory"),
        ] {
            assert_eq!(launched(process).err(), Some(format!("{at}: {said}")));
        }
        let launch = launched(command("sh")).unwrap();
        assert!(launch.program.unwrap().is_absolute());
        assert_eq!(launch.args, ["canary"]);
        assert!(launched(cwd("src")).unwrap().cwd.unwrap().is_absolute());
    }
}
