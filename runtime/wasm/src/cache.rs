//! The cache of compiled modules: one file per module, engine and profile, made once and never
//! changed, because the runner maps it as code.
//!
//! `<dir>/<key>.cwasm` is the artefact and a trailer: SHA-256 of the artefact, then a magic
//! number. The directory is 0700, files are 0444; a file is written under another name and
//! renamed. The sum is checked at the first open of a boot, which leaves a stamp on the run
//! directory's tmpfs; later opens compare size, times and owner with the stamp. Nothing is synced:
//! what a crash tears fails the sum and is made again, like whatever else does not fit.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use amphora_executor::Module;
use amphora_spec::Digest;
use sha2::{Digest as _, Sha256};

use crate::WasmError;
use crate::compile::Compiler;
use crate::engine::{Profile, fingerprint};

const TRAILER_MAGIC: &[u8; 8] = b"amphaot1";
const TRAILER_BYTES: u64 = 32 + 8;
/// How often a lock file is opened again because its holder removed it.
const LOCK_ATTEMPTS: usize = 1000;

/// The directory of compiled modules.
#[derive(Debug)]
pub struct AotCache {
    dir: PathBuf,
    stamps: PathBuf,
    profile: Profile,
    fingerprint: Digest,
    owner: u32,
}

/// A compiled module, ready to be mapped.
#[derive(Debug)]
pub struct Artefact {
    /// The file, read-only.
    pub file: OwnedFd,
    /// It had to be compiled now.
    pub compiled: bool,
}

