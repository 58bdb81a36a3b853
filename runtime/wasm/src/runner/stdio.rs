//! Standard streams straight on the descriptors: no helper thread, no buffer of ours, no flags
//! changed on files that others share.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// Most bytes moved at once.
const CHUNK: usize = 64 * 1024;

/// Descriptor 0, watched by the runtime from the first time that somebody waits for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Input {
    /// Inside: nothing when the kernel cannot watch it (a plain file is always ready).
    watched: Arc<OnceLock<Option<AsyncFd<io::Stdin>>>>,
}

impl Input {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe for types that may close the descriptor; \
                  descriptor 0 stays open as long as the process"
    )]
    fn watched(&self) -> Option<&AsyncFd<io::Stdin>> {
        let watch = || AsyncFd::with_interest(io::stdin(), Interest::READABLE).ok();
        self.watched.get_or_init(watch).as_ref()
    }

    /// Asks the kernel, without waiting.
    fn is_ready() -> bool {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        !matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(watched) = self.watched() else {
            return Poll::Ready(());
        };
        while !Self::is_ready() {
            match ready!(watched.poll_read_ready(context)) {
                Ok(mut guard) => {
                    if Self::is_ready() {
                        break;
                    }
                    guard.clear_ready();
                }
                Err(_) => break,
            }
        }
        Poll::Ready(())
    }

    fn read_into(buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(io::stdin().as_fd(), &mut *buffer) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        rustix::termios::isatty(io::stdin())
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll_ready(context)).await;
    }
}

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 || !Self::is_ready() {
            return Ok(Bytes::new());
        }
        let mut buffer = vec![0; size.min(CHUNK)];
        match Self::read_into(&mut buffer) {
            Ok(0) => Err(StreamError::Closed),
            Ok(count) => {
                buffer.truncate(count);
                Ok(buffer.into())
            }
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(context));
        let count = Self::read_into(buffer.initialize_unfilled())?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Descriptor 1 or 2. Writes block, as those of a native program do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn write_some(self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Self::Stdout => rustix::io::write(io::stdout().as_fd(), bytes),
                Self::Stderr => rustix::io::write(io::stderr().as_fd(), bytes),
            };
            match result {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                // Somebody who shares the descriptor made it non-blocking.
                Err(Errno::AGAIN) => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(self) -> io::Result<()> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let mut fds = [match self {
            Self::Stdout => PollFd::new(&stdout, PollFlags::OUT),
            Self::Stderr => PollFd::new(&stderr, PollFlags::OUT),
        }];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        match self {
            Self::Stdout => rustix::termios::isatty(io::stdout()),
            Self::Stderr => rustix::termios::isatty(io::stderr()),
        }
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(*self)
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(*self)
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut rest: &[u8] = &bytes;
        while !rest.is_empty() {
            match self.write_some(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(StreamError::Closed);
                }
                Err(error) => return Err(StreamError::LastOperationFailed(error.into())),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write_some(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
