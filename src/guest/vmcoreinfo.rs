//! VMCOREINFO: what a Linux kernel tells the readers of its dumps.
//!
//! ```text
//! OSRELEASE=6.1.0-56-cloud-amd64
//! BUILD-ID=…                          since Linux 5.9
//! PAGESIZE=4096
//! SYMBOL(init_uts_ns)=ffffffffa6a1aec0        hex
//! OFFSET(list_head.next)=0                    decimal, as SIZE and LENGTH
//! NUMBER(phys_base)=511705088                 decimal, or hex with 0x
//! KERNELOFFSET=24e00000                       hex
//! CRASHTIME=…                                 of a kernel that crashed
//! ```
//!
//! The kernel makes it as it starts, in a page of its own (`vmcoreinfo_data`),
//! and once more as an ELF note in two pages (`vmcoreinfo_note`); up to Linux
//! 4.12 both are in its `.bss`. NULs fill what is left.
//!
//! Source followed: Linux `kernel/vmcore_info.c` (`kernel/crash_core.c`,
//! `kernel/kexec_core.c` before), `arch/*/kernel/vmcore_info.c`.

use crate::error::Result;
use crate::physical::{Note, PhysicalMemory};
use crate::units::PhysicalAddress;

/// How it begins.
pub(super) const HEAD: &[u8] = b"OSRELEASE=";

/// The name of the note, with its NUL.
const NAME: &[u8] = b"VMCOREINFO\0";

/// Bytes of the note before its text: three words, and the name filled up to
/// whole words.
pub(super) const NOTE_HEAD_LEN: usize = 24;

/// The longest that it can be: a page of the kernel, `VMCOREINFO_BYTES`.
const LONGEST: u64 = 64 << 10;

/// What a Linux kernel tells the readers of its dumps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmcoreInfo {
    text: String,
}

impl VmcoreInfo {
    /// Takes `text` for VMCOREINFO if it is: lines of `key=value`, the first
    /// of them the release, with a page size and a symbol among them.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let is_whole = text.starts_with("OSRELEASE=") && text.ends_with('\n');
        let are_lines = || text.lines().all(|line| line.contains('=') && line.bytes().all(is_printed));
        let info = Self { text: (is_whole && are_lines()).then(|| text.to_owned())? };
        let has_symbol = || info.text.contains("\nSYMBOL(");
        (!info.os_release().is_empty() && info.page_size().is_some() && has_symbol()).then_some(info)
    }

    /// Reads it where its text begins in memory. `None` if that is none.
    ///
    /// # Errors
    /// As [`PhysicalMemory::read`].
    pub(super) fn read(memory: &PhysicalMemory<'_, '_>, at: PhysicalAddress) -> Result<Option<Self>> {
        let mut text = Vec::new();
        // Piece by piece: of what only looks like it most is not read.
        let mut piece = [0; 1024];
        let mut longest = LONGEST;
        while let Some(at) = at.checked_add(text.len() as u64).filter(|_| text.len() as u64 <= longest) {
            let len = memory.read(at, &mut piece)?;
            let read = piece.get(..len).unwrap_or_default();
            let end = memchr::memchr(0, read);
            let part = read.get(..end.unwrap_or(len)).unwrap_or_default();
            if !part.iter().all(|byte| is_printed(*byte) || *byte == b'\n') {
                return Ok(None);
            }
            if text.is_empty() {
                let Some(page_size) = page_size(part) else { return Ok(None) };
                longest = page_size;
            }
            text.extend_from_slice(part);
            match end {
                Some(_) => return Ok(Self::parse(&text)),
                None if len < piece.len() => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// Its text: lines of `key=value`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value of a key, such as `KERNELOFFSET`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// The kernel's release, `uname -r`.
    pub fn os_release(&self) -> &str {
        self.value("OSRELEASE").unwrap_or_default()
    }

    /// The size of the kernel's pages, in bytes.
    pub fn page_size(&self) -> Option<u64> {
        page_size(self.text.as_bytes())
    }

    /// The virtual address of a symbol, where it is in this boot.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.value(&format!("SYMBOL({name})"))?, 16).ok()
    }

    /// A number. One that is negative comes as two's complement.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.value(&format!("NUMBER({name})"))?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse::<i64>().ok().map(i64::cast_unsigned),
        }
    }

    /// How far KASLR has moved the kernel from where it was linked to be, in
    /// bytes; 0 if it has not. `None` of a kernel that does not tell: one
    /// without KASLR.
    pub fn kernel_offset(&self) -> Option<u64> {
        u64::from_str_radix(self.value("KERNELOFFSET")?, 16).ok()
    }

    /// The note of a core file.
    pub fn to_note(&self) -> Note {
        Note { name: "VMCOREINFO", kind: 0, desc: self.text.as_bytes().to_vec() }
    }
}

