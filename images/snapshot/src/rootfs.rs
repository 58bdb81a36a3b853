//! Root file systems: layers stacked by overlayfs, as a detached mount.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use amphora_spec::Digest;
use amphora_sys::mount::{Upper, overlay};
use rustix::io::Errno;

use crate::{Layers, Result, SnapshotError};

/// Most directories that overlayfs stacks (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;
/// Most layers of an image: the base of [`Layers::rootfs_over`] takes one place.
pub const MAX_IMAGE_LAYERS: usize = MAX_LAYERS - 1;
/// Longest value that `fsconfig(2)` takes as a string, without its final zero.
const MAX_OPTION_BYTES: usize = 255;

impl Layers {
    /// Mounts the layers, base first, as one detached overlay; writable when `upper` is given.
    /// An image without layers gives an empty root.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`] when a layer is not unpacked, [`SnapshotError::TooManyLayers`],
    /// [`SnapshotError::Overlay`] when the kernel refuses.
    pub fn rootfs(&self, diff_ids: &[Digest], upper: Option<Upper<'_>>) -> Result<OwnedFd> {
        self.rootfs_over(None, diff_ids, upper)
    }

    /// Like [`Layers::rootfs`], on top of the directory `base`, which even a layer with an opaque
    /// root does not hide: mount points that every container needs.
    ///
    /// # Errors
    /// Those of [`Layers::rootfs`].
    pub fn rootfs_over(
        &self,
        base: Option<&Path>,
        diff_ids: &[Digest],
        upper: Option<Upper<'_>>,
    ) -> Result<OwnedFd> {
        let lowers = self.lowers(base, diff_ids, upper.is_some())?;
        let refused = |source| SnapshotError::Overlay {
            layers: lowers.len(),
            root: self.root().to_owned(),
            source,
        };
        let mut names = Short::default();
        let short = names.shorten_all(&lowers).map_err(refused)?;
        let Some(upper) = upper else {
            return overlay(&short, None).map_err(refused);
        };
        let paths = [upper.upper, upper.work].map(|path| names.shorten(path));
        let [dir, work] = paths;
        let (dir, work) = (dir.map_err(refused)?, work.map_err(refused)?);
        let upper = Upper {
            upper: &dir,
            work: &work,
            volatile: upper.volatile,
        };
        overlay(&short, Some(upper)).map_err(refused)
    }

    /// Mounts the layers read-only as one detached overlay on top of `base`, with the directory
    /// `top`, which may be the writable layer of another mount, above all of them.
    ///
    /// # Errors
    /// Those of [`Layers::rootfs`].
    pub fn view(
        &self,
        base: Option<&Path>,
        diff_ids: &[Digest],
        top: Option<&Path>,
    ) -> Result<OwnedFd> {
        let mut lowers = self.lowers(base, diff_ids, false)?;
        lowers.splice(0..0, top.map(Path::to_owned));
        let refused = |source| SnapshotError::Overlay {
            layers: lowers.len(),
            root: self.root().to_owned(),
            source,
        };
        let mut names = Short::default();
        let short = names.shorten_all(&lowers).map_err(refused)?;
        overlay(&short, None).map_err(refused)
    }

    /// Chooses the lower directories, topmost first.
    fn lowers(
        &self,
        base: Option<&Path>,
        diff_ids: &[Digest],
        writable: bool,
    ) -> Result<Vec<PathBuf>> {
        let mut seen = HashSet::new();
        let mut lowers = Vec::with_capacity(diff_ids.len() + 1);
        for diff_id in diff_ids.iter().rev() {
            // A layer that comes twice does all it does in its topmost place, and overlayfs
            // refuses to stack a directory twice.
            if !seen.insert(diff_id) {
                continue;
            }
            let path = self.path(diff_id);
            let opaque = is_opaque(&path).map_err(|e| match e {
                Errno::NOENT => SnapshotError::NotFound(*diff_id),
                e => SnapshotError::io("read", &path)(e.into()),
            })?;
            lowers.push(path);
            // The kernel looks for opaqueness below the roots of layers only.
            if opaque {
                break;
            }
        }
        lowers.extend(base.map(Path::to_owned));
        // Without an upper directory overlayfs wants two lower ones.
        let wanted = if writable { 1 } else { 2 };
        let missing = usize::saturating_sub(wanted, lowers.len());
        lowers.extend(self.empty().into_iter().take(missing));
        if lowers.len() > MAX_LAYERS {
            return Err(SnapshotError::TooManyLayers {
                count: lowers.len(),
                limit: MAX_LAYERS,
            });
        }
        Ok(lowers)
    }
}

fn is_opaque(layer: &Path) -> std::result::Result<bool, Errno> {
    let mut value = [0u8; 4];
    match rustix::fs::lgetxattr(layer, "trusted.overlay.opaque", &mut value) {
        Ok(n) => Ok(value.get(..n) == Some(b"y")),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Names directories whose path is too long for a mount option by an open descriptor.
#[derive(Default)]
struct Short {
    open: Vec<File>,
}

impl Short {
    fn shorten(&mut self, path: &Path) -> io::Result<PathBuf> {
        if path.as_os_str().len() <= MAX_OPTION_BYTES {
            return Ok(path.to_owned());
        }
        let dir = File::open(path)?;
        let name = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        self.open.push(dir);
        Ok(name)
    }

    fn shorten_all(&mut self, paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
        paths.iter().map(|path| self.shorten(path)).collect()
    }
}
