//! A Linux guest: its VMCOREINFO, and what that leads to.
//!
//! VMCOREINFO may be in memory more than once: beside the kernel's own two
//! there may be those of kernels before it, and whatever else somebody put
//! there. One counts if the kernel it speaks of is there: it says where
//! `init_uts_ns` is, which holds the same release.
//!
//! ```text
//! struct uts_namespace { [kref, up to Linux 5.10] new_utsname name; … }
//! struct new_utsname   { char sysname[65], nodename[65], release[65], version[65], machine[65], … }
//! ```
//!
//! Source followed: Linux `include/uapi/linux/utsname.h`, `init/version.c`;
//! QEMU `hw/misc/vmcoreinfo.c`.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;

use super::banner;
use super::entry::entries;
use super::paging::KERNEL_MAP;
use super::search;
use super::vmcoreinfo::{self, NOTE_HEAD_LEN, VmcoreInfo};
use crate::error::Result;
use crate::physical::{PhysicalMemory, VirtualRange};
use crate::stream::Stream;
use crate::units::PhysicalAddress;
use crate::wire::limit;

/// How much of memory is looked at for VMCOREINFO. If that confirms none, the
/// image of the kernel is looked through as well, where vCPUs of x86-64 lead to
/// one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Where pages begin that are in the stream as they are. Kernels since
    /// Linux 4.13 have it at the begin of a page. Of each some bytes are read,
    /// which stand behind its record's head.
    PlainStarts,
    /// Where pages begin, those too that have to be decoded.
    Starts,
    /// Everywhere.
    Everything,
}

/// Why VMCOREINFO is taken for the running kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// `init_uts_ns` is where it says, with its release.
    Kernel,
    /// The guest has given its place to QEMU's vmcoreinfo device, but what it
    /// says of the kernel is not so.
    Device,
    /// Nothing but itself.
    Itself,
}

/// A Linux kernel that runs in the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Linux {
    /// What it tells the readers of its dumps.
    pub vmcoreinfo: VmcoreInfo,
    /// Where the text of that is in memory.
    pub at: PhysicalAddress,
    /// Why it is taken for the kernel's.
    pub evidence: Evidence,
    /// What `uname` says.
    pub uts: Option<Uts>,
    /// The line that the kernel begins its log with.
    pub banner: Option<String>,
    /// Virtual less physical address of the kernel's image; wraps.
    image_offset: Option<u64>,
}

/// What `uname` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uts {
    /// The host's name.
    pub nodename: String,
    /// The kernel's release.
    pub release: String,
    /// The kernel's build: `#1 SMP …`.
    pub version: String,
    /// The kind of machine.
    pub machine: String,
}

impl Linux {
    /// The kernel that runs in a guest; `None` if it tells nothing of itself
    /// where `depth` looks, or is no Linux.
    ///
    /// # Errors
    /// As [`Ram::page`](crate::Ram::page).
    pub fn find(stream: &Stream<'_>, memory: PhysicalMemory<'_, '_>, depth: Depth) -> Result<Option<Self>> {
        let told = match note_of_device(stream) {
            Some(at) => Self::at(memory, at, Evidence::Device, None)?,
            None => None,
        };
        let is_kernel = |linux: &Self| linux.evidence == Evidence::Kernel;
        let linux = match told {
            Some(linux) if is_kernel(&linux) => Some(linux),
            told => match Self::search(memory, depth, told)? {
                Some(linux) if is_kernel(&linux) => Some(linux),
                other => Self::in_image(stream, memory)?.or(other),
            },
        };
        linux.map(|linux| linux.with_banner(memory)).transpose()
    }

    /// The first that is confirmed, else `told`, else that at the lowest
    /// address.
    fn search(memory: PhysicalMemory<'_, '_>, depth: Depth, told: Option<Self>) -> Result<Option<Self>> {
        let unconfirmed: Mutex<Option<Self>> = Mutex::new(None);
        let tried = AtomicUsize::new(0);
        let is_new = || tried.fetch_add(1, Ordering::Relaxed) < limit::VMCOREINFO_CANDIDATES;
        let look = |page: PhysicalAddress, bytes: &[u8]| {
            for offset in candidates(bytes, depth) {
                let Some(at) = page.checked_add(offset as u64).filter(|_| is_new()) else { break };
                match Self::at(memory, at, Evidence::Itself, None)? {
                    Some(linux) if linux.evidence == Evidence::Kernel => return Ok(Some(linux)),
                    Some(linux) => {
                        let mut lowest = unconfirmed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        if lowest.as_ref().is_none_or(|lowest| linux.at < lowest.at) {
                            *lowest = Some(linux);
                        }
                    }
                    None => {}
                }
            }
            Ok(None)
        };
        let confirmed = search::in_pages(memory, depth != Depth::PlainStarts, look)?;
        let unconfirmed = || unconfirmed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(confirmed.or(told).or_else(unconfirmed))
    }

