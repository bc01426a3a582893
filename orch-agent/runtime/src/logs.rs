//! Reading container logs in CRI format.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;

use crate::RuntimeError;
use crate::runtime::blocking;

/// Which part of a log is wanted, as in `kubectl logs`. Lines of both streams, in order.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// Only so many last lines.
    pub tail_lines: Option<u64>,
    /// Only lines not older than this.
    pub since_time: Option<jiff::Timestamp>,
    /// Only lines of the last so many seconds.
    pub since_seconds: Option<i64>,
    /// Put each line's RFC 3339 time before it.
    pub timestamps: bool,
    /// End after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How much of a file is read at once.
const BLOCK: usize = 64 << 10;

/// Streams a log. `still_running` is asked at the log's end while following: once it says no, what is there is
/// read to its end and the stream ends. A log that does not exist is an error (a `File` error, "not found").
pub fn read<F>(
    path: &Path,
    options: LogOptions,
    still_running: F,
) -> impl Stream<Item = Result<Bytes, RuntimeError>> + Send + 'static
where
    F: Fn() -> bool + Send + Sync + 'static,
{
    let state = State::New(path.to_owned(), options);
    futures::stream::try_unfold((state, still_running), |(state, still_running)| async move {
        let mut reader = match state {
            State::New(path, options) => blocking(move || Reader::open(path, options)).await?,
            State::Reading(reader) => reader,
        };
        loop {
            // Asked before reading, so that the last lines of a container that ends just now are not missed.
            let last = !reader.options.follow || !still_running();
            let (back, read) = blocking(move || {
                let mut reader = reader;
                let read = reader.next();
                Ok((reader, read))
            })
            .await?;
            reader = back;
            let output = read.map_err(RuntimeError::file("read", &reader.path))?;
            if !output.is_empty() {
                return Ok(Some((
                    Bytes::from(output),
                    (State::Reading(reader), still_running),
                )));
            }
            if last || reader.remaining == Some(0) {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    })
}

enum State {
    New(PathBuf, LogOptions),
    Reading(Reader),
}

struct Reader {
    path: PathBuf,
    options: LogOptions,
    since: Option<jiff::Timestamp>,
    file: File,
    /// The beginning of an entry whose end has not been read yet.
    pending: Vec<u8>,
    /// Whether the next entry of stdout and of stderr goes on with a line.
    within_line: [bool; 2],
    /// Bytes that may still be given out.
    remaining: Option<u64>,
}

impl Reader {
    fn open(path: PathBuf, options: LogOptions) -> Result<Self, RuntimeError> {
        let mut file = File::open(&path).map_err(RuntimeError::file("open", &path))?;
        if let Some(lines) = options.tail_lines {
            seek_to_tail(&mut file, lines).map_err(RuntimeError::file("read", &path))?;
        }
        let ago = options.since_seconds.map(|seconds| {
            jiff::Timestamp::now()
                .checked_sub(jiff::SignedDuration::from_secs(seconds))
                .unwrap_or(jiff::Timestamp::MIN)
        });
        let since = options.since_time.max(ago);
        let remaining = options.limit_bytes;
        Ok(Self {
            path,
            options,
            since,
            file,
            pending: Vec::new(),
            within_line: [false; 2],
            remaining,
        })
    }

    /// What there is next; empty at the end of what has been written.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        let mut block = vec![0; BLOCK];
        while output.is_empty() && self.remaining != Some(0) {
            let count = self.file.read(&mut block)?;
            if count == 0 && !self.reopen_if_rotated()? {
                break;
            }
            self.pending.extend_from_slice(&block[..count]);
            self.convert(&mut output);
        }
        if let Some(remaining) = &mut self.remaining {
            output.truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
            *remaining -= output.len() as u64;
        }
        Ok(output)
    }

    /// At the end of a file that was put aside, goes on with the new one.
    fn reopen_if_rotated(&mut self) -> io::Result<bool> {
        let current = match std::fs::metadata(&self.path) {
            Ok(current) => current,
            // Between its being put aside and the next, or deleted with its container.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if current.ino() == self.file.metadata()?.ino() {
            return Ok(false);
        }
        self.file = File::open(&self.path)?;
        Ok(true)
    }

    /// Turns all complete entries into what a person wants to read.
    fn convert(&mut self, output: &mut Vec<u8>) {
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let rest = self.pending.split_off(end + 1);
        let entries = std::mem::replace(&mut self.pending, rest);
        for line in entries.split_inclusive(|byte| *byte == b'\n') {
            let Some(entry) = Entry::parse(line.strip_suffix(b"\n").unwrap_or(line)) else {
                continue;
            };
            let within_line = &mut self.within_line[usize::from(entry.is_stderr)];
            let begins = !std::mem::replace(within_line, entry.is_partial);
            if self
                .since
                .is_some_and(|since| entry.time().is_none_or(|time| time < since))
            {
                continue;
            }
            if self.options.timestamps && begins {
                output.extend_from_slice(entry.timestamp.as_bytes());
                output.push(b' ');
            }
            output.extend_from_slice(entry.content);
            if !entry.is_partial {
                output.push(b'\n');
            }
        }
    }
}

/// One line of a log file.
struct Entry<'a> {
    timestamp: &'a str,
    is_stderr: bool,
    is_partial: bool,
    content: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let timestamp = std::str::from_utf8(parts.next()?).ok()?;
        let is_stderr = match parts.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let tags = parts.next()?;
        let is_partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
        Some(Self {
            timestamp,
            is_stderr,
            is_partial,
            content: parts.next().unwrap_or_default(),
        })
    }

    fn time(&self) -> Option<jiff::Timestamp> {
        self.timestamp.parse().ok()
    }
}

