//! Extended attributes.

use rustix::io::Errno;

/// The kernel's own limit for a value, and for a list of names (`XATTR_SIZE_MAX`).
const BYTES_MAX: usize = 64 << 10;

/// Reads a value or a list of names whole: with a small buffer first, as most files have no or
/// few attributes.
///
/// # Errors
/// What `read` answers.
pub fn whole(
    mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 512];
    match read(&mut small) {
        Ok(length) => Ok(small.get(..length).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; BYTES_MAX];
            let length = read(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}
