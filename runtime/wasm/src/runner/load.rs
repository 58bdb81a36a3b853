//! Loading native code: the one place where bytes become executable.
#![expect(
    unsafe_code,
    reason = "wasmtime trusts an artefact blindly; only files of our own cache come here"
)]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use wasmtime::component::Component;
use wasmtime::{CustomCodeMemory, Engine, Module};

use crate::engine::{Profile, runner_config};

/// Maps a core module.
pub(super) fn module(artefact: File) -> wasmtime::Result<Module> {
    let engine = Engine::new(&runner_config(Profile::Isolated))?;
    // SAFETY: the descriptor comes from whoever made the plan, who opened it in the cache: made
    // by our compiler, its sum checked, write-protected and never changed (see `cache`). wasmtime
    // compares version and settings itself.
    unsafe { Module::deserialize_open_file(&engine, artefact) }
}

/// Maps a component. wasmtime can only map a path, and a container has no `/proc` that would
/// name a descriptor: so the mapping is made here.
pub(super) fn component(artefact: &File) -> wasmtime::Result<Component> {
    let mut config = runner_config(Profile::Isolated);
    config.with_custom_code_memory(Some(Arc::new(Protect)));
    let engine = Engine::new(&config)?;
    let length = usize::try_from(artefact.metadata()?.len())?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new private mapping at an address of the kernel's choice, aliased by nothing.
    let start =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, artefact, 0) }?;
    let start = NonNull::new(start.cast::<u8>())
        .ok_or_else(|| wasmtime::Error::msg("artefact was mapped at address zero"))?;
    let memory = NonNull::slice_from_raw_parts(start, length);
    // SAFETY: the bytes are trusted for the reasons given in `module`; the mapping is never
    // unmapped or written while the process lives.
    unsafe { Component::deserialize_raw(&engine, memory) }
}

/// Makes the code of a component executable.
#[derive(Debug)]
struct Protect;

impl Protect {
    fn set(start: *const u8, length: usize, flags: MprotectFlags) -> wasmtime::Result<()> {
        let start = start.cast_mut().cast();
        // SAFETY: wasmtime passes whole pages of the mapping made in `component`, in which it
        // found the code, and runs none of it while its protection changes.
        Ok(unsafe { rustix::mm::mprotect(start, length, flags) }?)
    }
}

impl CustomCodeMemory for Protect {
    fn required_alignment(&self) -> usize {
        rustix::param::page_size()
    }

    fn publish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        // The length of the code is no multiple of a page; what follows up to the next section,
        // which is aligned, is padding.
        let length = length.next_multiple_of(self.required_alignment());
        Self::set(start, length, MprotectFlags::READ | MprotectFlags::EXEC)
    }

    fn unpublish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        let length = length.next_multiple_of(self.required_alignment());
        Self::set(start, length, MprotectFlags::READ | MprotectFlags::WRITE)
    }
}
