//! Architectures and their system call tables.

use super::SeccompError;

/// An architecture whose system calls a filter can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86, also on a 64-bit kernel.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI), also on a 64-bit kernel.
    Arm,
}

/// `__X32_SYSCALL_BIT`: the x32 interface shares the architecture number of x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// ARM's own calls, which lie beyond its table.
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0xf0001),
    ("cacheflush", 0xf0002),
    ("usr26", 0xf0003),
    ("usr32", 0xf0004),
    ("set_tls", 0xf0005),
    ("get_tls", 0xf0006),
];

/// Slots of a table: more than twice as many as any architecture has names.
const SLOTS: usize = 1024;

/// Numbers by name, made when this is compiled: a profile names hundreds of calls, and the start of
/// a container waits until they are found.
struct Table {
    name: fn(u16) -> Option<&'static str>,
    /// Number and one; 0 is free. A name stands at its hash or behind it.
    slots: [u16; SLOTS],
}

impl Table {
    fn number(&self, wanted: &str) -> Option<u32> {
        let mut at = place(wanted);
        loop {
            let number = self.slots.get(at)?.checked_sub(1)?;
            if (self.name)(number) == Some(wanted) {
                return Some(number.into());
            }
            at = next(at);
        }
    }
}

/// Where a name is to stand (FNV-1a; the lower bits alone differ little between short names).
const fn place(name: &str) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    let mut left = name.as_bytes();
    while let Some((byte, rest)) = left.split_first() {
        hash = (hash ^ *byte as u32).wrapping_mul(0x0100_0193);
        left = rest;
    }
    (hash ^ (hash >> 15)) as usize % SLOTS
}

/// The place behind another.
const fn next(at: usize) -> usize {
    (at + 1) % SLOTS
}

macro_rules! table {
    ($module:ident) => {
        Table {
            name: |number| syscalls::$module::Sysno::new(number.into()).map(|call| call.name()),
            slots: {
                let mut slots = [0; SLOTS];
                let last = syscalls::$module::Sysno::last().id() as u16;
                let mut number = 0;
                while number <= last {
                    if let Some(call) = syscalls::$module::Sysno::new(number as usize) {
                        let mut at = place(call.name());
                        while slots[at] != 0 {
                            at = next(at);
                        }
                        slots[at] = number + 1;
                    }
                    number += 1;
                }
                slots
            },
        }
    };
}

static X86_64: Table = table!(x86_64);
static X86: Table = table!(x86);
static AARCH64: Table = table!(aarch64);
static ARM: Table = table!(arm);

impl Arch {
    /// The architecture this program is built for.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// `AUDIT_ARCH_*`, what the kernel puts into `seccomp_data.arch`.
    #[must_use]
    pub const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Go's name, by which Docker's profiles call it.
    pub(super) const fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
        }
    }

    /// Reads `SCMP_ARCH_*`. `None` for one that never runs beside those above, or not as one of
    /// its own: nothing has to be compiled for it, and its calls are killed as foreign.
    pub(super) fn parse(name: &str) -> Result<Option<Self>, SeccompError> {
        match name {
            "SCMP_ARCH_X86_64" => Ok(Some(Self::X86_64)),
            "SCMP_ARCH_X86" => Ok(Some(Self::X86)),
            "SCMP_ARCH_AARCH64" => Ok(Some(Self::Aarch64)),
            "SCMP_ARCH_ARM" => Ok(Some(Self::Arm)),
            "SCMP_ARCH_X32"
            | "SCMP_ARCH_MIPS"
            | "SCMP_ARCH_MIPS64"
            | "SCMP_ARCH_MIPS64N32"
            | "SCMP_ARCH_MIPSEL"
            | "SCMP_ARCH_MIPSEL64"
            | "SCMP_ARCH_MIPSEL64N32"
            | "SCMP_ARCH_PPC"
            | "SCMP_ARCH_PPC64"
            | "SCMP_ARCH_PPC64LE"
            | "SCMP_ARCH_S390"
            | "SCMP_ARCH_S390X"
            | "SCMP_ARCH_PARISC"
            | "SCMP_ARCH_PARISC64"
            | "SCMP_ARCH_RISCV64"
            | "SCMP_ARCH_LOONGARCH64"
            | "SCMP_ARCH_M68K"
            | "SCMP_ARCH_SH"
            | "SCMP_ARCH_SHEB" => Ok(None),
            other => Err(SeccompError::invalid("linux.seccomp.architectures", other)),
        }
    }

    /// Whether a kernel for `native` runs programs of this architecture.
    pub(super) fn runs_on(self, native: Self) -> bool {
        self == native
            || matches!(
                (native, self),
                (Self::X86_64, Self::X86) | (Self::Aarch64, Self::Arm)
            )
    }

    /// The number of a system call; `None` when this architecture has none of that name.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        let own = ARM_PRIVATE.iter().find(|(own, _)| *own == name);
        match (self, own) {
            (Self::Arm, Some((_, number))) => Some(*number),
            _ => self.table().number(name),
        }
    }

    fn table(self) -> &'static Table {
        match self {
            Self::X86_64 => &X86_64,
            Self::X86 => &X86,
            Self::Aarch64 => &AARCH64,
            Self::Arm => &ARM,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Arch;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(Arch::X86_64.number("read"), Some(0));
        assert_eq!(Arch::X86_64.number("clone3"), Some(435));
        assert_eq!(Arch::X86_64.number("file_setattr"), Some(469));
        assert_eq!(Arch::X86.number("socketcall"), Some(102));
        assert_eq!(Arch::Aarch64.number("clone3"), Some(435));
        assert_eq!(Arch::Aarch64.number("openat"), Some(56));
        assert_eq!(Arch::Aarch64.number("open"), None);
        assert_eq!(Arch::Arm.number("set_tls"), Some(0xf0005));
        assert_eq!(Arch::X86_64.number("no_such_call"), None);
    }

    #[test]
    fn every_name_is_found() {
        for arch in [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm] {
            let table = arch.table();
            let named = (0..u16::MAX).filter_map(|number| Some((number, (table.name)(number)?)));
            let mut count = 0;
            for (number, name) in named {
                assert_eq!(arch.number(name), Some(number.into()), "{arch:?} {name}");
                count += 1;
            }
            assert!(count > 300, "{arch:?} has {count}");
        }
    }
}
