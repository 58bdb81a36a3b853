//! Error classes, shared by every crate so that an edge (exit code, HTTP status) needs one table.

/// Says what class a failure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// The object exists already, or is held by somebody else.
    Conflict,
    /// The input is malformed or out of range.
    InvalidArgument,
    /// The object is in the wrong state for the request.
    FailedPrecondition,
    /// The other side is unreachable or overloaded; trying again may help.
    Unavailable,
    /// The caller may not do this.
    PermissionDenied,
    /// Disk, memory, addresses or another bounded thing ran out.
    ResourceExhausted,
    /// The request is understood and not supported.
    Unsupported,
    /// Data failed verification.
    DataLoss,
    /// The container's command could not be found (exit code 127).
    CommandNotFound,
    /// The container's command could not be executed (exit code 126).
    CommandNotExecutable,
    /// Everything else: a kernel call failed, an invariant was broken.
    Internal,
}

/// Gives the class of an error.
pub trait Classify: std::error::Error {
    /// Returns the class of this error.
    fn kind(&self) -> ErrorKind;
}

/// Maps an I/O error to its class: full disks and refused access keep their meaning.
#[must_use]
pub fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::Conflict,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory => ErrorKind::ResourceExhausted,
        Io::ConnectionRefused | Io::TimedOut | Io::HostUnreachable | Io::NetworkUnreachable => {
            ErrorKind::Unavailable
        }
        Io::InvalidData | Io::UnexpectedEof => ErrorKind::DataLoss,
        Io::InvalidInput => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    }
}

/// Cuts the number that the standard library puts behind the system's words.
fn plain(mut text: String) -> String {
    if let Some(at) = text.rfind(" (os error ")
        && text.ends_with(')')
    {
        text.truncate(at);
    }
    text
}

/// Renders an error with its chain of causes, separated by `: `.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = plain(error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        let part = plain(cause.to_string());
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open \"/x\"")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_is_one_sentence_in_the_system_s_words() {
        let error = Outer(std::io::Error::from_raw_os_error(2));
        assert_eq!(
            chain(&error),
            "failed to open \"/x\": No such file or directory"
        );
    }
}