/// `PAGESIZE`, which is one of the first lines.
fn page_size(text: &[u8]) -> Option<u64> {
    let value = text.split(|byte| *byte == b'\n').take(3).find_map(|line| line.strip_prefix(b"PAGESIZE="))?;
    let size: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (size.is_power_of_two() && (4096..=LONGEST).contains(&size)).then_some(size)
}

fn is_printed(byte: u8) -> bool {
    byte == b' ' || byte.is_ascii_graphic()
}

/// Where in `bytes`, which begin a page, the text of VMCOREINFO may begin.
pub(super) fn at_page_start(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(HEAD) {
        return Some(0);
    }
    is_note(bytes).then_some(NOTE_HEAD_LEN)
}

/// Whether `bytes` begin with the head of the note, in either byte order.
pub(super) fn is_note(bytes: &[u8]) -> bool {
    let name = bytes.get(12..).is_some_and(|name| name.starts_with(NAME));
    let len = bytes.first_chunk::<4>().copied().map(u32::from_le_bytes);
    name && len.is_some_and(|len| [len, len.swap_bytes()].contains(&11))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff81a1aec0\n\
        NUMBER(phys_base)=-16777216\nNUMBER(kimage_voffset)=0xffff7fffc8000000\nKERNELOFFSET=24e00000\n";

    #[test]
    fn keys_have_values() {
        let info = VmcoreInfo::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(info.os_release(), "6.1.0");
        assert_eq!(info.page_size(), Some(4096));
        assert_eq!(info.symbol("init_uts_ns"), Some(0xffff_ffff_81a1_aec0));
        assert_eq!(info.symbol("init_uts"), None);
        assert_eq!(info.number("phys_base"), Some((-16_777_216_i64).cast_unsigned()));
        assert_eq!(info.number("kimage_voffset"), Some(0xffff_7fff_c800_0000));
        assert_eq!(info.kernel_offset(), Some(0x24e0_0000));
        assert_eq!(info.to_note().desc, TEXT.as_bytes());
    }

    #[test]
    fn what_only_looks_like_it_is_refused() {
        let without = |part: &str| TEXT.replace(part, "");
        let cases = [
            String::new(),
            "OSRELEASE=".to_owned(),
            "OSRELEASE=%s\n".to_owned(),
            without("OSRELEASE=6.1.0\n"),
            without("PAGESIZE=4096\n"),
            without("SYMBOL(init_uts_ns)=ffffffff81a1aec0\n"),
            TEXT.replace("4096", "4095"),
            TEXT.replace("4096", "18446744073709551616"),
            TEXT.replace("6.1.0", ""),
            TEXT.replace("6.1.0", "6.1.0\u{7}"),
            TEXT.trim_end().to_owned(),
            format!("{TEXT}\n"),
        ];
        for case in cases {
            assert_eq!(VmcoreInfo::parse(case.as_bytes()), None, "{case:?}");
        }
        assert_eq!(VmcoreInfo::parse(&[TEXT.as_bytes(), b"\xff=\n"].concat()), None);
    }

    #[test]
    fn a_page_that_has_it_shows_by_its_first_bytes() {
        let note = |len: [u8; 4]| [len.as_slice(), &[0; 8], b"VMCOREINFO\0\0OSRELEASE="].concat();
        assert_eq!(at_page_start(b"OSRELEASE=6"), Some(0));
        assert_eq!(at_page_start(&note([11, 0, 0, 0])), Some(24));
        assert_eq!(at_page_start(&note([0, 0, 0, 11])), Some(24));
        assert_eq!(at_page_start(&note([12, 0, 0, 0])), None);
        assert_eq!(at_page_start(b"VMCOREINFO\0"), None);
        assert_eq!(at_page_start(b""), None);
    }
}
