//! Inherited file descriptors: those a logger is given, and giving them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Takes over a descriptor that this process was started with; an error when it is not open.
///
/// Call it once per number, before anything else in the process opens files.
pub(crate) fn inherited(number: RawFd) -> io::Result<File> {
    // SAFETY: F_GETFD reads a flag of the descriptor table and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above) and by this function's contract nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Makes `command` start in a session of its own with `files` as its descriptors 3, 4, …
///
/// Only for a process in which these numbers are taken already (by its async runtime, say): else the standard
/// library's own pipe for reporting a failed exec could have one of them.
pub(crate) fn pass_from_three(command: &mut Command, files: Vec<OwnedFd>) {
    let install = move || {
        // Two steps, because a source may itself have one of the target numbers.
        let mut high = [0; 8];
        for (slot, file) in high.iter_mut().zip(&files) {
            // SAFETY: fcntl and dup2 only change the child's descriptor table and are async-signal-safe.
            *slot = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 32) };
            if *slot < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (index, slot) in high.iter().take(files.len()).enumerate() {
            // SAFETY: as above; the target numbers are the ones this child is meant to have.
            if unsafe { libc::dup2(*slot, 3 + index as RawFd) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: closes the copy made above, which nothing else knows.
            unsafe { libc::close(*slot) };
        }
        // SAFETY: setsid takes no arguments and is async-signal-safe.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and calls only async-signal-safe functions; it does not
    // allocate.
    unsafe { command.pre_exec(install) };
}