/// Moves to where the last so many lines begin.
fn seek_to_tail(file: &mut File, lines: u64) -> io::Result<()> {
    let mut position = file.seek(SeekFrom::End(0))?;
    let mut block = vec![0; BLOCK];
    let mut left = lines;
    // The end of the last line does not begin another one.
    let mut at_end = true;
    while position > 0 {
        let count = position.min(BLOCK as u64);
        position -= count;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..count as usize];
        file.read_exact(block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if std::mem::take(&mut at_end) && lines > 0 {
                continue;
            }
            if left <= 1 || lines == 0 {
                let start = if lines == 0 {
                    file.seek(SeekFrom::End(0))?
                } else {
                    position + index as u64 + 1
                };
                file.seek(SeekFrom::Start(start))?;
                return Ok(());
            }
            left -= 1;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::{StreamExt, TryStreamExt};

    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.000000000Z stdout F one\n\
                       2026-01-01T00:00:01.000000000Z stderr P tw\n\
                       2026-01-01T00:00:01.500000000Z stderr F o\n\
                       2026-01-01T00:00:02.000000000Z stdout F \n\
                       2026-01-01T00:00:03.000000000Z stdout F last line\n";

    struct TempLog(PathBuf);

    impl TempLog {
        fn new(text: &str) -> Self {
            let path = PathBuf::from(format!("/tmp/ort-log-{}", crate::sys::unique()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }

        async fn read(&self, options: LogOptions) -> String {
            let parts: Vec<Bytes> = read(&self.0, options, || false).try_collect().await.unwrap();
            String::from_utf8(parts.concat()).unwrap()
        }
    }

    impl Drop for TempLog {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[tokio::test]
    async fn options_choose_parts() {
        let log = TempLog::new(LOG);
        let all = LogOptions::default();
        assert_eq!(log.read(all.clone()).await, "one\ntwo\n\nlast line\n");
        assert_eq!(
            log.read(LogOptions {
                tail_lines: Some(1),
                ..all.clone()
            })
            .await,
            "last line\n"
        );
        assert_eq!(
            log.read(LogOptions {
                tail_lines: Some(0),
                ..all.clone()
            })
            .await,
            ""
        );
        assert_eq!(
            log.read(LogOptions {
                tail_lines: Some(99),
                ..all.clone()
            })
            .await,
            "one\ntwo\n\nlast line\n"
        );
        assert_eq!(
            log.read(LogOptions {
                limit_bytes: Some(5),
                ..all.clone()
            })
            .await,
            "one\nt"
        );
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(
            log.read(LogOptions {
                since_time: since,
                ..all.clone()
            })
            .await,
            "\nlast line\n"
        );
        assert_eq!(
            log.read(LogOptions {
                since_seconds: Some(5),
                ..all.clone()
            })
            .await,
            ""
        );
        let stamped = log
            .read(LogOptions {
                timestamps: true,
                tail_lines: Some(4),
                ..all
            })
            .await;
        assert!(
            stamped.starts_with("2026-01-01T00:00:01.000000000Z two\n2026-01-01T00:00:02"),
            "{stamped}"
        );
    }

    #[tokio::test]
    async fn following_goes_over_a_rotation_and_ends() {
        let log = TempLog::new("2026-01-01T00:00:00Z stdout F a\n");
        let running = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&running);
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let mut stream = Box::pin(read(&log.0, options, move || flag.load(Ordering::SeqCst)));
        assert_eq!(stream.next().await.unwrap().unwrap(), "a\n");
        let aside = log.0.with_extension("old");
        let mut old = std::fs::OpenOptions::new().append(true).open(&log.0).unwrap();
        std::fs::rename(&log.0, &aside).unwrap();
        old.write_all(b"2026-01-01T00:00:01Z stdout F b\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "b\n");
        std::fs::write(&log.0, "2026-01-01T00:00:02Z stdout F c\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "c\n");
        running.store(false, Ordering::SeqCst);
        assert!(stream.next().await.is_none());
        std::fs::remove_file(aside).unwrap();
    }

    #[tokio::test]
    async fn a_missing_log_is_an_error() {
        let mut stream = Box::pin(read(
            Path::new("/tmp/ort-no-such-log"),
            LogOptions::default(),
            || false,
        ));
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("/tmp/ort-no-such-log"), "{error}");
    }
}
