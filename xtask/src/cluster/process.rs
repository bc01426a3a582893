//! Long-running processes: started detached, in a cgroup of their own, found again by it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{cgroup, layout};
use crate::run;

/// A process to keep running.
pub struct Daemon {
    /// The name of its log and pid file.
    pub name: String,
    /// The cgroup2 it lives in.
    pub cgroup: String,
    /// The network namespace to enter, if not the machine's.
    pub netns: Option<PathBuf>,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additional environment.
    pub env: Vec<(&'static str, String)>,
}

/// What `ensure` had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It ran already, with this command line and program.
    Kept,
    /// It was started, or started anew because its program or command line changed.
    Started,
}

impl Daemon {
    /// Makes sure that the process runs, with this very program and command line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ensure(&self) -> Result<Ensured> {
        let wanted = self.fingerprint()?;
        if let Some((pid, fingerprint)) = self.recorded() {
            if fingerprint == wanted && is_running(pid) {
                return Ok(Ensured::Kept);
            }
            stop(pid, Duration::from_secs(15))?;
        }
        self.start(&wanted)?;
        Ok(Ensured::Started)
    }

    /// Stops the process if it runs.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> Result<()> {
        if let Some((pid, _)) = self.recorded() {
            stop(pid, Duration::from_secs(15))?;
        }
        let _ = fs::remove_file(self.pid_file());
        Ok(())
    }

    /// Its pid, when it runs.
    pub fn pid(&self) -> Option<i32> {
        self.recorded().map(|(pid, _)| pid).filter(|&pid| is_running(pid))
    }

    /// Fails with the log's last line when the process has ended.
    ///
    /// # Errors
    /// When it has.
    pub fn check(&self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let log = layout::log(&self.name);
        bail!(
            "{} ended: {} (see {})",
            self.name,
            run::last_words(&log),
            log.display()
        )
    }

    fn start(&self, fingerprint: &str) -> Result<()> {
        let procs = cgroup::create(&self.cgroup)?;
        let log = layout::log(&self.name);
        fs::create_dir_all(log.parent().unwrap_or(Path::new("/")))
            .context("failed to create the log folder")?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        // The shell moves itself into the cgroup, so the program never runs a moment outside of it.
        let mut command = run::command("setsid", ["sh", "-c"]);
        command
            .arg("echo $$ > \"$1\" && echo \"$$ $3\" > \"$2\" && shift 3 && exec \"$@\"")
            .arg("sh");
        command.arg(&procs).arg(self.pid_file()).arg(fingerprint);
        if let Some(netns) = &self.netns {
            command
                .arg("nsenter")
                .arg(format!("--net={}", netns.display()))
                .arg("--");
        }
        command
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)));
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("failed to share the log file")?)
            .stderr(file);
        let _ = fs::remove_file(self.pid_file());
        // Reaped by init: the child outlives this program.
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to start {}", self.name))?;
        let began = Instant::now();
        while self.recorded().is_none() {
            if let Some(status) = child.try_wait().context("failed to ask for a child's state")?
                && !status.success()
            {
                bail!(
                    "{} did not start ({status}): {}",
                    self.name,
                    run::last_words(&log)
                );
            }
            if began.elapsed() > Duration::from_secs(5) {
                bail!("{} did not start within 5 s (see {})", self.name, log.display());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn pid_file(&self) -> PathBuf {
        layout::state_dir().join(format!("{}.pid", self.name))
    }

    fn recorded(&self) -> Option<(i32, String)> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (pid, fingerprint) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        // A pid may have been given to another process since: ours is in the cgroup.
        let path = format!("/proc/{pid}/cgroup");
        let inside = fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("/{}", self.cgroup)));
        inside.then(|| (pid, fingerprint.to_owned()))
    }

    fn fingerprint(&self) -> Result<String> {
        use sha2::{Digest as _, Sha256};
        let metadata = fs::metadata(&self.program)
            .with_context(|| format!("failed to find {}", self.program.display()))?;
        let mut hash = Sha256::new();
        hash.update(format!(
            "{:?} {} {:?} {:?}",
            metadata.modified().ok(),
            metadata.len(),
            self.args,
            self.env
        ));
        Ok(hash
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}

fn stop(pid: i32, patience: Duration) -> Result<()> {
    let pid_ = Pid::from_raw(pid);
    // It may have ended by itself: then there is nothing to signal.
    let _ = kill(pid_, Signal::SIGTERM);
    let began = Instant::now();
    while is_running(pid) {
        if began.elapsed() > patience {
            let _ = kill(pid_, Signal::SIGKILL);
        }
        if began.elapsed() > patience + Duration::from_secs(5) {
            bail!("process {pid} does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