    /// The kernel of x86-64 that has its VMCOREINFO in its image, as those up to
    /// Linux 4.12 do: vCPUs lead to that.
    fn in_image(stream: &Stream<'_>, memory: PhysicalMemory<'_, '_>) -> Result<Option<Self>> {
        let (mut left, mut tries) = (limit::KERNEL_IMAGE_LEN, limit::VMCOREINFO_CANDIDATES);
        for entry in entries(stream, |lstar| KERNEL_MAP.contains(&lstar)) {
            /// Page tables for programs are right behind those of the kernel,
            /// where it has two (`PTI_USER_PGTABLE_MASK`).
            const PTI_USER: u64 = 1 << 12;
            for root in [entry.cr3 & !PTI_USER, entry.cr3 | PTI_USER] {
                let tables = entry.tables(&memory, root);
                let Some(offset) = tables.offset(entry.lstar)? else { continue };
                for VirtualRange { memory: range, .. } in tables.ranges(KERNEL_MAP, offset)? {
                    let len = left.min(range.end.0 - range.start.0);
                    left -= len;
                    let range = range.start.0..range.start.0 + len;
                    if let Some(linux) = Self::in_range(memory, range, offset, &mut tries)? {
                        return Ok(Some(linux));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The kernel that has its VMCOREINFO in a range of its image; at most
    /// `tries` places are looked at.
    fn in_range(
        memory: PhysicalMemory<'_, '_>,
        range: Range<u64>,
        image_offset: u64,
        tries: &mut usize,
    ) -> Result<Option<Self>> {
        let read = |at, into: &mut [u8]| memory.read(PhysicalAddress(at), into);
        search::in_pieces(range, vmcoreinfo::HEAD.len() - 1, read, |start, bytes| {
            for offset in memmem::find_iter(bytes, vmcoreinfo::HEAD) {
                let Some(left) = tries.checked_sub(1) else { break };
                *tries = left;
                let at = PhysicalAddress(start.saturating_add(offset as u64));
                let linux = Self::at(memory, at, Evidence::Itself, Some(image_offset))?;
                if let Some(linux) = linux.filter(|linux| linux.evidence == Evidence::Kernel) {
                    return Ok(Some(linux));
                }
            }
            Ok(None)
        })
    }

    /// The kernel whose VMCOREINFO is at `at`, which `evidence` speaks for; page
    /// tables have its image at `image_offset`.
    fn at(
        memory: PhysicalMemory<'_, '_>,
        at: PhysicalAddress,
        evidence: Evidence,
        image_offset: Option<u64>,
    ) -> Result<Option<Self>> {
        let Some(vmcoreinfo) = VmcoreInfo::read(&memory, at)? else { return Ok(None) };
        let confirmed = confirm(memory, &vmcoreinfo, image_offset)?;
        let evidence = if confirmed.is_some() { Evidence::Kernel } else { evidence };
        let (uts, image_offset) = confirmed.unzip();
        Ok(Some(Self { vmcoreinfo, at, evidence, uts, banner: None, image_offset }))
    }

    /// Looks for the banner in the kernel's image, where it stands whole.
    fn with_banner(self, memory: PhysicalMemory<'_, '_>) -> Result<Self> {
        let Some((start, uts)) = self.image_start().zip(self.uts.as_ref()) else { return Ok(self) };
        let ram_end = memory.layout().regions().last().map_or(0, |region| region.range.end.0);
        let range = start.0..start.0.saturating_add(limit::KERNEL_IMAGE_LEN).min(ram_end);
        let read = |at, into: &mut [u8]| memory.read(PhysicalAddress(at), into);
        let look = |_, bytes: &[u8]| Ok(banner::find(bytes, uts));
        let banner = search::in_pieces(range, banner::LONGEST, read, look)?;
        Ok(Self { banner, ..self })
    }

    /// Where the kernel's image begins in memory: `_stext`.
    pub fn image_start(&self) -> Option<PhysicalAddress> {
        let offset = self.image_offset?;
        Some(PhysicalAddress(self.vmcoreinfo.symbol("_stext")?.wrapping_sub(offset)))
    }

    /// Virtual less physical address of the kernel's image; wraps. `None` if
    /// nothing confirms it.
    pub fn image_offset(&self) -> Option<u64> {
        self.image_offset
    }

    /// Where a kernel of x86-64 is in memory less where it was linked to be:
    /// its `phys_base`. Wraps. Kernels up to 4.9 do not tell; of those it is
    /// where the image is.
    pub fn phys_base(&self) -> Option<u64> {
        let of_image = || {
            let is_x86_64 = self.uts.as_ref()?.machine == "x86_64";
            let is_there = KERNEL_MAP.contains(&self.vmcoreinfo.symbol("_stext")?);
            Some(KERNEL_MAP.start.wrapping_sub(self.image_offset.filter(|_| is_x86_64 && is_there)?))
        };
        self.vmcoreinfo.number("phys_base").or_else(of_image)
    }
}

/// Where the text of VMCOREINFO may begin in a page.
fn candidates(bytes: &[u8], depth: Depth) -> Vec<usize> {
    match depth {
        Depth::PlainStarts | Depth::Starts => vmcoreinfo::at_page_start(bytes).into_iter().collect(),
        Depth::Everything => memmem::find_iter(bytes, vmcoreinfo::HEAD).collect(),
    }
}

/// Where the guest has told QEMU's vmcoreinfo device that its note is: the
/// place of the note's text.
fn note_of_device(stream: &Stream<'_>) -> Option<PhysicalAddress> {
    const FW_CFG_VMCOREINFO_FORMAT_ELF: u64 = 1;
    let device = stream.devices().find(|device| device.section.handler.idstr == "vmcoreinfo")?;
    let state = device.decode().ok()?;
    let number = |name: &str| state.field(name)?.value.as_u64();
    let is_elf = number("vmcoreinfo.guest_format") == Some(FW_CFG_VMCOREINFO_FORMAT_ELF);
    let paddr = number("vmcoreinfo.paddr").filter(|paddr| is_elf && *paddr != 0)?;
    PhysicalAddress(paddr).checked_add(NOTE_HEAD_LEN as u64)
}

/// What `uname` says in the kernel that VMCOREINFO speaks of, and how far the
/// virtual addresses of its image are from physical ones. `None` if there is no
/// such kernel in memory.
fn confirm(
    memory: PhysicalMemory<'_, '_>,
    info: &VmcoreInfo,
    mapped_at: Option<u64>,
) -> Result<Option<(Uts, u64)>> {
    let Some(symbol) = info.symbol("init_uts_ns") else { return Ok(None) };
    for offset in mapped_at.into_iter().chain(image_offsets(info)) {
        if let Some(uts) = Uts::read(memory, PhysicalAddress(symbol.wrapping_sub(offset)))?
            && uts.release == info.os_release()
        {
            return Ok(Some((uts, offset)));
        }
    }
    Ok(None)
}

/// How far virtual addresses of the image may be from physical ones: what the
/// kernel says, then what is so on machines where it does not vary.
fn image_offsets(info: &VmcoreInfo) -> impl Iterator<Item = u64> {
    let told = [
        info.number("phys_base").map(|base| KERNEL_MAP.start.wrapping_sub(base)),
        info.number("kimage_voffset"),
        info.number("va_kernel_pa_offset"),
    ];
    // POWER; LoongArch; x86-64 that was not moved; 32-bit x86 and Arm; s390x.
    let fixed = [0xc000_0000_0000_0000, 0x9000_0000_0000_0000, KERNEL_MAP.start, 0xc000_0000, 0];
    told.into_iter().flatten().chain(fixed)
}

impl Uts {
    /// Reads the name in a `struct uts_namespace`; `None` if there is none.
    fn read(memory: PhysicalMemory<'_, '_>, at: PhysicalAddress) -> Result<Option<Self>> {
        /// `__NEW_UTS_LEN`, and its NUL.
        const LEN: usize = 65;
        let mut bytes = [0; 8 + 5 * LEN];
        let len = memory.read(at, &mut bytes)?;
        let bytes = bytes.get(..len).unwrap_or_default();
        let Some(start) = [0, 4, 8]
            .into_iter()
            .find(|start| bytes.get(*start..).is_some_and(|bytes| bytes.starts_with(b"Linux\0")))
        else {
            return Ok(None);
        };
        let field = |nth: usize| {
            let field = bytes.get(start + nth * LEN..)?.get(..LEN)?;
            let text = field.split(|byte| *byte == 0).next()?;
            Some(text.escape_ascii().to_string())
        };
        let fields = (field(1), field(2), field(3), field(4));
        let (Some(nodename), Some(release), Some(version), Some(machine)) = fields else { return Ok(None) };
        Ok(Some(Self { nodename, release, version, machine }))
    }
}
