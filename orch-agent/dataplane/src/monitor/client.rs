//! The reading end of the monitor's socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::{filter::Filter, record::Message};

/// Why nothing can be monitored.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// No agent listens there.
    #[error("connect to {path}: {source}; is an agent running with this --run-dir, and are you root?", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("read from the agent: {0}")]
    Read(#[from] io::Error),
    /// The agent ended it.
    #[error("the agent has ended the connection: it was stopped or restarted")]
    Ended,
    /// The agent refused.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// The agent speaks another version.
    #[error("the agent says something that this version does not understand: {0}")]
    Strange(#[from] serde_json::Error),
}

/// A connection to an agent's monitor.
pub struct Monitor {
    lines: BufReader<UnixStream>,
    line: String,
}

impl Monitor {
    /// Connects and asks for what passes `filter`; the agent is listening once the first message
    /// ([`Message::Ready`]) has come.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn connect(socket: &Path, filter: &Filter) -> Result<Self, MonitorError> {
        let mut stream = UnixStream::connect(socket).map_err(|source| MonitorError::Connect {
            path: socket.to_owned(),
            source,
        })?;
        let mut line = serde_json::to_string(filter)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        Ok(Self {
            lines: BufReader::new(stream),
            line: String::new(),
        })
    }

    /// Waits for the next message; returns it with the line it came in.
    ///
    /// # Errors
    /// When the agent ends the connection or refuses.
    pub fn receive(&mut self) -> Result<(Message, &str), MonitorError> {
        self.line.clear();
        if self.lines.read_line(&mut self.line)? == 0 {
            return Err(MonitorError::Ended);
        }
        let line = self.line.trim_end();
        match serde_json::from_str(line)? {
            Message::Error { message } => Err(MonitorError::Refused(message)),
            message => Ok((message, line)),
        }
    }
}
