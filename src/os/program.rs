//! Finding a program by name.
//!
//! Owns the search that a shell does, done here once and before a process is started: with an environment of
//! its own a child would search in another `PATH`, and only after it was born. Never runs anything.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// The absolute path of a program that this process may execute.
///
/// A name without a slash is looked for in `search`, a list of directories as in `PATH`; empty entries are
/// passed over. Any other path is taken as it is, a relative one from this process's working directory.
///
/// # Errors
/// `NotFound` if there is none; `PermissionDenied` if there is, but it is not a file or may not be executed.
pub fn resolve(program: &OsStr, search: Option<&OsStr>) -> io::Result<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        let path = std::path::absolute(program)?;
        return check(&path).map(|()| path);
    }
    let missing = || io::Error::new(io::ErrorKind::NotFound, "it is in no directory of PATH");
    let mut result = Err(missing());
    for directory in std::env::split_paths(search.unwrap_or_default()) {
        if directory.as_os_str().is_empty() {
            continue;
        }
        let path = std::path::absolute(directory.join(program))?;
        match check(&path) {
            Ok(()) => return Ok(path),
            // As a shell does: one that may not be executed is remembered, and looked past.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => result = Err(error),
            Err(_) => {}
        }
    }
    result
}

fn check(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path)?.is_file() {
        true => Ok(access(path, Access::EXEC_OK)?),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn found(program: &str, search: &str) -> Result<PathBuf, ErrorKind> {
        resolve(OsStr::new(program), Some(OsStr::new(search))).map_err(|error| error.kind())
    }

    #[test]
    fn a_bare_name_is_looked_for_in_order() {
        assert_eq!(found("sh", "/nowhere:/bin"), Ok("/bin/sh".into()));
        assert_eq!(found("sh", "/nowhere"), Err(ErrorKind::NotFound));
        assert_eq!(found("sh", "::"), Err(ErrorKind::NotFound));
        let unset = resolve(OsStr::new("sh"), None).unwrap_err();
        assert_eq!(unset.to_string(), "it is in no directory of PATH");
    }

    #[test]
    fn what_cannot_be_executed_is_said_so_and_looked_past() {
        assert_eq!(found("passwd", "/etc"), Err(ErrorKind::PermissionDenied));
        assert_eq!(found("etc", "/"), Err(ErrorKind::PermissionDenied), "a directory");
        assert_eq!(found("sh", "/:/bin"), Ok("/bin/sh".into()));
    }

    #[test]
    fn a_path_is_not_looked_for() {
        assert_eq!(found("/bin/sh", ""), Ok("/bin/sh".into()));
        assert_eq!(found("/bin/no such program", "/bin"), Err(ErrorKind::NotFound));
        assert_eq!(found("./src", "/bin"), Err(ErrorKind::PermissionDenied));
        assert_eq!(found("./sh", "/bin"), Err(ErrorKind::NotFound));
    }
}
