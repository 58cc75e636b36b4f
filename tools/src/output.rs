//! Where lines are written: a file or standard output, buffered.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use crate::exit::{Exit, Problem};

const BUFFER_BYTES: usize = 64 << 10;

/// A standard stream as it is. The library's own writers take what is written to a stream that cannot be written for
/// done.
pub struct Standard<S>(pub S);

impl<S: AsFd> Write for Standard<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An open output.
pub struct Sink {
    field: &'static str,
    name: String,
    /// Buffered: flush it before waiting for anything.
    pub writer: BufWriter<Box<dyn Write>>,
}

impl Sink {
    /// Opens the output called `name`, `-` for standard output. Refuses the file that `input` is, before a
    /// byte of it is lost.
    pub fn open(name: &str, input: Option<&Metadata>) -> Result<Self, Problem> {
        Self::open_as("output", name, input)
    }

    /// The same, stated as `field`.
    pub fn open_as(field: &'static str, name: &str, input: Option<&Metadata>) -> Result<Self, Problem> {
        let refused = |rule: String| Problem::field(Exit::Output, field, name, rule);
        let writer: Box<dyn Write> = if name == "-" {
            // Appending to the input would feed the run with its own decisions.
            let stdout =
                rustix::fs::fstat(io::stdout()).ok().filter(|_| input.is_some_and(Metadata::is_file));
            let is_input = |stdout: rustix::fs::Stat| {
                input.is_some_and(|input| (input.dev(), input.ino()) == (stdout.st_dev, stdout.st_ino))
            };
            if stdout.is_some_and(is_input) {
                return Err(refused("must not be the input".into()));
            }
            Box::new(Standard(io::stdout()))
        } else {
            let open = || -> io::Result<(File, Metadata)> {
                let file = File::options().write(true).create(true).truncate(false).open(name)?;
                let metadata = file.metadata()?;
                Ok((file, metadata))
            };
            let (file, metadata) =
                open().map_err(|error| refused(format!("must be a file that can be written ({error})")))?;
            if metadata.is_file() {
                let same = |input: &Metadata| (input.dev(), input.ino()) == (metadata.dev(), metadata.ino());
                if input.is_some_and(same) {
                    return Err(refused("must not be the input".into()));
                }
                let emptied = file.set_len(0);
                emptied.map_err(|error| refused(format!("must be a file that can be written ({error})")))?;
            }
            Box::new(file)
        };
        Ok(Self { field, name: name.to_owned(), writer: BufWriter::with_capacity(BUFFER_BYTES, writer) })
    }

    /// What a failed write means.
    pub fn problem(&self, error: &io::Error) -> Problem {
        problem_with(self.field, &self.name, error)
    }
}

/// What a failed write to `name` means.
pub fn write_problem(name: &str, error: &io::Error) -> Problem {
    problem_with("output", name, error)
}

fn problem_with(field: &str, name: &str, error: &io::Error) -> Problem {
    let rule = if error.kind() == io::ErrorKind::BrokenPipe {
        "its reader must stay until the end (the pipe is closed)".to_owned()
    } else {
        format!("must take all that is written ({error})")
    };
    Problem::field(Exit::Output, field, name, rule)
}