impl AotCache {
    /// Opens the cache in `dir` (made when missing); `stamps` is a directory that does not
    /// outlive the boot.
    ///
    /// # Errors
    /// When `dir` cannot be made, or the CPU is not supported.
    pub fn open(dir: &Path, stamps: &Path, profile: Profile) -> Result<Self, WasmError> {
        let make = |path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
        };
        make(dir).map_err(WasmError::file("create directory", dir))?;
        // Without stamps every open takes a sum, no more.
        let _ = make(stamps);
        Ok(Self {
            dir: dir.to_owned(),
            stamps: stamps.to_owned(),
            profile,
            fingerprint: fingerprint(profile)?,
            owner: rustix::process::geteuid().as_raw(),
        })
    }

    /// Returns the key of a module's artefact: a digest of the module and of everything else
    /// that shapes native code.
    #[must_use]
    pub fn key(&self, module: &Digest) -> Digest {
        let mut sha = Sha256::new();
        sha.update(module.as_bytes());
        sha.update(self.fingerprint.as_bytes());
        Digest::from_sha256(sha.finalize().into())
    }

    /// Opens the artefact of a module, when there is a sound one.
    ///
    /// # Errors
    /// When the cache cannot be read at all; an unsound artefact is removed and is no error.
    pub fn get(&self, module: &Digest) -> Result<Option<OwnedFd>, WasmError> {
        let path = self.artefact(module);
        let open = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path);
        let mut file = match open {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(WasmError::file("open", path)(error)),
        };
        let sound = self.check(&mut file, module);
        if sound.map_err(WasmError::file("read", &path))? {
            return Ok(Some(file.into()));
        }
        self.discard(module)?;
        Ok(None)
    }

    /// Opens the artefact of a module and compiles it first when there is no sound one.
    /// Whoever comes meanwhile, in any process, waits and finds it done.
    ///
    /// # Errors
    /// [`WasmError::Module`] and kin when the module is refused; others when the cache or the
    /// compiler fails.
    pub fn ensure(&self, module: &Module, compiler: &Compiler) -> Result<Artefact, WasmError> {
        if let Some(file) = self.get(&module.digest)? {
            return Ok(Artefact {
                file,
                compiled: false,
            });
        }
        let lock = self.lock(&module.digest)?;
        let result = match self.get(&module.digest)? {
            Some(file) => Ok(Artefact {
                file,
                compiled: false,
            }),
            None => self.make(module, compiler).map(|file| Artefact {
                file,
                compiled: true,
            }),
        };
        // Removed while still held: who waits for it sees that and makes a new one.
        let _ = std::fs::remove_file(self.lock_path(&module.digest));
        drop(lock);
        result
    }

    /// Removes the artefact of a module; a missing one is fine.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn discard(&self, module: &Digest) -> Result<(), WasmError> {
        for path in [self.stamp(module), self.artefact(module)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(WasmError::file("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn artefact(&self, module: &Digest) -> PathBuf {
        self.dir.join(format!("{}.cwasm", self.key(module).hex()))
    }

    fn stamp(&self, module: &Digest) -> PathBuf {
        self.stamps
            .join(format!("{}.checked", self.key(module).hex()))
    }

    fn lock_path(&self, module: &Digest) -> PathBuf {
        self.dir.join(format!("{}.lock", self.key(module).hex()))
    }

    /// Cheap check against the stamp of this boot, or the sum.
    fn check(&self, file: &mut File, module: &Digest) -> io::Result<bool> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.uid() != self.owner || meta.mode() & 0o222 != 0 {
            return Ok(false);
        }
        let facts = stamp_text(&meta);
        let stamp = self.stamp(module);
        if std::fs::read_to_string(&stamp).is_ok_and(|text| text == facts) {
            return Ok(true);
        }
        if !sum_matches(file, meta.len())? {
            return Ok(false);
        }
        // A stamp that cannot be written costs the next start a sum, no more.
        let _ = std::fs::write(&stamp, facts);
        Ok(true)
    }

    fn lock(&self, module: &Digest) -> Result<File, WasmError> {
        let path = self.lock_path(module);
        let attempt = || -> io::Result<Option<File>> {
            let file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            file.lock()?;
            let here = std::fs::metadata(&path).map(|meta| meta.ino());
            let held = file.metadata()?.ino();
            Ok(here.is_ok_and(|inode| inode == held).then_some(file))
        };
        for _ in 0..LOCK_ATTEMPTS {
            if let Some(file) = attempt().map_err(WasmError::file("lock", &path))? {
                return Ok(file);
            }
        }
        Err(WasmError::file("lock", path)(
            io::ErrorKind::ResourceBusy.into(),
        ))
    }

    /// Compiles into a file of another name and renames it. The lock is held.
    fn make(&self, module: &Module, compiler: &Compiler) -> Result<OwnedFd, WasmError> {
        let path = self.artefact(&module.digest);
        let part = path.with_extension("part");
        let result = self
            .make_part(module, compiler, &part)
            .and_then(|()| std::fs::rename(&part, &path).map_err(WasmError::file("rename", &part)));
        if let Err(error) = result {
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
        let made = self.get(&module.digest)?;
        made.ok_or_else(|| WasmError::file("read", path)(io::ErrorKind::InvalidData.into()))
    }

    fn make_part(
        &self,
        module: &Module,
        compiler: &Compiler,
        part: &Path,
    ) -> Result<(), WasmError> {
        let create = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(part);
        let mut file = create.map_err(WasmError::file("create", part))?;
        compiler.compile(
            self.profile,
            &module.digest,
            module.file.as_fd(),
            file.as_fd(),
        )?;
        seal(&mut file).map_err(WasmError::file("write", part))
    }
}

fn stamp_text(meta: &std::fs::Metadata) -> String {
    format!(
        "{} {} {}.{} {}.{}\n",
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// Appends the trailer and takes the right to write away.
fn seal(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let sum = sum(file, length)?;
    file.seek(SeekFrom::End(0))?;
    let mut trailer = sum.as_bytes().to_vec();
    trailer.extend_from_slice(TRAILER_MAGIC);
    file.write_all(&trailer)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o444))
}

fn sum_matches(file: &mut File, length: u64) -> io::Result<bool> {
    let Some(body) = length.checked_sub(TRAILER_BYTES).filter(|&body| body > 0) else {
        return Ok(false);
    };
    let actual = sum(file, body)?;
    let mut trailer = Vec::new();
    file.take(TRAILER_BYTES).read_to_end(&mut trailer)?;
    file.rewind()?;
    Ok(trailer.strip_prefix(actual.as_bytes().as_slice()) == Some(TRAILER_MAGIC.as_slice()))
}

/// SHA-256 of the first `length` bytes; leaves the offset behind them.
fn sum(file: &mut File, length: u64) -> io::Result<Digest> {
    file.rewind()?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut source = file.take(length);
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => sha.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Digest::from_sha256(sha.finalize().into()))
}
