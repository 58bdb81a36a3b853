//! First bytes.

use amphora_spec::select::Magic;

/// How many first bytes [`classify`] wants to see; a `.wat` comment may need more.
pub const MAGIC_LEN: usize = 4096;

const ELF: &[u8] = b"\x7fELF";
const WASM: &[u8] = b"\0asm";
/// `e_ident[EI_OSABI]` of wasmtime's artefacts.
const OSABI_WASMTIME: u8 = 200;
/// Section that holds the compiler's settings in wasmtime's artefacts.
const ENGINE_SECTION: &[u8] = b".wasmtime.engine\0";

/// Says what a file is by its first bytes (at least [`MAGIC_LEN`], or the whole of it).
#[must_use]
pub fn classify(head: &[u8]) -> Magic {
    if head.starts_with(ELF) {
        return if is_precompiled(head) {
            Magic::Precompiled
        } else {
            Magic::Elf
        };
    }
    if let Some(rest) = head.strip_prefix(WASM) {
        return match rest.get(..4) {
            Some([1, 0, 0, 0]) => Magic::WasmCore,
            Some([0x0d, 0, 1, 0]) => Magic::WasmComponent,
            _ => Magic::Other,
        };
    }
    if head.starts_with(b"#!") {
        return Magic::Script;
    }
    if is_text(head) {
        Magic::Wat
    } else {
        Magic::Other
    }
}

/// Says whether an ELF file is native code of a Wasm compiler. The whole file tells for sure;
/// its first bytes do for every version so far.
#[must_use]
pub fn is_precompiled(elf: &[u8]) -> bool {
    elf.starts_with(ELF)
        && (elf.get(7) == Some(&OSABI_WASMTIME)
            || section_names(elf).is_some_and(|names| {
                names
                    .windows(ENGINE_SECTION.len())
                    .any(|window| window == ENGINE_SECTION)
            }))
}

/// The string table of the section headers of a 64-bit little-endian ELF file.
fn section_names(elf: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        Some(u16::from_le_bytes(
            elf.get(at..at.checked_add(2)?)?.try_into().ok()?,
        ))
    };
    let long = |at: usize| {
        let bytes = elf.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let headers = long(0x28)?;
    let size = usize::from(word(0x3a)?);
    let strings = usize::from(word(0x3e)?);
    let header = headers.checked_add(size.checked_mul(strings)?)?;
    let start = long(header.checked_add(0x18)?)?;
    let length = long(header.checked_add(0x20)?)?;
    elf.get(start..start.checked_add(length)?)
}

/// Skips blanks and comments and looks for `(module` or `(component`.
fn is_text(head: &[u8]) -> bool {
    let mut rest = head;
    loop {
        rest = rest.trim_ascii_start();
        if rest.starts_with(b";;") {
            match rest.iter().position(|&c| c == b'\n') {
                Some(end) => rest = rest.get(end..).unwrap_or_default(),
                None => return false,
            }
        } else if rest.starts_with(b"(;") {
            match rest.windows(2).position(|pair| pair == b";)") {
                Some(end) => rest = rest.get(end + 2..).unwrap_or_default(),
                None => return false,
            }
        } else {
            return rest.starts_with(b"(module") || rest.starts_with(b"(component");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_kind() {
        assert_eq!(classify(b"\0asm\x01\0\0\0"), Magic::WasmCore);
        assert_eq!(classify(b"\0asm\x0d\0\x01\0"), Magic::WasmComponent);
        assert_eq!(classify(b"\0asm\x0a\0\x01\0"), Magic::Other);
        assert_eq!(classify(b"\0asm"), Magic::Other);
        assert_eq!(classify(b"#!/bin/sh\n"), Magic::Script);
        assert_eq!(classify(b"\x7fELF\x02\x01\x01\0"), Magic::Elf);
        assert_eq!(classify(b"\x7fELF\x02\x01\x01\xc8"), Magic::Precompiled);
        assert_eq!(classify(b""), Magic::Other);
    }

    #[test]
    fn wasm_text_is_recognised_behind_blanks_and_comments() {
        for text in [
            "(module)",
            " \n(component)",
            ";; hello\n(module $x)",
            "(; a ;)\n (module)",
        ] {
            assert_eq!(classify(text.as_bytes()), Magic::Wat, "{text}");
        }
        for text in ["", ";;", "(;", "(modul", "module"] {
            assert_eq!(classify(text.as_bytes()), Magic::Other, "{text}");
        }
    }

    #[test]
    fn an_elf_file_with_broken_headers_is_just_elf() {
        let mut elf = vec![0xff; 64];
        elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        assert!(!is_precompiled(&elf));
    }
}
